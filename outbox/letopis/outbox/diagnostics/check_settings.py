"""Check the configuration, the files that hold its secrets, and the operators' channels."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from letopis.outbox.diagnostics.finding import Finding, fail, ok, skipped, warn
from letopis.store.errors import ConfigurationError

if TYPE_CHECKING:
    from letopis.outbox.config.settings import Settings

SECRET_FILES: Final = ("LETOPIS_STORE_FILE", "LETOPIS_ALERTS_FILE")


def check_settings(found: Settings, environ: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Yield findings about a configuration that was read."""
    environ = os.environ if environ is None else environ
    source = str(found.file) if found.file is not None else "no letopis.toml"
    yield ok("configuration", f"{source}; outbox from {found.outbox_from}, store from {found.store_from}")
    yield _secrets(found, environ)
    yield _alerts(found, environ)


def _secrets(found: Settings, environ: Mapping[str, str]) -> Finding:
    check = "secrets"
    if os.name == "nt":
        return skipped(check, "modes are not checked on this system")
    files = [Path(environ[name]).expanduser() for name in SECRET_FILES if environ.get(name)]
    # letopis.toml only if it may hold a secret itself.
    if found.file is not None and (found.store_from == str(found.file) or found.alerts.get("channels")):
        files.append(found.file)
    loose = [one for one in files if one.is_file() and stat.S_IMODE(one.stat().st_mode) & 0o044]
    if loose:
        said = f"other users of this machine can read {', '.join(repr(str(one)) for one in loose)}"
        return warn(check, said, f"chmod 600 {' '.join(repr(str(one)) for one in loose)}")
    return ok(check, "files with secrets are private" if files else "no file holds a secret")


def _alerts(found: Settings, environ: Mapping[str, str]) -> Finding:
    from letopis.outbox.alerting.channels import open_channels
    from letopis.outbox.config.alerts import load_alerts

    check = "alerts"
    try:
        wanted = load_alerts(
            found.alerts, environ=environ, folder=found.file.parent if found.file is not None else None
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
