"""Make an authority and certificates of every kind with the openssl program."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.support.servers.base import ServerUnavailable
from tests.support.servers.processes import prepared

HERE: Final = "IP:127.0.0.1"
ELSEWHERE: Final = "DNS:elsewhere.example"

_CONFIGURATION: Final = """
[ca]
default_ca = ours
[ours]
new_certs_dir = {folder}
database = {folder}/index
rand_serial = yes
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""


class Authority:
    """Signs certificates; ``certificate`` is its own, for a client's ``sslrootcert``."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            raise ServerUnavailable("the openssl program was not found: install openssl")
        folder.mkdir()
        self._folder = folder
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        (folder / "index").touch()
        (folder / "configuration").write_text(_CONFIGURATION.format(folder=folder))
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout", self._key)
        _openssl("req", "-x509", *key, "-out", self.certificate, "-subj", f"/CN=authority {folder.name}", "-days", "2")

    def sign(self, certificate: Path, key: Path, *, name: str = HERE, days: tuple[int, int] = (-1, 1)) -> None:
        """Write a certificate for ``name`` that is valid between these days from now, and its key."""
        request = self._folder / "request"
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request),
            *("-subj", "/CN=a server", "-addext", f"subjectAltName={name}"),
        )
        first, last = ((datetime.now(UTC) + timedelta(days=day)).strftime("%Y%m%d%H%M%SZ") for day in days)
        _openssl(
            *("ca", "-batch", "-notext", "-config", self._folder / "configuration"),
            *("-in", request, "-out", certificate),
            *("-cert", self.certificate, "-keyfile", self._key, "-startdate", first, "-enddate", last),
        )
        (self._folder / "index").write_text("")  # the same name may be signed again
        key.chmod(0o600)


def _openssl(*words: str | Path) -> None:
    prepared(("openssl", *words))
