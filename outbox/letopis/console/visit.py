"""Hold the context of one request: the reader, the language, and the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from letopis.console.access import OPERATOR, SESSION_SECONDS, Session, is_form_token
from letopis.console.i18n import Language, language, preferred
from letopis.console.rendering import render
from letopis.console.state import ConsoleState
from letopis.outbox.alerting.language import LANGUAGES
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.repair import NotRepairable
from letopis.store.errors import ConversationGone, InvalidInput

T = TypeVar("T")

SESSION_COOKIE: Final = "letopis_console"
LANGUAGE_COOKIE: Final = "letopis_language"
THEME_COOKIE: Final = "letopis_theme"
THEMES: Final = ("auto", "light", "dark")
_YEAR: Final = 365 * 86_400


class Visit:
    """One request.

    :ivar session: the user's session; ``None`` if not signed in.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state: ConsoleState = request.app.state.console
        self.cookie = request.cookies.get(SESSION_COOKIE)
        self.session: Session | None = self.state.gate.session(self.cookie)
        self._preferences: dict[str, str] = {}
        self.language: Language = language(self._chosen("lang", LANGUAGE_COOKIE, LANGUAGES) or self._language())
        self.theme = self._chosen("theme", THEME_COOKIE, THEMES) or "auto"

    @property
    def may_read(self) -> bool:
        """Whether the user may see pages, at this moment."""
        return self.state.gate.may_read(self.cookie)

    @property
    def may_act(self) -> bool:
        """Whether the user is an operator."""
        return self.session is not None and self.session.role == OPERATOR

    # Where things are.

    def url(self, page: str, /, **query: Any) -> str:
        """Return the path of a page, below the console's mount point; ``None`` values are left out."""
        path = f"{self.request.scope.get('root_path', '').rstrip('/')}/{page}"
        given = {name: value for name, value in query.items() if value is not None and value != ""}
        return f"{path}?{urlencode(given)}" if given else path

    def here(self, **query: Any) -> str:
        """Return the path of this page with some of its query changed."""
        found = {**self.request.query_params, **query}
        found = {name: value for name, value in found.items() if name not in ("done", "count") or name in query}
        return self.url(self.page, **found)

    @property
    def page(self) -> str:
        """The path of this page below the console."""
        root = str(self.request.scope.get("root_path", "")).rstrip("/")
        return self.request.url.path.removeprefix(root).lstrip("/")

    def query(self, name: str) -> str | None:
        """Return a value from the query; ``None`` if it is missing or empty."""
        return self.request.query_params.get(name) or None

    def whole(self, name: str, *, least: int = 0, most: int = 2**63 - 1) -> int | None:
        """Return a whole number from the query; ``None`` if it is missing or out of range."""
        text = self.query(name) or ""
        if not (text.isascii() and text.isdigit()) or len(text) > 19:
            return None
        return int(text) if least <= int(text) <= most else None

    # Answers.

    def render(self, template: str, *, code: int = 200, **context: Any) -> Response:
        """Return a page."""
        response = HTMLResponse(render(template, self, context), status_code=code)
        self._remember(response)
        return response

    def see(self, page: str, /, **query: Any) -> Response:
        """Redirect the browser to a page, after a form."""
        return RedirectResponse(self.url(page, **query), status_code=303)

    async def act(self, work: Callable[[OutboxAdmin], Awaitable[T]], *, about: Mapping[str, Any] | None = None) -> T:
        """Run ``work`` with the outbox's admin, in the operator's name, and return its result.

        :param about: the action, and the details to record if it is refused.
        :raises NotRepairable, InvalidInput, ConversationGone: it was refused.
        """
        by = None if self.session is None else self.session.name
        acting = self.state.insight.acting
        try:
            return await acting(work, by=by, via="console")
        except (NotRepairable, InvalidInput, ConversationGone) as error:
            if about is not None:
                refusal = str(error)
                await acting(lambda admin: admin.record(**{"outcome": refusal, **about}), by=by, via="console")
            raise

    def begin_session(self, cookie: str, response: Response) -> None:
        """Set the cookie of a session."""
        self._set_cookie(response, SESSION_COOKIE, cookie, seconds=SESSION_SECONDS, secret=True)

    def end_session(self, response: Response) -> None:
        """End the session, and delete its cookie."""
        self.state.gate.end(self.cookie)
        self._set_cookie(response, SESSION_COOKIE, "", seconds=0, secret=True)

    @property
    def form_token(self) -> str:
        """The token that every form of this session carries; empty without a session."""
        return "" if self.session is None else self.session.form_token

    def is_form_token(self, given: str) -> bool:
        """Return True if a form carried the token of this session."""
        return self.session is not None and is_form_token(self.session, given)

    def _chosen(self, name: str, cookie: str, known: tuple[str, ...]) -> str | None:
        """Return a preference, from this query or an earlier one."""
        wanted = self.query(name)
        if wanted in known:
            self._preferences[cookie] = str(wanted)
            return wanted
        kept = self.request.cookies.get(cookie)
        return kept if kept in known else None

    def _language(self) -> str:
        return self.state.language or preferred(self.request.headers.get("accept-language", ""))

    def _remember(self, response: Response) -> None:
        for name, value in self._preferences.items():
            self._set_cookie(response, name, value, seconds=_YEAR, secret=False)

    def _set_cookie(self, response: Response, name: str, value: str, *, seconds: int, secret: bool) -> None:
        response.set_cookie(
            name,
            value,
            max_age=seconds,
            path=(self.state.cookie_path if secret else None) or self.url(""),
            secure=self.request.url.scheme == "https",
            httponly=secret,
            samesite="strict" if secret else "lax",
        )


Fields = Mapping[str, list[str]]
"""The fields of a form by name."""


def field(fields: Fields, name: str) -> str:
    """Return the first value of a field; empty if it is missing."""
    return next(iter(fields.get(name, ())), "")
