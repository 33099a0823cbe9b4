"""Make many outbox files, and measure a daemon that serves them, by what the system says of its process."""

import asyncio
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from letopis.outbox.file.identity import assign_new_identity
from letopis.outbox.file.outbox_file import OutboxFile
from tests.support.relays import say

EVENTS_PER_FILE = 13  # one that starts the conversation, and its messages


async def make_fleet(folder: Path, files: int, *, messages: int = EVENTS_PER_FILE - 1) -> list[Path]:
    """Make outbox files, each with one conversation of its own with pending events; no process has them open."""
    template = folder / "template"
    await (await OutboxFile.open(template)).close()
    paths = []
    for number in range(files):
        path = folder / f"bot-{number:05}.outbox.db"
        shutil.copyfile(template, path)
        path.chmod(0o600)
        outbox = await OutboxFile.open(path)

        def renew(connection: object, path: Path = path, outbox: OutboxFile = outbox) -> None:
            assign_new_identity(connection, path, now_us=outbox.now_us())  # type: ignore[arg-type]

        await outbox.write(renew)
        await say(outbox, f"chat-{number:05}", messages)
        await outbox.close()
        paths.append(path)
    template.unlink()
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """What Linux says of a process."""

    rss_mb: float
    threads: int
    descriptors: int
    cpu_seconds: float
    outbox_descriptors: int
    open_files: int


def figures_of(pid: int) -> ProcessFigures:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    targets = []
    for one in os.scandir(f"/proc/{pid}/fd"):
        try:
            targets.append(str(Path(one.path).readlink()))
        except OSError:
            continue  # closed meanwhile
    outbox = [one for one in targets if ".outbox.db" in one]
    return ProcessFigures(
        rss_mb=int(fields["VmRSS"].split()[0]) / 1024,
        threads=int(fields["Threads"]),
        descriptors=len(targets),
        cpu_seconds=(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
        outbox_descriptors=len(outbox),
        open_files=len({one for one in outbox if one.endswith(".outbox.db")}),
    )


async def cpu_share(pid: int, seconds: float) -> float:
    began, before = time.monotonic(), figures_of(pid).cpu_seconds
    await asyncio.sleep(seconds)
    return (figures_of(pid).cpu_seconds - before) / (time.monotonic() - began)
