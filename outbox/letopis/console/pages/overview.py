"""The overview: the outbox's state, its throughput and its store; updates live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from letopis.console.activity import Reading
from letopis.console.charts import chart
from letopis.console.pages.answers import action, page
from letopis.console.rendering import render
from letopis.console.verdict import verdict
from letopis.console.visit import Fields, Visit, field
from letopis.store.errors import LetopisError

TICK_SECONDS: Final = 2.0
MAX_STREAM_SECONDS: Final = 25.0
"""The longest life of a stream; the page then opens another one. The relay's server allows a connection 30 seconds."""
MAX_STREAMS: Final = 20
_streams = 0


@page
async def overview(visit: Visit) -> Response:
    """Show status, throughput, store and relay."""
    reading = await visit.state.pulse.read()
    return visit.render(
        "overview.html",
        **shown(visit, reading),
        live=visit.query("live") != "off",
        done=visit.language and visit.query("done"),
        count=visit.whole("count", most=10**9) or 0,
    )


@page
async def live(visit: Visit) -> Response:
    """Stream the changing part of the overview as server-sent events."""
    if _streams >= MAX_STREAMS:
        return Response("too many pages follow live\n", status_code=503, headers={"retry-after": "10"})
    return StreamingResponse(_follow(visit), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@action
async def pause_relay(visit: Visit, fields: Fields) -> Response:
    """Pause delivery."""
    reason = field(fields, "reason").strip() or None
    await visit.act(lambda admin: admin.pause_relay(reason=reason))
    return visit.see("", done="pause_relay")


@action
async def resume_relay(visit: Visit, fields: Fields) -> Response:
    """Resume delivery."""
    done = await visit.act(lambda admin: admin.resume_relay())
    return visit.see("", done="resume_relay" if done else "nothing")


def shown(visit: Visit, reading: Reading) -> dict[str, Any]:
    """Return the data of the overview's changing part."""
    activity = reading.activity
    labels = [f"{edge:%H:%M}" for edge in activity.edges[:-1]]
    saved = activity.saved if activity.saved is not None else (0,) * len(labels)
    return {
        "reading": reading,
        "status": reading.status,
        "verdict": verdict(reading.status, visit.language),
        "chart": chart(labels, saved, activity.appended),
        "appended": activity.appended,
        "saved_known": activity.saved is not None,
        "saved_total": sum(saved),
        "appended_total": sum(activity.appended),
    }


async def _follow(visit: Visit) -> AsyncIterator[str]:
    global _streams  # one number of this process
    _streams += 1
    ends_at = time.monotonic() + MAX_STREAM_SECONDS
    try:
        yield "retry: 1000\n\n"
        last = ""
        while time.monotonic() < ends_at and visit.may_read:
            text = await _fragment(visit)
            yield _event(text) if text != last else ": nothing new\n\n"
            last = text
            await asyncio.sleep(TICK_SECONDS)
    finally:
        _streams -= 1


async def _fragment(visit: Visit) -> str:
    try:
        return render("_live.html", visit, shown(visit, await visit.state.pulse.read()))
    except LetopisError as error:
        return render("_live_problem.html", visit, {"detail": str(error)})


def _event(text: str) -> str:
    return "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
