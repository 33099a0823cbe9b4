"""Assemble the console: an ASGI application for one history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from letopis.console.insight import Insight
from letopis.ops.config.settings import AlertSettings
from letopis.outbox.history.history import History

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from letopis.console.pages import (
        alerts,
        audit,
        changes,
        conversations,
        integrity,
        overview,
        repairs,
        session,
        statistics,
        stuck,
    )
    from letopis.console.pages import transcript as chat
except ImportError as error:
    raise ImportError("the console needs Starlette and Jinja2: pip install 'letopis[console]'") from error

from letopis.console import assets
from letopis.console.access import Gate, parse_tokens
from letopis.console.activity import Pulse
from letopis.console.figures import LogFigures
from letopis.console.headers import SecurityHeaders
from letopis.console.pages.answers import problem
from letopis.console.state import ConsoleState
from letopis.console.verification import Verifier
from letopis.console.visit import Visit

ROUTES = [
    Route("/", overview.overview),
    Route("/live", overview.live),
    Route("/relay/pause", overview.pause_relay, methods=["POST"]),
    Route("/relay/resume", overview.resume_relay, methods=["POST"]),
    Route("/stuck", stuck.stuck),
    Route("/stuck/retry", repairs.retry, methods=["POST"]),
    Route("/stuck/skip", repairs.skip, methods=["POST"]),
    Route("/stuck/skip-missing", repairs.skip_missing, methods=["POST"]),
    Route("/stuck/fix", repairs.fix, methods=["POST"]),
    Route("/stuck/restore", repairs.restore, methods=["POST"]),
    Route("/stuck/pause", repairs.pause, methods=["POST"]),
    Route("/stuck/resume", repairs.resume, methods=["POST"]),
    Route("/stuck/export", repairs.export, methods=["POST"]),
    Route("/stuck/{event_id}", stuck.event),
    Route("/conversations", conversations.conversations),
    Route("/conversation", chat.transcript),
    Route("/conversation/export", changes.export, methods=["POST"]),
    Route("/conversation/{change}", changes.change, methods=["POST"]),
    Route("/alerts/test", alerts.send_test, methods=["POST"]),
    Route("/statistics", statistics.statistics),
    Route("/integrity", integrity.integrity),
    Route("/integrity/verify", integrity.verify, methods=["POST"]),
    Route("/audit", audit.audit),
    Route("/session", session.sign_in_form),
    Route("/session", session.sign_in, methods=["POST"]),
    Route("/session/end", session.sign_out, methods=["POST"]),
    Route("/static/{name}", assets.serve),
]


def app(
    history: History,
    *,
    tokens: Iterable[str] = (),
    open_reading: bool = False,
    language: str | None = None,
    home: str | None = None,
) -> Starlette:
    """Return the console of a history, an ASGI application to serve or mount.

    ::

        history = History("bot.outbox.db", store="postgresql://bot@db/history")
        tokens = os.environ["CONSOLE_TOKENS"].split()
        service = Starlette(routes=[Mount("/history", letopis.console.app(history, tokens=tokens))])

    Users sign in with a token. Only operators can change something; each change is recorded in the outbox's audit log,
    with the name of the token.

    The history is neither opened nor closed here: its first use opens it, and it may be open in another event loop.

    :param tokens: each ``NAME:ROLE:SECRET``, with the role ``reader`` or ``operator`` and a secret of at least 16
        characters.
    :param open_reading: ``True`` to let everyone read who can send a request, without a token.
    :param language: ``en`` or ``ru`` for readers who have not chosen a language; by default, their browser's.
    :param home: the target of a link beside the console's name.
    :raises ConfigurationError: a token is not valid; or there is none, and ``open_reading`` is not set.
    """
    gate = Gate(parse_tokens(tokens), open_reading=open_reading)
    gate.require_entrance()
    return console_of(history, gate, language=language, home=home)


def console_of(
    history: History,
    gate: Gate,
    *,
    language: str | None = None,
    home: str | None = None,
    cookie_path: str | None = None,
    alerts: Callable[[], AlertSettings] | None = None,
) -> Starlette:
    """Return the console of a history behind a gate, which several consoles may share."""
    insight = Insight(history)
    state = ConsoleState(
        history=history,
        insight=insight,
        gate=gate,
        pulse=Pulse(insight),
        figures=LogFigures(insight),
        verifier=Verifier(insight),
        name=insight.path.name,
        language=language,
        home=home,
        cookie_path=cookie_path,
        alerts=alerts,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await state.close()

    console = Starlette(
        routes=ROUTES,
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={404: _not_found, 405: _not_found, 500: _broken},
        lifespan=lifespan,
    )
    console.state.console = state
    return console


async def _not_found(request: Request, error: Exception) -> Response:
    visit = Visit(request)
    return problem(visit, getattr(error, "status_code", 404), visit.language.gettext("There is no such page."))


async def _broken(request: Request, _: Exception) -> Response:
    visit = Visit(request)
    return problem(visit, 500, visit.language.gettext("Unexpected error. The log of the console names it."))
