"""The notifier speaks the sd_notify protocol, and sends nothing if nothing listens."""

import os
import re
import socket
from pathlib import Path

import pytest

from letopis.ops.daemon.systemd import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_each_message_arrives_as_the_protocol_spells_it(tmp_path: Path, abstract: bool) -> None:
    name = f"letopis-notify-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}" if abstract else name)
        listening.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        notifier.ready()
        notifier.status("pending 3,\noldest 40 s")
        notifier.alive()
        notifier.stopping()
        notifier.reloading()
        *said, reloading = [listening.recv(4096).decode() for _ in range(5)]
    assert said == ["READY=1", "STATUS=pending 3, oldest 40 s", "WATCHDOG=1", "STOPPING=1"]
    assert re.fullmatch("RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*", reloading)


def test_the_watchdog_is_fed_at_half_its_time_and_only_by_the_process_it_watches() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_interval == 15.0
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_interval == 15.0
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_interval is None
    assert Notifier({}).watchdog_interval is None


def test_without_a_listener_nothing_is_said_and_nothing_is_raised(tmp_path: Path) -> None:
    silent = Notifier({})
    silent.ready()
    assert not silent.listening
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    gone.ready()
    assert gone.listening
