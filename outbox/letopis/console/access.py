"""Decide who may read and who may act, by token, session and origin of the request; no I/O."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson

from letopis.store.errors import ConfigurationError

SESSION_SECONDS: Final = 12 * 3600
"""Time after which an operator has to sign in again."""
MIN_TOKEN_LENGTH: Final = 16
MAX_NAME_LENGTH: Final = 80
MAX_FAILURES: Final = 10
"""Wrong tokens within :data:`FAILURE_WINDOW_SECONDS` after which signing in is refused for the rest of it."""
FAILURE_WINDOW_SECONDS: Final = 60.0
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers by which a proxy reports that the real client is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An operator who has signed in.

    :ivar name: as the operator entered it, for the audit log; may be empty.
    """

    key: str
    name: str
    expires: int


class Gate:
    """Knows the token, and creates and checks sessions.

    Sessions are signed with a key that is generated when the process starts, and are not stored: a restart ends them
    all.

    :param token: ``None`` to allow no actions.
    :raises ConfigurationError: the token is too short.
    """

    def __init__(self, token: str | None, *, now: Callable[[], float] = time.time) -> None:
        if token is not None and len(token) < MIN_TOKEN_LENGTH:
            raise ConfigurationError(
                f"the token of the console needs at least {MIN_TOKEN_LENGTH} characters: make one with"
                " `python -c 'import secrets; print(secrets.token_urlsafe(24))'`"
            )
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()
        self._key = secrets.token_bytes(32)
        self._now = now
        self._failures: list[float] = []

    @property
    def closed(self) -> bool:
        """True if signing in is impossible, because there is no token."""
        return self._digest is None

    @property
    def throttled(self) -> bool:
        """True if too many wrong tokens were entered recently."""
        limit = self._now() - FAILURE_WINDOW_SECONDS
        self._failures = [one for one in self._failures if one > limit]
        return len(self._failures) >= MAX_FAILURES

    def sign_in(self, token: str, name: str) -> str | None:
        """Return the cookie of a new session; ``None`` if the token is wrong. Takes the same time for every token."""
        given = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        # Compare digests, so that the time does not reveal even the length.
        if self._digest is None or not hmac.compare_digest(given, self._digest):
            self._failures.append(self._now())
            return None
        name = " ".join("".join(one for one in name if one.isprintable()).split())[:MAX_NAME_LENGTH]
        body = orjson.dumps([secrets.token_urlsafe(12), name, int(self._now()) + SESSION_SECONDS])
        text = urlsafe_b64encode(body).decode()
        return f"{text}.{self._sign('session', text)}"

    def session(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; ``None`` if the cookie is not ours, or the session is over."""
        text, dot, signature = (cookie or "").rpartition(".")
        if not dot or self.closed or not _equal(signature, self._sign("session", text)):
            return None
        key, name, expires = orjson.loads(urlsafe_b64decode(text))
        return Session(key=key, name=name, expires=expires) if expires > self._now() else None

    def form_token(self, session: Session) -> str:
        """Return the token that every form of a session must carry."""
        return self._sign("form", session.key)

    def is_form_token(self, session: Session, given: str) -> bool:
        """Return True if a form carried the token of its session."""
        return _equal(given, self.form_token(session))

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


def is_local(client: str | None, headers: Mapping[str, str]) -> bool:
    """Return True if a request comes from this machine and addresses it by one of its own names.

    The name matters, because another site may let its own name resolve to the loopback address.
    """
    if client is None or any(name in headers for name in FORWARDED):
        return False
    return _is_loopback(client) and _is_loopback(host_name(headers.get("host", "")))


def host_name(host: str) -> str:
    """Return the name in a ``Host`` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


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
