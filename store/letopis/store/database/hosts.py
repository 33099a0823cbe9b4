"""Parse and render the hosts of a server's URL in libpq's spellings; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from sqlalchemy.engine import URL

from letopis.store.errors import ConfigurationError

_SEVERAL: Final = re.compile(
    r"(?P<before>[^:/?@]+://(?:[^:/]*(?::[^@]*)?@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<after>[/?].*)?", re.DOTALL
)
"""A URL whose hosts are separated by commas; SQLAlchemy, whose user and password are matched alike, reads one host."""
_SPEC: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\[\]:]*|/.*?))(?::(?P<port>[0-9]*))?")
_BARE_V6: Final = re.compile(r"[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.%\w]*")


class HostAddress(NamedTuple):
    """A host name, an IP address without brackets, or the path of a socket."""

    host: str
    port: int | None  # None for the default, and for MariaDB's sockets

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and not self.is_socket else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("/")


def split_hosts(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a URL's text without its hosts, and the hosts, if there are several; otherwise ``()``."""
    matched = _SEVERAL.fullmatch(text)
    if matched is None:
        return text, ()
    hosts = tuple(unquote(host) for host in matched["hosts"].split(","))
    return matched["before"] + (matched["after"] or ""), hosts


def addresses_of(url: URL) -> tuple[HostAddress, ...]:
    """Return the addresses of a server's URL in the order in which they are tried."""
    # As in libpq: ?host= replaces the host before the path, and a single port applies to every host.
    given = _listed(url, "host") or ([unquote(part) for part in url.host.split(",")] if url.host else [])
    addresses = [_address(spec) for spec in given]
    ports = [_port(port) for port in _listed(url, "port")] or [url.port]
    if not addresses:
        return ()
    if len(ports) == 1:
        ports *= len(addresses)
    if len(ports) != len(addresses):
        raise ConfigurationError(
            f"the URL gives {len(ports)} ports for {len(addresses)} hosts: give one, or one for each"
        )
    for address, port in zip(addresses, ports, strict=True):
        if None not in (address.port, port) and address.port != port and "port" in url.query:
            raise ConfigurationError("the URL gives the port of a host twice")
    named = [HostAddress(a.host, port if a.port is None else a.port) for a, port in zip(addresses, ports, strict=True)]
    return tuple(dict.fromkeys(named))


def with_addresses(url: URL, addresses: Sequence[HostAddress], default_port: int) -> URL:
    """Return the URL with these addresses in the spelling that SQLAlchemy can hold."""
    query = {key: value for key, value in url.query.items() if key not in ("host", "port")}
    bare = url.set(query=query)
    if not addresses:
        return url
    if len(addresses) > 1:
        full = tuple(str(HostAddress(host, port or default_port)) for host, port in addresses)
        return _without_host(bare).set(query={**query, "host": full})
    (address,) = addresses
    if not address.is_socket:
        return bare.set(host=address.host, port=address.port)
    options = {"host": address.host} | ({} if address.port is None else {"port": str(address.port)})
    return _without_host(bare).set(query={**query, **options})


def show_hosts(url: URL, addresses: Sequence[HostAddress]) -> str:
    """Return the text of a URL, its password masked, with these addresses as libpq writes them."""
    url = _without_host(url.set(database=url.database or ""))
    text = url.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    path_start = text.index("/", text.index("://") + 3)
    listed = ",".join(quote(str(address), safe=":[]%") for address in addresses)
    return f"{text[:path_start]}{listed}{text[path_start:]}"


def _without_host(url: URL) -> URL:
    return URL.create(url.drivername, url.username, url.password, database=url.database, query=url.query)


def _listed(url: URL, name: str) -> list[str]:
    """Return the values of an option that may be given several times with several values each."""
    value = url.query.get(name, ())
    return [part for text in ((value,) if isinstance(value, str) else value) for part in text.split(",")]


def _address(spec: str) -> HostAddress:
    spec = spec.strip()
    if _BARE_V6.fullmatch(spec):
        return HostAddress(spec, None)
    matched = _SPEC.fullmatch(spec)
    host = matched and (matched["v6"] or matched["name"])
    if not matched or not host or re.search(r"[\s@\0]", host):
        raise ConfigurationError("a host of the URL cannot be parsed: write hosts as host1:5432,host2:5432, [::1]:5432")
    return HostAddress(host, _port(matched["port"] or ""))


def _port(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:6]) < 65_536:
        raise ConfigurationError("a port of the URL is not a number from 1 to 65535")
    return int(text)
