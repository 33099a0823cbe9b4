"""Run every check of an installation, and check its configuration; suggest fixes."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from letopis.ops.config.settings import Settings
from letopis.ops.doctor.check_location import check_location, check_open_files
from letopis.ops.doctor.check_sqlite import check_libraries, check_outbox, check_version
from letopis.ops.doctor.check_store import check_store
from letopis.ops.doctor.finding import Finding, Severity, fail, ok, skipped, warn
from letopis.ops.verify import read_reference
from letopis.outbox.file.inspection import store_beside
from letopis.outbox.relay.content_retention import MISSING_ADAPTER
from letopis.store.errors import ConfigurationError, LetopisError

MAX_COMPARED_CONVERSATIONS: Final = 10_000  # Conversations, those begun last, whose delivery is compared with the store


async def examine(config: Settings) -> list[Finding]:
    """Run every check and return its findings, in reading order."""
    findings = _guarded("configuration", lambda: check_settings(config))
    findings += [check_version(), check_libraries(), check_open_files()]
    located = await asyncio.to_thread(_guarded, "outbox_file", lambda: check_location(config.outbox))
    findings += located
    reference = None
    if config.outbox.is_file():
        findings += await asyncio.to_thread(_guarded, "outbox_migrations", lambda: check_outbox(config.outbox))
        # None is reported already, by the checks of the file.
        reference = await asyncio.to_thread(
            read_reference, config.outbox, newest=MAX_COMPARED_CONVERSATIONS, events=False
        )
    store = config.store if config.store is not None else store_beside(config.outbox)
    try:
        return findings + [finding async for finding in check_store(store, reference)]
    except Exception as error:  # a check that breaks must not hide what the others found
        return [*findings, _broken("store", error)]


def healthy(findings: Iterable[Finding]) -> bool:
    """Return True if no check failed; warnings are not failures."""
    return all(finding.level is not Severity.FAIL for finding in findings)


def _guarded(check: str, run: Callable[[], Iterable[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(run())
    except Exception as error:  # a check that breaks must not hide what the others found
        findings.append(_broken(check, error))
    return findings


def _broken(check: str, error: Exception) -> Finding:
    # Only the type of an error that is not ours: its text may quote a URL or data.
    said = str(error) if isinstance(error, LetopisError) else f"this could not be checked ({type(error).__name__})"
    return fail(check, said, "check that this user may read the file and its folder")


SECRET_FILES: Final = ("LETOPIS_STORE_FILE", "LETOPIS_ALERTS_FILE")


def check_settings(
    config: Settings,
    environ: Mapping[str, str] | None = None,
    *,
    installed: Callable[[str], object] = find_spec,
) -> Iterator[Finding]:
    environ = os.environ if environ is None else environ
    source = str(config.file) if config.file is not None else "no letopis.toml"
    yield ok("configuration", f"{source}; outbox from {config.outbox_from}, store from {config.store_from}")
    yield _secrets(config, environ)
    yield _alerts(config, environ)
    content = config.retention.content
    if content is not None and content.limits_checkpoints:
        if installed("langgraph") is None:
            yield warn(
                "retention", "checkpoints stay: langgraph is not installed here", f"{MISSING_ADAPTER}; or drop the rule"
            )
        else:
            yield ok("retention", "langgraph is installed, checkpoints leave by the rules")


def _secrets(config: Settings, environ: Mapping[str, str]) -> Finding:
    check = "secrets"
    if os.name == "nt":
        return skipped(check, "modes are not checked on this system")
    files = [Path(environ[name]).expanduser() for name in SECRET_FILES if environ.get(name)]
    # letopis.toml only if it may hold a secret itself.
    if config.file is not None and (config.store_from == str(config.file) or config.alerts.get("channels")):
        files.append(config.file)
    loose = [path for path in files if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o044]
    if loose:
        said = f"other users of this machine can read {', '.join(repr(str(path)) for path in loose)}"
        return warn(check, said, f"chmod 600 {' '.join(repr(str(path)) for path in loose)}")
    return ok(check, "files with secrets are private" if files else "no file holds a secret")


def _alerts(config: Settings, environ: Mapping[str, str]) -> Finding:
    from letopis.ops.config.settings import load_alerts
    from letopis.outbox.alerting.channels import open_channels

    check = "alerts"
    try:
        wanted = load_alerts(
            config.alerts, environ=environ, folder=config.file.parent if config.file is not None else None
        )
        opened = open_channels(wanted.channels, private=wanted.private)
    except ConfigurationError as error:
        return fail(check, str(error), "correct the channels of alerts")
    if not opened:
        return warn(
            check,
            "no operator is alerted of stuck events",
            "set LETOPIS_ALERTS, or channels in [alerts] of letopis.toml; then `letopis alerts test`",
        )
    return ok(check, f"{len(opened)} channel{'' if len(opened) == 1 else 's'}; `letopis alerts test` tests them")
