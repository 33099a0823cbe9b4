"""The notifier speaks the sd_notify protocol, and sends nothing if nothing listens."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from letopis.outbox.daemon.systemd import Notifier


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def told(ear: socket.socket) -> str:
    return ear.recv(4096).decode()


def test_each_message_arrives_as_the_protocol_spells_it(ear: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready()
    notifier.status("pending 3,\noldest 40 s")
    notifier.alive()
    notifier.stopping()
    said = [told(ear) for _ in range(4)]
    assert said == ["READY=1", "STATUS=pending 3, oldest 40 s", "WATCHDOG=1", "STOPPING=1"]
    notifier.reloading()
    assert re.fullmatch("RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*", told(ear))


def test_an_abstract_address_is_understood() -> None:
    name = f"letopis-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert told(listening) == "READY=1"


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
