"""Operators' channels against a real HTTP server on the loopback, the command that tries them, and their settings."""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.config.settings import AlertSettings, load_alerts
from letopis.outbox.alerting.channels import Alert, AlertFailed, open_channels
from letopis.store.errors import ConfigurationError
from tests.support.webhook import Site, serve

Letopis = Callable[..., tuple[int, str, str]]
SECRET = "s3cr3t-t0k3n"
ALERT = Alert(key="k/1", title="Letopis: a title", text="line 1\nline 2", facts={"kind": "store_down", "events": 3})


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as found:
        yield found


@pytest.mark.parametrize("scheme", ["http", "json"])
async def test_an_alert_arrives_as_json_under_its_whole_address(site: Site, scheme: str) -> None:
    path = f"/hook/{SECRET}" + ("?token=a%26b&redirect=yes&x=" if scheme == "http" else "")
    (channel,) = open_channels([f"{scheme}://{site.url}{path}"], private=True)
    for recovered, kind in ((False, "warning"), (True, "success")):
        await channel.send(replace(ALERT, recovered=recovered))
        sent = site.alerts[-1]
        assert (sent["title"], sent["message"], sent["type"]) == ("Letopis: a title", "line 1\nline 2", kind)
        assert site.paths[-1] == path, "the query is the receiver's"
    assert channel.name == ("webhook 127.0.0.1" if scheme == "http" else "JSON")
    assert SECRET not in channel.name + channel.recipient


@pytest.mark.parametrize("address", ["{scheme}://{host}/{secret}", "{scheme}://{host}/{secret}?redirect=yes"])
@pytest.mark.parametrize("scheme", ["http", "json"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 500])
async def test_a_channel_that_refuses_or_redirects_is_an_error_without_its_address(
    site: Site, scheme: str, status: int, address: str
) -> None:
    site.status = status
    url = address.format(scheme=scheme, host=site.url, secret=SECRET)
    (channel,) = open_channels([url], private=True)
    with pytest.raises(AlertFailed) as failed:
        await channel.send(ALERT)

    assert SECRET not in str(failed.value)
    assert [path.partition("?")[0] for path in site.paths] == [f"/{SECRET}"], "once, and to no other place"


WITHOUT_TLS = ("http://127.0.0.1/{0}", "json://127.0.0.1/{0}", "xml://10.0.0.1/{0}", "FORM://example.com/{0}")
NONE = (
    "https://[1::/{0}",
    "https:///{0}",
    "https://a:99999/{0}",
    "https://a:0/{0}",
    "{0}",
    "mailto:{0}",
    "nonsense://{0}",
)


