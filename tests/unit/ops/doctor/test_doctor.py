"""letopis doctor: one line per check, with what to do; it changes nothing."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.ops.config.settings import load_settings
from letopis.ops.doctor import check_location, check_sqlite, check_store
from letopis.ops.doctor.check_hosts import Host, judge_hosts
from letopis.ops.doctor.check_location import file_system_of
from letopis.ops.doctor.check_sqlite import check_libraries, check_version
from letopis.ops.doctor.doctor import check_settings, examine, healthy
from letopis.ops.doctor.finding import Finding, Severity
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.relay.relay import Relay
from letopis.store.conversation_store import ConversationStore
from letopis.store.database import open_files
from letopis.store.errors import LetopisError
from letopis.store.model.messages import Message
from tests.support.fix_command import append_to
from tests.support.moves import run_sql
from tests.support.platforms import linux_only, posix_only
from tests.support.relays import relay_on
from tests.support.sqlite_rows import change
from tests.support.store_changes import run_there

SECRET = "hunter2-correct-horse"
INCIDENT = (
    "INSERT INTO letopis_outbox_incidents (incident_id, kind, state, escalations, mark, opened_at, revision)"
    " VALUES (zeroblob(16), 'store_down', 'firing', 0, 0, 1, 0)"
)
LOSE = "UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'lost'"
ID = "zeroblob(16)"
REBIND = f"UPDATE letopis_outbox_origin SET store_id = {ID}"
TASK = "INSERT INTO letopis_tasks VALUES (0, 'a', 'rewind', 9, 1, 8, {})"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    """An outbox with one conversation that waits."""
    path = tmp_path / "bot.outbox.db"
    asyncio.run(append_to(path, "a", Message.user("hello"), owner="42"))
    return path


@pytest.fixture
async def store(outbox: Path) -> Path:
    """The store to which the outbox was delivered."""
    path = outbox.with_name("bot.history.db")
    file = await OutboxFile.open(outbox)
    async with ConversationStore.open(path) as store:
        await relay_on(file, store).drain()
    await file.close()
    return path


async def found(outbox: Path, store: str | None = None, **environ: str) -> dict[str, Finding]:
    """What the doctor finds, by check."""
    settings = load_settings(outbox=str(outbox), store=store, environ=environ, folder=outbox.parent)
    return {one.check: one for one in await examine(settings)}


def levels(findings: dict[str, Finding], *checks: str) -> list[Severity]:
    return [findings[check].level for check in checks]


async def test_a_new_outbox_is_well_and_each_check_has_its_line(tmp_path: Path) -> None:
    await (await OutboxFile.open(tmp_path / "bot.outbox.db")).close()
    findings = await found(tmp_path / "bot.outbox.db")

    assert list(findings) == [
        *("configuration", "secrets", "alerts", "sqlite_version", "sqlite_libraries", "open_files", "outbox_file"),
        *("outbox_folder", "file_system"),
        *("disk", "wal", "outbox_migrations", "outbox_copy", "outbox_structure", "outbox_content", "relay", "stuck"),
        *("local_clock", "store"),
    ]
    assert healthy(findings.values()), findings
    assert findings["store"].level == Severity.SKIP
    assert all(one.hint for one in findings.values() if one.level in (Severity.WARN, Severity.FAIL))


class TestOutbox:
    """The file and what is in it."""

    async def test_a_missing_one_is_not_made(self, tmp_path: Path) -> None:
        findings = await found(tmp_path / "bot.outbox.db")
        assert findings["outbox_file"].level == Severity.FAIL
        assert "letopis init" in findings["outbox_file"].hint
        assert list(tmp_path.iterdir()) == []
        assert "no regular file" in (await found(tmp_path))["outbox_file"].said

    @posix_only("on Windows the rights of the folder apply")
    @pytest.mark.parametrize(("mode", "expected"), [(0o777, Severity.FAIL), (0o1777, Severity.WARN)])
    async def test_what_others_may_read_or_replace(self, outbox: Path, mode: int, expected: Severity) -> None:
        outbox.chmod(0o644)
        outbox.parent.chmod(mode)
        try:
            findings = await found(outbox)
        finally:
            outbox.parent.chmod(0o700)

        assert levels(findings, "outbox_file", "outbox_folder") == [Severity.WARN, expected]
        assert findings["outbox_file"].hint == "chmod 600 'bot.outbox.db'"

    async def test_a_strangers_database_is_left_as_it_is(self, tmp_path: Path) -> None:
        """Neither its journal mode nor a byte of it."""
        path = tmp_path / "strange.db"
        change(path, "CREATE TABLE t (a)")
        before = {one: one.read_bytes() for one in tmp_path.iterdir()}
        findings = await found(path, store=str(path))
        assert levels(findings, "outbox_migrations", "store_migrations") == [Severity.FAIL, Severity.FAIL]
        assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before

    @pytest.mark.parametrize(
        ("statement", "check", "expected", "told"),
        [
            ("UPDATE letopis_outbox_version SET version_num = '0000'", "outbox_migrations", Severity.WARN, ""),
            ("UPDATE letopis_outbox_version SET version_num = '9999'", "outbox_migrations", Severity.FAIL, ""),
            ("UPDATE letopis_outbox_origin SET inode = '1'", "outbox_copy", Severity.WARN, "--new-origin"),
            ("DELETE FROM letopis_outbox_origin", "outbox_copy", Severity.SKIP, "never opened by a bot"),
            ("UPDATE letopis_outbox_events SET appended_at = 1 << 52", "local_clock", Severity.WARN, ""),
            ("UPDATE letopis_outbox_lanes SET state = 'odd'", "outbox_structure", Severity.FAIL, "is damaged"),
            ("UPDATE letopis_outbox_lanes SET state = 'blocked'", "stuck", Severity.FAIL, "then retry"),
            (LOSE, "stuck", Severity.FAIL, "skip --missing"),
            (INCIDENT, "stuck", Severity.WARN, "open incidents: 1"),
        ],
    )
    async def test_what_the_file_says(
        self, outbox: Path, statement: str, check: str, expected: Severity, told: str
    ) -> None:
        change(outbox, "PRAGMA ignore_check_constraints = ON", statement)
        finding = (await found(outbox))[check]
        assert (finding.level, told in finding.said + finding.hint) == (expected, True), finding

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE letopis_outbox_events SET data = replace(data, 'hello', 'jello')",
            "DELETE FROM letopis_outbox_events WHERE sequence = 1",
        ],
        ids=["changed", "missing"],
    )
    async def test_events_that_are_not_what_was_appended(self, outbox: Path, damage: str) -> None:
        assert (await found(outbox))["outbox_content"].level == Severity.OK
        change(outbox, damage)
        findings = await found(outbox)
        assert levels(findings, "outbox_content", "outbox_structure") == [Severity.FAIL, Severity.OK]


@asynccontextmanager
async def held(outbox: Path) -> AsyncIterator[Relay]:
    """A relay that has the lease of an outbox."""
    file = await OutboxFile.open(outbox)
    async with ConversationStore.open(outbox.parent / "bot.history.db") as store:
        relay = relay_on(file, store, holder="here")
        await relay.lease.acquire()
        yield relay
        await relay.lease.release()
    await file.close()


class TestRelay:
    """Who delivers."""

    @linux_only("whether a process lives is read from /proc")
    async def test_one_that_was_killed_is_known_at_once(self, outbox: Path) -> None:
        """Its heartbeat looks fresh for half a minute."""
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        async with held(outbox) as relay:
            change(outbox, f"UPDATE letopis_outbox_relay SET pid = {dead.pid}")
            before = await found(outbox)
            relay.lease.unlock()  # as the system does when a process ends
            findings = await found(outbox)
            change(outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
            idle = await found(outbox)

        assert [one["relay"].level for one in (before, findings, idle)] == [Severity.OK, Severity.FAIL, Severity.WARN]
        assert "here (pid" in before["relay"].said and "died" in findings["relay"].said

    @pytest.mark.parametrize(
        ("reason", "expected"), [("misconfigured 42501", Severity.FAIL), ("unavailable refused", Severity.WARN)]
    )
    async def test_one_that_cannot_deliver(self, outbox: Path, reason: str, expected: Severity) -> None:
        async with held(outbox):
            change(outbox, f"UPDATE letopis_outbox_relay SET breaker = 'open', breaker_reason = '{reason}'")
            findings = await found(outbox)
            change(outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked'")
            with_blocked = await found(outbox)
        assert (findings["delivery"].level, reason in findings["delivery"].said) == (expected, True)
        assert (with_blocked["delivery"], with_blocked["stuck"].level) == (findings["delivery"], Severity.FAIL)

    async def test_one_that_is_held_back(self, outbox: Path) -> None:
        file = await OutboxFile.open(outbox)
        await OutboxAdmin(file).pause_relay()
        await file.close()
        findings = await found(outbox)
        assert findings["relay"].level == Severity.WARN
        assert "letopis resume" in findings["relay"].hint


class TestStore:
    """The other end."""

    @pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
    async def test_one_that_is_well_is_written_and_left_as_it_was(
        self, outbox: Path, kind: str, new_store_url: Callable[[str], str]
    ) -> None:
        url = new_store_url(kind)
        async with ConversationStore.open(url, migrate=True):
            pass
        before = contents_of_tables(outbox)
        findings = await found(outbox, store=url)

        assert contents_of_tables(outbox) == before
        checks = ("store", "store_migrations", "store_origin", "store_writable")
        assert levels(findings, *checks) == [Severity.OK] * 4, findings
        assert findings["store_clock"].level == (Severity.SKIP if kind == "sqlite" else Severity.OK)
        assert await run_sql(url, "SELECT count(*) FROM letopis_origins") == [(0,)]

    async def test_one_without_tables(self, outbox: Path, fresh_postgresql_url: str) -> None:
        findings = await found(outbox, store=fresh_postgresql_url)
        assert levels(findings, "store", "store_migrations") == [Severity.OK, Severity.FAIL]
        assert "letopis db upgrade" in findings["store_migrations"].said
        url = sa.engine.make_url(fresh_postgresql_url).set(database="letopis_none")
        findings = await found(outbox, store=url.render_as_string(hide_password=False))
        assert "change what it names" in findings["store"].hint

    async def test_one_that_may_only_be_read(self, outbox: Path, fresh_postgresql_url: str) -> None:
        async with ConversationStore.open(fresh_postgresql_url, migrate=True):
            pass
        name = sa.engine.make_url(fresh_postgresql_url).database
        await run_there(fresh_postgresql_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        findings = await found(outbox, store=fresh_postgresql_url)

        assert levels(findings, "store", "store_writable") == [Severity.OK, Severity.FAIL]

    async def test_one_that_is_away_and_no_secret_in_what_is_said(self, outbox: Path) -> None:
        url = f"postgresql://bot:{SECRET}@127.0.0.1:1/h"
        for store in (f"{url}?password={SECRET}", url):
            findings = await found(outbox, store=store)
            assert findings["store"].level == Severity.FAIL
            assert SECRET not in repr(findings)
        assert "bot:***@127.0.0.1" in findings["store"].said

    @pytest.mark.parametrize(
        ("store", "bound", "check", "told"),
        [
            ("none/store.db", ID, "store", "its folder does not exist"),
            ("store.db", ID, "store", "letopis outbox rebind"),
            ("store.db", "NULL", "store_identity", "the bot named elsewhere as its history store"),
            ("postgresql://bot@127.0.0.1:1,127.0.0.1:2/h", ID, "store_hosts", "no host is a primary"),
            ("postgresql://bot@/h?host=/none/a&host=/none/b", ID, "store_hosts", "no host is a primary"),
        ],
    )
    async def test_one_that_is_not_there(self, outbox: Path, store: str, bound: str, check: str, told: str) -> None:
        change(outbox, f"UPDATE letopis_outbox_origin SET store_id = {bound}, destination = 'elsewhere'")
        finding = (await found(outbox, store=store if "://" in store else str(outbox.parent / store)))[check]
        assert (healthy([finding]), told in finding.said + finding.hint) == (check == "store_hosts", True), finding

    @pytest.mark.parametrize(
        ("statement", "check", "expected", "told"),
        [
            ("UPDATE letopis_outbox_lanes SET state = state", "store_origin", Severity.OK, "known at epoch 1"),
            ("UPDATE letopis_origins SET epoch = 7", "store_origin", Severity.FAIL, "epoch 7"),
            ("DELETE FROM letopis_outbox_origin", "store_identity", Severity.OK, "the outbox is not bound"),
            (REBIND, "store_identity", Severity.FAIL, "is bound to 00000000"),
            ("UPDATE letopis_store SET moved_to = 'db'", "store_identity", Severity.FAIL, "was moved away, to db"),
            ("DELETE FROM letopis_events WHERE version = 1", "store_log", Severity.FAIL, "lacks 1 events"),
            ("UPDATE letopis_outbox_lanes SET head = head", "store_heads", Severity.OK, "1 conversations are as far"),
            ("UPDATE letopis_lanes SET sequence = 1", "store_heads", Severity.FAIL, "lacks delivered events of 1 of 1"),
            (TASK.format(1), "store_tasks", Severity.WARN, "7 rows left"),
            (TASK.format(1 << 52), "store_tasks", Severity.OK, "7 rows left"),
        ],
    )
    async def test_what_its_tables_say(
        self, outbox: Path, store: Path, statement: str, check: str, expected: Severity, told: str
    ) -> None:
        change(outbox if "letopis_outbox_" in statement else store, statement)
        findings = await found(outbox)
        assert (findings[check].level, told in findings[check].said) == (expected, True), findings[check]
        assert ("store_log" in findings) == healthy([findings["store_identity"]]), "a wrong one is not looked at"


HERE, THERE, PRIMARY = (frozenset({f"10.0.0.{number}"}) for number in (2, 3, 1))
TWO = (("10.0.0.2", "sync"), ("10.0.0.3", "async"))
GALERA = Host(detail="Galera Primary Synced", synchronous=True)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (
            {"p": (Host(standbys=TWO), PRIMARY), "a": (Host(standby=True), HERE), "b": (Host(standby=True), THERE)},
            [
                (Severity.OK, "p, primary"),
                (Severity.OK, "a, standby, synchronous"),
                (Severity.WARN, "b, standby, asynchronous"),
            ],
        ),
        *(
            ({"p": (Host(names="*", standbys=standbys), PRIMARY), "s": (Host(standby=True), HERE)}, [(level, said)])
            for standbys, level, said in (
                # The only standby is that of the only connection.
                ((("127.0.0.1", "quorum"),), Severity.OK, "s, standby, synchronous"),
                ((("127.0.0.1", "potential"),), Severity.WARN, "s, standby, asynchronous"),
                ((), Severity.WARN, "s, standby, asynchronous"),
                ((("", ""),), Severity.OK, "not to be seen here"),
                ((("127.0.0.1", "sync"), ("127.0.0.2", "async")), Severity.OK, "not to be seen here"),
            )
        ),
        (
            {"p": (Host(), PRIMARY), "s": (Host(fault="it is gone"), HERE)},
            [(Severity.WARN, "not reachable: it is gone")],
        ),
        ({"a": (Host(standby=True), HERE), "b": (Host(fault="x"), THERE)}, [(Severity.WARN, "no host is a primary")]),
        ({"n": (GALERA, HERE), "m": (Host(), THERE)}, [(Severity.OK, "n, primary, Galera Primary Synced")]),
    ],
)
def test_each_host_of_a_url_is_judged(
    hosts: dict[str, tuple[Host, frozenset[str]]], expected: list[tuple[Severity, str]]
) -> None:
    findings = judge_hosts(hosts)
    assert {finding.check for finding in findings} == {"store_hosts"}
    for level, said in expected:
        assert [one.level for one in findings if said in one.said] == [level], findings


def settings_of(folder: Path, environ: dict[str, str], *installed: str) -> dict[str, Finding]:
    """What the doctor finds in the settings, where these packages are installed."""
    settings = load_settings(environ=environ, folder=folder)
    findings = check_settings(settings, environ, installed=lambda name: name if name in installed else None)
    return {one.check: one for one in findings}


class TestMachine:
    """What does not depend on the file."""

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            *((one, Severity.OK) for one in ((3, 6, 23), (3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 53, 0))),
            *((one, Severity.WARN) for one in ((3, 7, 0), (3, 44, 5), (3, 45, 9), (3, 46, 1), (3, 50, 6), (3, 51, 2))),
        ],
    )
    def test_versions_of_sqlite_that_may_damage_a_wal(self, version: tuple[int, int, int], expected: Severity) -> None:
        assert check_version(version).level is expected

    def test_a_second_sqlite(self) -> None:
        one = check_libraries(lambda name: name if name == "pysqlite3" else None)
        assert (one.level, "pysqlite3 bundles" in one.said, bool(one.hint)) == (Severity.WARN, True, True)
        assert check_libraries(lambda _: None).level is Severity.OK

    def test_the_file_system_is_the_nearest_mount(self, tmp_path: Path) -> None:
        mounts = tmp_path / "mountinfo"
        folder = tmp_path / "a b" / "c"
        folder.mkdir(parents=True)
        real = os.path.realpath(tmp_path)
        mounts.write_text(
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
            f"2 1 0:2 / {real}/a\\040b rw,relatime shared:1 - nfs4 server:/x rw\n"
            f"3 1 0:3 / {real}/other rw - tmpfs tmpfs rw\n"
            "nonsense\n"
        )

        assert file_system_of(folder / "bot.outbox.db", mounts) == "nfs4"
        assert file_system_of(tmp_path / "bot.outbox.db", mounts) == "ext4"
        assert file_system_of(tmp_path, tmp_path / "none") is None

    @posix_only("on Windows the rights of the folder apply")
    @pytest.mark.parametrize(
        ("patch", "check", "expected", "said"),
        [
            ((open_files, "open_file_limit", lambda: None), "open_files", Severity.OK, "not limited"),
            ((os, "access", lambda path, _: Path(path).is_dir()), "outbox_file", Severity.FAIL, "this user cannot"),
            ((os, "access", lambda path, _: Path(path).is_file()), "outbox_folder", Severity.FAIL, "this user cannot"),
            ((check_location, "file_system_of", lambda _: None), "file_system", Severity.SKIP, "not known"),
            ((check_location, "file_system_of", lambda _: "nfs4"), "file_system", Severity.FAIL, "lies on nfs4"),
            ((check_location, "file_system_of", lambda _: "tmpfs"), "file_system", Severity.WARN, "lies on tmpfs"),
            ((shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20)), "disk", Severity.FAIL, "only 1 MiB"),
            ((shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28)), "disk", Severity.WARN, "only 256 MiB"),
            ((check_location, "LARGE_WAL_BYTES", 2000), "wal", Severity.WARN, "has grown to 3 KiB"),
            ((check_sqlite, "MAX_CHECKED_BYTES", 1), "outbox_structure", Severity.SKIP, "too large to check"),
            ((check_store, "_NOW", {"sqlite": "SELECT 0"}), "store_clock", Severity.WARN, "s apart"),
        ],
    )
    @pytest.mark.usefixtures("store")
    async def test_what_the_system_answers(
        self, outbox: Path, patch: Any, check: str, expected: Severity, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wal = outbox.with_name("bot.outbox.db-wal")
        wal.write_bytes(bytes(3000))
        wal.chmod(0o600)
        monkeypatch.setattr(*patch)
        finding = (await found(outbox))[check]
        assert (finding.level, said in finding.said) == (expected, True), finding

    @posix_only("Windows has no file modes")
    def test_files_with_secrets_that_others_may_read(self, tmp_path: Path) -> None:
        secret = tmp_path / "store"
        secret.write_text("sqlite:///x.db")
        for mode, expected, hint in ((0o644, Severity.WARN, f"chmod 600 '{secret}'"), (0o600, Severity.OK, "")):
            secret.chmod(mode)
            found = settings_of(tmp_path, {"LETOPIS_STORE_FILE": str(secret)})["secrets"]
            assert (found.level, found.hint) == (expected, hint)
        file = tmp_path / "letopis.toml"
        file.write_text("store = 'sqlite:///x.db'", encoding="utf-8")
        file.chmod(0o644)
        assert settings_of(tmp_path, {})["secrets"].level == Severity.WARN

    def test_channels_of_alerts_and_what_rules_for_checkpoints_need(self, tmp_path: Path) -> None:
        for name, value, expected in (
            ("", "", Severity.WARN),
            ("LETOPIS_ALERTS", "https://example.com/hook", Severity.OK),
            ("LETOPIS_LANGUAGE", "tlh", Severity.FAIL),
        ):
            assert settings_of(tmp_path, {name: value})["alerts"].level == expected
        file = tmp_path / "letopis.toml"
        file.write_text("[retention.content]\nmax_age_days = 3", encoding="utf-8")
        assert "retention" not in settings_of(tmp_path, {})
        file.write_text("[[retention.content.rules]]\ntag = 'x'\ncheckpoints_last = 3", encoding="utf-8")
        found = settings_of(tmp_path, {})["retention"]
        assert found.level == Severity.WARN
        assert "pip install 'letopis[langgraph]'" in found.hint
        assert settings_of(tmp_path, {}, "langgraph")["retention"].level == Severity.OK


async def test_a_file_that_makes_sqlite_say_what_is_no_text_is_damaged_and_no_surprise(outbox: Path) -> None:
    """SQLite quotes the broken name of a table in its error, and Python cannot decode that."""
    broken = "name = CAST(x'61eb' AS TEXT), sql = CAST(x'43eb' AS TEXT) WHERE name = 'letopis_outbox_lanes'"
    change(outbox, "PRAGMA writable_schema = ON", f"UPDATE sqlite_master SET {broken}")

    assert not healthy((await found(outbox)).values())
    with pytest.raises(LetopisError):
        await OutboxFile.open(outbox)


def contents_of_tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


class TestCommand:
    """As an operator runs it."""

    @pytest.fixture
    def doctor(self, elsewhere: None, letopis: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
        return lambda *words: letopis("doctor", *words)[:2]

    def test_a_failure_exits_with_1_and_names_what_to_do(self, outbox: Path, doctor: Any) -> None:
        code, told = doctor()
        printed = json.loads(doctor("--json")[1])

        assert code == 1
        [line] = [one for one in told.splitlines() if one.startswith("fail")]
        assert line.split()[:2] == ["fail", "relay"]
        assert "letopis relay" in line.partition(" -> ")[2], "events wait and nobody delivers"
        assert (printed["outbox"], printed["healthy"]) == ("bot.outbox.db", False)
        assert set(printed["checks"][0]) == {"check", "level", "said", "hint"}
        assert len(printed["checks"]) == len(told.splitlines())
        change(outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
        code, told = doctor()
        assert (code, "warn" in told) == (0, True), told

    def test_a_configuration_that_cannot_be_read_is_a_finding(self, doctor: Any, tmp_path: Path) -> None:
        (tmp_path / "letopis.toml").write_text(f'stor = "postgresql://bot:{SECRET}@h/d"\n')
        code, told = doctor()
        assert code == 1 and told.startswith("fail  configuration")
        assert "did you mean 'store'" in told and SECRET not in told
