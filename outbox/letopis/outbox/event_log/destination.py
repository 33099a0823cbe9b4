"""Normalise the place that an outbox delivers to, without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from sqlalchemy.engine import URL

from letopis.store.database.urls import normalise_url

LOCAL: Final = "localhost"
_LOCAL_NAMES: Final = frozenset({"", LOCAL, "127.0.0.1", "::1", "localhost.localdomain"})
_DEFAULT_PORTS: Final = {"postgresql": "5432", "mariadb": "3306"}


def destination_of(url: str | URL | os.PathLike[str]) -> str:
    """Return the kind, hosts, ports and database of a history store; no user, password or option.

    Two spellings of one place give the same text: the usual names of this machine and its socket, a default port,
    hosts in another order, links to an SQLite file. Two names of one server do not.
    """
    parsed = normalise_url(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return _text(f"sqlite:///{os.path.realpath(str(parsed.database))}")
    hosts = LOCAL if "unix_socket" in parsed.query else ",".join(sorted(set(_hosts(parsed, _DEFAULT_PORTS[kind]))))
    return _text(f"{kind}://{hosts}/{parsed.database}")


def _text(place: str) -> str:
    """Return a place as valid text: the name of a file may be any bytes."""
    return place.encode("utf-8", "backslashreplace").decode()


def _hosts(url: URL, default: str) -> Iterator[str]:
    """Yield the hosts of a URL with their ports, from its authority or its options, as libpq reads them."""
    hosts = [one for given in (url.host, *_options(url, "host")) if given is not None for one in given.split(",")]
    ports = [one for given in _options(url, "port") for one in given.split(",")]
    if url.port is not None:
        ports = [str(url.port)]
    for number, host in enumerate(hosts or [LOCAL]):
        name, port = _split_port(host)
        if port is None and ports:
            port = ports[number] if len(ports) == len(hosts) else ports[0]
        here = name.lower() in _LOCAL_NAMES or name.startswith("/")
        shown = LOCAL if here else f"[{name.lower()}]" if ":" in name else name.lower().rstrip(".")
        yield shown if port in (None, "", default) else f"{shown}:{port}"


def _split_port(host: str) -> tuple[str, str | None]:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":") or None
    if host.count(":") == 1 and not host.startswith("/"):
        name, _, port = host.partition(":")
        return name, port
    return host, None


def _options(url: URL, name: str) -> tuple[str, ...]:
    value = url.query.get(name, ())
    return (value,) if isinstance(value, str) else tuple(value)
