"""Each TLS fault is reported as what it is, against servers that get it wrong."""

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from letopis.ops.cli.interface.exit_codes import Exit, explain
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.errors import ConfigurationError
from tests.support.bench import ask, fault_at
from tests.support.required import missing
from tests.support.servers import MariaDBServer, PostgresServer, Server, ServerUnavailable
from tests.support.servers.processes import prepared

# A driver whose TLS handshake fails closes its transport, and asyncio drops the socket a turn of the loop later. If the
# loop has ended by then, the garbage collector reports it in the test that runs next.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIONS = {
    "postgresql": {"authority": "sslrootcert", "certificate": "sslcert", "key": "sslkey"},
    "mariadb": {"authority": "ssl_ca", "certificate": "ssl_cert", "key": "ssl_key"},
}


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


class Secured:
    """A server of our own with TLS, whose certificate can be replaced while it runs."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.authority = Authority(folder / "ours")
        self.stranger = Authority(folder / "stranger")
        self._certificate, self._key = folder / "server.crt", folder / "server.key"
        self.authority.sign(self._certificate, self._key)
        names = {"cert": str(self._certificate), "key": str(self._key)}
        self.server: Server
        if kind == "postgresql":
            files = {f"ssl_{name}_file": path for name, path in names.items()}
            self.server = self._own = PostgresServer.own(settings={"ssl": "on", **files})
        else:
            self.server = self._own = MariaDBServer.own(settings={f"ssl-{name}": path for name, path in names.items()})
        self._own.start()

    def show(self, authority: Authority | None = None, **what: object) -> None:
        """Have the server show another certificate from now on."""
        (authority or self.authority).sign(self._certificate, self._key, **what)  # type: ignore[arg-type]
        self._own.execute("SELECT pg_reload_conf()" if self.kind == "postgresql" else "FLUSH SSL")

    def url(self, **files: Path) -> str:
        files = {"authority": self.authority.certificate, **files}
        options = "&".join(f"{OPTIONS[self.kind][name]}={path}" for name, path in files.items())
        return f"{self.server.url}?sslmode=verify-full&{options}"


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    for one in (folder, *folder.parents[:2]):
        os.chmod(one, 0o755)  # noqa: PTH101, S103 - the server may be another user's
    try:
        found = Secured(request.param, folder)
    except ServerUnavailable as reason:
        missing(request.param, reason)
    with found.server:
        yield found


@pytest.mark.parametrize(
    ("show", "code", "said"),
    [
        (lambda it: it.show(it.stranger), "tls-untrusted", "sslrootcert"),
        (lambda it: it.show(days=(-3, -1)), "tls-expired", "expired"),
        (lambda it: it.show(days=(1, 3)), "tls-not-yet-valid", "clocks"),
        (lambda it: it.show(name=ELSEWHERE), "tls-host", "another host name"),
    ],
    ids=["untrusted", "expired", "not yet valid", "host"],
)
async def test_certificate_faults(secured: Secured, show: Callable[[Secured], None], code: str, said: str) -> None:
    secured.show()
    await ask(secured.url())  # the certificate that is right
    show(secured)

    fault = await fault_at(secured.url())

    assert (fault.fault_class, fault.code) == (FaultClass.MISCONFIGURED, code)
    assert said in fault.reason
    assert explain(fault)[0] == Exit.CONFIGURATION


@pytest.mark.parametrize("name", ["authority", "certificate", "key", "text"])
async def test_a_file_that_is_missing_or_of_another_kind_is_no_outage(
    secured: Secured, name: str, tmp_path: Path
) -> None:
    secured.show()
    (tmp_path / "text.pem").write_text("no certificate\n")
    pair = dict.fromkeys(("certificate", "key"), secured.authority.certificate)
    wrong = {"authority": tmp_path / "text.pem"} if name == "text" else {name: tmp_path / "missing.pem"}

    with pytest.raises((StoreFault, ConfigurationError)) as caught:
        await ask(secured.url(**({**pair, **wrong} if name in pair else wrong)))

    assert name == "text" or f"{OPTIONS[secured.kind][name]} does not exist" in str(caught.value)
    assert explain(caught.value)[0] == Exit.CONFIGURATION
