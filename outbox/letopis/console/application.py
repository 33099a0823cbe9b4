"""Assemble the console: an ASGI application for one history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from letopis.outbox.history.history import History
from letopis.outbox.history.insight import Insight

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from letopis.console.pages import audit, conversations, integrity, overview, repairs, session, statistics, stuck
    from letopis.console.pages import transcript as chat
except ImportError as error:
    raise ImportError("the console needs Starlette and Jinja2: pip install 'letopis[console]'") from error

from letopis.console import assets
from letopis.console.access import Gate
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
    token: str | None = None,
    open_reading: bool = True,
    language: str | None = None,
    home: str | None = None,
) -> Starlette:
    """Return the console of a history, an ASGI application to serve or mount.

    ::

        history = History("bot.outbox.db", store="postgresql://bot@db/history")
        service = Starlette(routes=[Mount("/history", letopis.console.app(history, token=os.environ["CONSOLE_TOKEN"]))])

    Pages can be read without the token from this machine only: the client's address and the ``Host`` header must both
    be loopback, and no proxy may have forwarded the request. All other readers, and everyone who wants to change
    something, sign in with the token. Each change is recorded in the outbox's audit log.

    The history is neither opened nor closed here: its first use opens it, and it may be open in another event loop.

    :param token: at least 16 characters; with ``None``, no one can act, and only this machine can read.
    :param open_reading: ``False`` to require the token on this machine too.
    :param language: ``en`` or ``ru`` for readers who have not chosen a language; by default, their browser's.
    :param home: the target of a link beside the console's name.
    :raises ConfigurationError: the token is too short.
    """
    insight = Insight(history)
    state = ConsoleState(
        history=history,
        insight=insight,
        gate=Gate(token),
        pulse=Pulse(insight),
        figures=LogFigures(insight),
        verifier=Verifier(insight),
        name=insight.path.name,
        open_reading=open_reading,
        language=language,
        home=home,
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
