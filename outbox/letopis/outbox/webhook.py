"""Post to a webhook whose address comes from outside, without being led to a machine of our own network.

The host is resolved once, every address it has must be a public one, and the connection goes to one of exactly these;
the name is kept for TLS and for the ``Host`` header. Redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from letopis.store.errors import ConfigurationError, LetopisError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

MAX_REQUEST: Final = 64 * 1024
MAX_RESPONSE: Final = 64 * 1024
MAX_URL: Final = 2_048

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED: Final = ipaddress.ip_network("::ffff:0:0:0/96")  # IPv4-translated (RFC 2765)
_COMPATIBLE: Final = ipaddress.ip_network("::/96")  # IPv4-compatible, deprecated, still understood by some
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
# Global by the registries, and yet a door into the machine's own cloud, or no host at all.
_REFUSED: Final = (
    ipaddress.ip_network("168.63.129.16/32"),  # the host agent of one cloud
    ipaddress.ip_network("100.100.100.200/32"),  # the metadata of another (in 100.64/10, said for clarity)
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays
    # Not global either; older releases of Python do not know it.
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("3fff::/20"),
    ipaddress.ip_network("5f00::/16"),
)


class WebhookRefused(LetopisError):
    """The address must not be posted to; nothing was sent. The message names no address and no secret."""


class WebhookFailed(LetopisError):
    """The message was not taken.

    :ivar code: the HTTP status, or a word such as ``timeout``, ``tls``, ``unreachable``.
    :ivar unsure: it may have been taken all the same.
    """

    def __init__(self, code: str, *, unsure: bool) -> None:
        super().__init__(f"the webhook did not take the message [{code}]")
        self.code = code
        self.unsure = unsure


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An address to post to.

    :ivar private: the address may be one of our own network, and plain ``http``.
    """

    host: str
    port: int
    path: str
    tls: bool
    private: bool = False


def parse_webhook(url: str, *, private: bool = False) -> Webhook:
    """Return the webhook that a URL names.

    :param private: allow ``http`` and addresses that are not public: for a machine of one's own, said explicitly.
    :raises ConfigurationError: not ``https``, a user or password in it, no host, or something that is no URL.
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ConfigurationError("a webhook URL is plain ASCII of at most 2048 characters, percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # not chained: it quotes the URL
        raise ConfigurationError("this webhook URL cannot be read: check its host and port") from None
    if parts.scheme not in ("https", "http"):
        raise ConfigurationError("a webhook URL starts with https://")
    if parts.scheme == "http" and not private:
        raise ConfigurationError("a webhook URL starts with https://; plain http must be allowed explicitly")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("a webhook URL holds no user or password: put a secret into its path")
    if not parts.hostname or port == 0 or "%" in parts.netloc:
        raise ConfigurationError("this webhook URL has no usable host")
    path = parts.path or "/"
    return Webhook(
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else 80),
        path=f"{path}?{parts.query}" if parts.query else path,
        tls=parts.scheme == "https",
        private=private,
    )


def is_public(address: str) -> bool:
    """Say whether an IP address is one that anybody on the internet has, also when it is wrapped in another."""
    try:
        found: Address = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return _is_public(found.ipv4_mapped)
        if found in _NAT64:  # how a machine without IPv4 sees all of it
            return _is_public(_low(found))
    return all(_is_public(one) for one in (found, *_wrapped(found)))


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the operating system finds them; may block for long."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def post(
    webhook: Webhook,
    body: bytes,
    *,
    headers: Mapping[str, str],
    seconds: float = 10.0,
    resolver: Resolve = resolve,
    context: ssl.SSLContext | None = None,
) -> int:
    """Post ``body`` and return the HTTP status, one of 200 to 299. Blocks: run it in a thread.

    The connection is cut after ``seconds``, also when the peer sends a byte now and then; looking the host up is not
    part of that. Not promised: that the peer did nothing when this raises.

    :raises WebhookRefused: the host has an address that is not public, or none.
    :raises WebhookFailed: any other end.
    """
    if len(body) > MAX_REQUEST:
        raise WebhookRefused("the message is too long for a webhook")
    address = _chosen(webhook, resolver)
    connection = _Pinned(webhook, address, seconds=seconds, context=context)
    # The timeout of a socket starts anew with each byte; the timer does not.
    timer = Timer(seconds, connection.cut)
    timer.daemon = True
    timer.start()
    sent = False
    try:
        connection.connect()
        sent = True
        connection.request("POST", webhook.path, body=body, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        response.read(MAX_RESPONSE)
        status = response.status
    except ssl.SSLError as error:
        raise WebhookFailed("timeout" if connection.late else "tls", unsure=sent) from error
    except TimeoutError as error:
        raise WebhookFailed("timeout", unsure=sent) from error
    except (OSError, http.client.HTTPException) as error:
        code = "timeout" if connection.late else "broken" if sent else "unreachable"
        raise WebhookFailed(code, unsure=sent) from error
    finally:
        timer.cancel()
        connection.close()
    if not 200 <= status < 300:
        # 300 to 399 too: where the answer points to was not looked at, and is not.
        raise WebhookFailed(str(status), unsure=False)
    return status


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name means by now."""

    def __init__(self, webhook: Webhook, address: str, *, seconds: float, context: ssl.SSLContext | None) -> None:
        super().__init__(webhook.host, webhook.port, timeout=seconds)
        self._address = address
        self._tls = (context or ssl.create_default_context()) if webhook.tls else None
        self._deadline = monotonic() + seconds
        # What the base class leaves out of the Host header.
        self.default_port = 443 if webhook.tls else 80
        self.sock: Any

    @property
    def late(self) -> bool:
        """Whether the time was up."""
        return monotonic() >= self._deadline

    def connect(self) -> None:
        """Connect to the address, and let TLS check the name."""
        self.sock = plain = socket.create_connection((self._address, self.port), timeout=self.timeout)
        if self._tls is not None:
            # Shaken hands with below, so that `cut` has the socket in its hands by then.
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()
        if self.late:
            raise TimeoutError

    def cut(self) -> None:
        """End whatever waits on the connection; from another thread."""
        taken = self.sock
        if taken is not None:
            # Not the shutdown of TLS: that one is for the thread that reads.
            with suppress(OSError):
                socket.socket.shutdown(taken, socket.SHUT_RDWR)


def _chosen(webhook: Webhook, resolver: Resolve) -> str:
    try:
        found = resolver(webhook.host, webhook.port)
    except (OSError, UnicodeError) as error:
        raise WebhookFailed("unknown_host", unsure=False) from error
    if not found:
        raise WebhookFailed("unknown_host", unsure=False)
    # One that is not public is enough: a name that points to both is made to be tried twice.
    if not webhook.private and not all(map(is_public, found)):
        raise WebhookRefused(
            "the webhook's host is not a public address: allow private addresses explicitly if it is meant"
        )
    return found[0]


def _is_public(address: Address) -> bool:
    if any(address in network for network in _REFUSED):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not address.is_loopback
        and not address.is_link_local
    )


def _wrapped(address: Address) -> list[Address]:
    """Return the IPv4 addresses inside an IPv6 one, to which a tunnel or a translator would carry the packet."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = [] if address.sixtofour is None else [address.sixtofour]
    if address.teredo is not None:
        found.extend(address.teredo)
    if address in _TRANSLATED or address in _COMPATIBLE or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        found.append(_low(address))
    return found


def _low(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
