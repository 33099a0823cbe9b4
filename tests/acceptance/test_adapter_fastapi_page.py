"""The chat page of the guide to FastAPI, in Chromium: reloaded, and its service stopped, in the middle of an answer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of the group adapters")
pytest.importorskip("openai", reason="needs openai: pip install 'letopis[openai-agents]'")

from tests.support.fake_openai import fake_openai, pieces_of
from tests.support.paths import ROOT
from tests.support.servers.processes import free_port

COUNT = 20
PATIENCE_MILLISECONDS = 30_000
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def served(folder: Path, port: int, model: str) -> Iterator[None]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "fastapi_page:app", "--port", str(port), "--log-level", "info"),
            *("--timeout-graceful-shutdown", "1", "--app-dir", str(ROOT / "docs" / "examples")),
        ],
        env=os.environ | {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": model},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert any("Uvicorn running" in line for line in process.stderr)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_read_that_comes_late_does_not_wipe_what_was_sent_meanwhile(tmp_path: Path, browser: Any) -> None:
    port = free_port()
    tea = pieces_of("tea", COUNT)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    first_read: list[tuple[Any, Any]] = []

    def hold_first_read(route: Any) -> None:
        first_read.append((route, route.fetch()))

    page.route("**/chats/tea", hold_first_read, times=1)
    with fake_openai(COUNT) as fake:
        fake.second_half.clear()
        with served(tmp_path, port, fake.url):
            page.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
            page.wait_for_function("document.querySelector('form')")
            while not first_read:
                page.wait_for_timeout(10)
            page.get_by_label("Message").fill("tea")
            page.get_by_role("button").click()
            page.get_by_text(tea[COUNT // 2 - 1].strip()).wait_for()
            [(route, response)] = first_read
            with page.expect_event("requestfinished"):
                route.fulfill(response=response)
            page.evaluate("fetch('/favicon.ico').then(() => new Promise(requestAnimationFrame))")
            assert page.locator("p").all_inner_texts() == ["tea", "".join(tea[: COUNT // 2]).strip()]
            fake.second_half.set()
    page.close()


def test_a_page_that_is_reloaded_shows_the_answer_as_it_is_written(tmp_path: Path, browser: Any) -> None:
    port = free_port()
    tea, rain = (pieces_of(question, COUNT) for question in ("tea", "rain"))
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    answers = page.locator("p.assistant")
    with fake_openai(COUNT) as fake:
        fake.second_half.clear()
        with served(tmp_path, port, fake.url):
            page.goto(f"http://127.0.0.1:{port}/")
            page.get_by_label("Message").fill("tea")
            page.get_by_role("button").click()
            page.get_by_text(tea[COUNT // 2 - 1].strip()).wait_for()

            page.reload()
            page.get_by_text(tea[COUNT // 2 - 1].strip()).wait_for()
            assert page.locator("p").all_inner_texts() == ["tea", "".join(tea[: COUNT // 2]).strip()]
            fake.second_half.set()
            page.locator("p.assistant > span").wait_for()  # as the history has it
            assert answers.all_inner_texts() == ["".join(tea).strip()]
            page.reload()
            answers.wait_for()
            assert answers.all_inner_texts() == ["".join(tea).strip()]

            fake.second_half.clear()
            page.get_by_label("Message").fill("rain")
            page.get_by_role("button").click()
            page.get_by_text(rain[COUNT // 2 - 1].strip()).wait_for()
        with served(tmp_path, port, fake.url):
            page.reload()
            page.get_by_text("(interrupted)").wait_for()
            assert answers.all_inner_texts() == ["".join(tea).strip(), "".join(rain[: COUNT // 2]) + "(interrupted)"]
            fake.second_half.set()
    assert fake.asked == ["tea", "rain"]
    page.close()