@pytest.mark.parametrize("address", WITHOUT_TLS + NONE)
def test_an_address_that_is_none_or_without_tls_is_refused_without_being_quoted(address: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_channels([address.format(SECRET)])
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None or SECRET not in str(refused.value.__cause__)


async def test_nothing_that_is_logged_on_the_way_holds_a_token(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        (channel,) = open_channels([f"json://user:{SECRET}@{site.url}/{SECRET}"], private=True)
        await channel.send(ALERT)
        site.status = 500
        with pytest.raises(AlertFailed):
            await channel.send(ALERT)

    assert len(site.asked) == 2
    assert SECRET not in caplog.text
    assert SECRET not in repr(vars(channel).get("name")) + channel.recipient


def test_what_is_logged_by_others_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    open_channels(["json://127.0.0.1:9/"], private=True)
    with caplog.at_level(logging.INFO):
        logging.getLogger("apprise").info("the bot's own use of it")
    assert "the bot's own use of it" in caplog.text


def test_one_address_is_one_channel_in_every_process() -> None:
    first, second = open_channels(["https://example.com/a", "https://example.com/a", "https://example.com/b"])
    (again,) = open_channels(["https://example.com/a"])
    assert first.recipient == again.recipient != second.recipient
    assert first.recipient == f"channel:{hashlib.sha256(b'https://example.com/a').hexdigest()[:12]}"


def test_without_apprise_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'letopis\[alerts\]'"):
        open_channels(["https://example.com/"])


def test_apprise_is_imported_only_where_it_is_used() -> None:
    code = "import sys, letopis.outbox.alerting.monitor; sys.exit('apprise' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_come_from_the_command_line_then_the_environment_then_the_file() -> None:
    table = {"channels": ["tgram://file/1"], "private": True, "language": "ru", "texts": "failed", "stuck_after": 60}
    environ = {"LETOPIS_ALERTS": " https://a/ \n mailto://b ", "LETOPIS_ALERTS_PRIVATE": "0", "LETOPIS_LANGUAGE": "EN"}

    assert load_alerts({}, environ={}) == AlertSettings()
    assert load_alerts(table, environ={}) == AlertSettings(
        channels=("tgram://file/1",), private=True, language="ru", style="failed", stuck_after=60.0
    )
    found = load_alerts(table, environ=environ)
    assert (found.channels, found.private, found.language) == (("https://a/", "mailto://b"), False, "en")
    found = load_alerts(table, channels=["https://c/"], private=True, environ=environ)
    assert (found.channels, found.private) == (("https://c/",), True)


def test_channels_may_lie_in_a_file_of_secrets(tmp_path: Path) -> None:
    (tmp_path / "channels").write_text(f"# on call\ntgram://{SECRET}/1\n\nhttps://b/\n", encoding="utf-8")
    expected = (f"tgram://{SECRET}/1", "https://b/")
    found = load_alerts({"channels_file": "channels"}, environ={}, folder=tmp_path)
    assert found.channels == expected
    assert SECRET not in repr(found)
    assert load_alerts({}, environ={"LETOPIS_ALERTS_FILE": str(tmp_path / "channels")}).channels == expected


@pytest.mark.parametrize(
    ("table", "environ", "said"),
    [
        ({"channel": []}, {}, r"did you mean 'channels'\?"),
        ({"channels": "https://a/"}, {}, "channels must be a list"),
        ({"private": "yes"}, {}, "private must be true or false"),
        ({"stuck_after": 0}, {}, "between 1 and 86400"),
        ({"language": "de"}, {}, "one of en, ru"),
        ({"texts": "rude"}, {}, "one of retrying, failed"),
        ({"channels": ["a"], "channels_file": "b"}, {}, "remove one"),
        ({"channels_file": "nowhere"}, {}, "cannot be read"),
        ({}, {"LETOPIS_ALERTS": "a", "LETOPIS_ALERTS_FILE": "b"}, "unset one"),
        ({}, {"LETOPIS_ALERTS_PRIVATE": "perhaps"}, "is 0 or 1"),
    ],
)
def test_wrong_settings_say_what_is_wrong(
    table: dict[str, Any], environ: dict[str, str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_alerts(table, environ=environ, folder=tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_the_command_tries_every_channel(site: Site, letopis: Letopis) -> None:
    Path("letopis.toml").write_text(
        f'outbox = "shop.outbox.db"\n[alerts]\nchannels = ["http://{site.url}/{SECRET}", "json://{site.url}/2"]\n'
        "private = true\n",
        encoding="utf-8",
    )

    assert letopis("alerts", "test")[:2] == (0, "ok   webhook 127.0.0.1\nok   JSON\n")
    assert (site.paths, site.alerts[0]["title"]) == ([f"/{SECRET}", "/2"], "Letopis: test alert")
    assert "shop.outbox.db" in site.alerts[0]["message"]

    site.status = 500
    code, out, err = letopis("alerts", "test", "--json")
    channels = [
        {"name": name, "ok": False, "error": f"{name} did not take the alert [not_delivered]"}
        for name in ("webhook 127.0.0.1", "JSON")
    ]
    assert (code, json.loads(out)) == (1, {"channels": channels})
    assert SECRET not in out + err


def test_the_command_needs_a_channel_and_tls(elsewhere: None, letopis: Letopis, site: Site, tmp_path: Path) -> None:
    none = letopis("alerts", "test")
    plain = letopis("alerts", "test", "--channel", f"http://{site.url}/{SECRET}")
    secure = letopis("alerts", "test", "--channel", f"https://{site.url}/{SECRET}")
    assert none[:2] == (78, "") and "LETOPIS_ALERTS" in none[2]
    assert plain[0] == 78 and "without TLS" in plain[2]
    assert (secure[0], secure[1][:4], site.asked) == (1, "FAIL", [])
    assert SECRET not in "".join(plain[1:] + secure[1:])
    assert list(tmp_path.iterdir()) == [], "and makes nothing"
