"""Decide who may read and who may act, by token, session and origin of the request; no I/O."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from letopis.store.errors import ConfigurationError

SESSION_SECONDS: Final = 12 * 3600
"""Time after which a user has to sign in again."""
MAX_SESSIONS: Final = 100
"""Sessions of one name at the same time; a further one ends the oldest of them."""
MIN_SECRET_LENGTH: Final = 16
MAX_NAME_LENGTH: Final = 80
READER: Final = "reader"
OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a user signs in with; its secret is not kept.

    :ivar name: of the user, for the audit log.
    :ivar role: ``reader`` or ``operator``.
    """

    name: str
    role: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A user who has signed in, and the token that every form of the session must carry."""

    name: str
    role: str
    expires: float
    form_token: str = field(repr=False)


def parse_tokens(texts: Iterable[str]) -> tuple[Token, ...]:
    """Return the tokens that texts of the form ``NAME:ROLE:SECRET`` mean.

    :raises ConfigurationError: one has another form, or has the secret of an earlier one. The message quotes none.
    """
    tokens: list[Token] = []
    for number, text in enumerate(texts, start=1):
        name, role, secret = (*(part.strip() for part in text.split(":", 2)), "", "")[:3]
        short = len(secret) < MIN_SECRET_LENGTH
        if short or role not in (READER, OPERATOR) or not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise ConfigurationError(
                f"token {number} of the console must be NAME:ROLE:SECRET, with the role reader or operator and a secret"
                f" of at least {MIN_SECRET_LENGTH} characters: make one with"
                " `python -c 'import secrets; print(secrets.token_urlsafe(24))'`"
            )
        token = Token(name=name, role=role, digest=_digest(secret))
        if any(token.digest == earlier.digest for earlier in tokens):
            raise ConfigurationError(f"token {number} of the console has the secret of an earlier one: make another")
        tokens.append(token)
    return tuple(tokens)


class Gate:
    """Knows the tokens, and begins, checks and ends sessions.

    Sessions are kept in memory, by the digest of their cookie: a restart ends them all.

    :param open_reading: whether pages can be read without a session.
    """

    def __init__(
        self, tokens: Iterable[Token] = (), *, open_reading: bool = False, now: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tuple(tokens)
        self._open_reading = open_reading
        self._link: tuple[Token, ...] = ()
        self._sessions: dict[bytes, Session] = {}
        self._now = now

    @property
    def has_tokens(self) -> bool:
        """False if a link is the only way to sign in."""
        return bool(self._tokens)

    def require_entrance(self) -> None:
        """Check that there is a way to read.

        :raises ConfigurationError: there are no tokens, and reading is not open.
        """
        if not self._tokens and not self._open_reading:
            raise ConfigurationError(
                "the console has no token, so it has no reader: set LETOPIS_CONSOLE_TOKENS or"
                " LETOPIS_CONSOLE_TOKENS_FILE to tokens of the form NAME:ROLE:SECRET, or open_reading = true in"
                " [console]. In a terminal and on an address of this machine alone, `letopis console` prints a link"
                " that signs in"
            )

    def create_link(self, name: str) -> str:
        """Return a secret that signs an operator in, once."""
        secret = secrets.token_urlsafe(32)
        self._link = (Token(name=name, role=OPERATOR, digest=_digest(secret)),)
        return secret

    def use_link(self, secret: str) -> str | None:
        """Return the cookie of a new session; ``None`` if the secret is wrong or was used."""
        cookie = self._begin(self._link, secret)
        if cookie is not None:
            self._link = ()
        return cookie

    def sign_in(self, secret: str) -> str | None:
        """Return the cookie of a new session; ``None`` if no token has this secret."""
        return self._begin(self._tokens, secret)

    def session(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; ``None`` if it has none, or the session is over."""
        session = self._sessions.get(_digest(cookie or ""))
        return session if session is not None and session.expires > self._now() else None

    def end(self, cookie: str | None) -> None:
        """End the session of a cookie: its copies are worthless from now on."""
        self._sessions.pop(_digest(cookie or ""), None)

    def may_read(self, cookie: str | None) -> bool:
        """Return True if a request with this cookie may see pages."""
        return self._open_reading or self.session(cookie) is not None

    def _begin(self, tokens: Iterable[Token], secret: str) -> str | None:
        # All digests are compared, each in constant time: the time reveals neither a secret nor its length.
        digest = _digest(secret)
        matching = [token for token in tokens if hmac.compare_digest(token.digest, digest)]
        if not matching:
            return None
        now = self._now()
        token, cookie = matching[0], secrets.token_urlsafe(32)
        self._sessions = {key: session for key, session in self._sessions.items() if session.expires > now}
        same = [key for key, session in self._sessions.items() if session.name == token.name]
        if len(same) >= MAX_SESSIONS:
            del self._sessions[same[0]]
        self._sessions[_digest(cookie)] = Session(
            name=token.name, role=token.role, expires=now + SESSION_SECONDS, form_token=secrets.token_hex(32)
        )
        return cookie


def is_form_token(session: Session, given: str) -> bool:
    """Return True if a form carried the token of its session."""
    return hmac.compare_digest(_digest(given), _digest(session.form_token))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return True unless the browser reports that a page of another origin made the request.

    Browsers send ``Sec-Fetch-Site``, older ones ``Origin``. A client that sends neither is not a browser; it needs the
    form's token anyway.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    # The scheme is not compared: behind a proxy that terminates TLS, this server does not know its own.
    return found.scheme in ("http", "https") and found.netloc.lower() == headers.get("host", "").lower()
