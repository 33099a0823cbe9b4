"""Ask the console without a session, with one that ended, and with endless forms: it shows and takes nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from unittest.mock import patch

from letopis.console import forms
from letopis.console.access import Gate, parse_tokens
from letopis.outbox.alerting.channels import Alert, AlertFailed, open_channels
from letopis.store import Message
from tests.proof.harness import Setting, Tally
from tests.support.console import ACTIONS, PAGES, TOKEN, TOKENS, House, ask, pour, sign_in
from tests.support.webhook import serve

PRIVATE: Final = "only for those who have a session"
CHUNK: Final = 65_536
LARGE_BYTES: Final = 24 * 1024**2
MOST_BYTES: Final = 8 * 1024**2  # more than the operating system holds of a form that nobody reads
SENDERS: Final[dict[str, dict[str, str]]] = {
    "a plain reverse proxy": {"host": "127.0.0.1:8300", "connection": "close"},
    "a proxy that tells of its client": {"host": "history.example", "x-forwarded-for": "127.0.0.1"},
    "this machine": {"host": "localhost"},
    "a name that resolves to this machine": {"host": "evil.example"},
    "a page of another site": {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    "a cookie made up": {"cookie": "letopis_console=x"},
    "a name of one's own": {"remote-user": "root", "x-forwarded-user": "root", "authorization": f"Bearer {TOKEN}x"},
}


class Forgetful(Gate):
    """A gate that leaves it to the browser to end a session, as one with signed cookies does."""

    def end(self, cookie: str | None) -> None:
        """Do nothing."""


@contextmanager
def served(folder: Path, gate: Gate) -> Iterator[House]:
    """Serve a console with one conversation."""
    with House(folder / "bot.outbox.db", gate=gate, relay=False, watch=False) as house:
        house.run(house.history.append("c1", Message.user(PRIVATE), owner="1"))
        yield house


def without_session(setting: Setting) -> Tally:
    """Ask for every page, and send every form, as each sender; the control's console shows its pages to anyone."""
    came, gate = Tally(), Gate(parse_tokens(TOKENS), open_reading=setting.control)
    with served(setting.folder, gate) as house:
        for sender, headers in SENDERS.items():
            for page in (*PAGES, *([] if setting.control else ["live"])):
                came.count += 1
                answer = ask(house.port, f"/{page}", **headers)
                kept = answer.code == 401 and PRIVATE not in answer.text
                came.require(kept, f"{sender} gets /{page}: {answer.code}")
            for action in ACTIONS:
                came.count += 1
                code = ask(house.port, f"/{action}", {"all": "1", "reason": "x"}, **headers).code
                came.require(code in (401, 403), f"{sender} does /{action}: {code}")
    return came


def ended(setting: Setting) -> Tally:
    """Sign out and ask again with a copy of the cookie; use a link twice."""
    came, gate = Tally(), (Forgetful if setting.control else Gate)(parse_tokens(TOKENS))
    with served(setting.folder, gate) as house:
        for _ in range(1 if setting.control else setting.many(20, 3)):
            cookie, token = sign_in(house.port)
            ask(house.port, "/session/end", {"form_token": token}, cookie=cookie)
            secret = gate.create_link("ann")
            used = ask(house.port, f"/session?once={secret}").cookie
            for path, given in (("/audit", cookie), ("/conversation?id=c1", cookie), (f"/session?once={secret}", "")):
                came.count += 1
                answered = ask(house.port, path, cookie=given).code in (200, 303)
                came.require(not answered, f"{path.partition('=')[0]} is answered")
            came.require(ask(house.port, "/audit", cookie=used).code == 200, "a link does not sign in")
    return came


def endless(setting: Setting) -> Tally:
    """Send forms without an end to each path; the server may take only the beginning of each."""
    came = Tally()
    first = forms.MAX_FORM_BYTES if setting.control else forms.MAX_FIRST_BYTES
    with patch.object(forms, "MAX_FIRST_BYTES", first), served(setting.folder, Gate(parse_tokens(TOKENS))) as house:
        cookie, _ = sign_in(house.port)
        chunks = [b"form_token=0&data=" + b"x" * CHUNK, *[b"x" * CHUNK] * (LARGE_BYTES // CHUNK)]
        for path in ("session", "session/end", *ACTIONS):
            for given in ("", cookie):
                came.count += 1
                took = pour(house.port, f"/{path}", chunks, cookie=given)
                came.require(took <= MOST_BYTES, f"/{path}: {took:,} bytes are taken of a form that has no token")
    return came


STATUSES: Final = (301, 302, 303, 307, 308)
_ALERT: Final = Alert(key="proof", title="Letopis", text="a proof")


def redirected(setting: Setting) -> Tally:
    """Answer alerts with every redirect; none may be sent on."""
    came = Tally()
    with serve() as site:
        for status in STATUSES:
            # An address cannot switch it on either.
            for address in (f"http://{site.url}/hook", f"json://{site.url}/hook?redirect=yes"):
                site.status, before = status, len(site.asked)
                came.count += 1
                (channel,) = open_channels([address], private=True)
                with suppress(AlertFailed):
                    asyncio.run(channel.send(_ALERT))
                came.require(site.paths[before:] == ["/hook"], f"{status}: {site.paths[before:]} were asked")
    return came


def followed(setting: Setting) -> Tally:
    """The control: Apprise with its defaults goes where the answer says; the other paths were requested."""
    import apprise

    with serve() as site:
        site.status = 307
        channel = apprise.Apprise()
        channel.add(f"json://{site.url}/hook")
        channel.notify(title=_ALERT.title, body=_ALERT.text)
        return Tally(1, problems=[path for path in site.paths if path != "/hook"])
