"""The integrity page: identities, log heads and checks of outbox and history store."""

from __future__ import annotations

from starlette.responses import Response

from letopis.console.pages.answers import action, page
from letopis.console.verification import SUBJECTS, Subject
from letopis.console.visit import Fields, Visit, field
from letopis.store.errors import InvalidInput


@page
async def integrity(visit: Visit) -> Response:
    """Show the identities, the end of the log, and the last checks."""
    return visit.render(
        "integrity.html",
        status=await visit.state.history.status(),
        heads=await visit.state.insight.heads(),
        checks=visit.state.verifier.checks,
        subjects=SUBJECTS,
        done=visit.query("done"),
        count=0,
    )


@action
async def verify(visit: Visit, fields: Fields) -> Response:
    """Start a check."""
    subjects: dict[str, Subject] = {one: one for one in SUBJECTS}
    subject = subjects.get(field(fields, "subject"))
    if subject is None:
        raise InvalidInput("subject", f"must be one of {', '.join(SUBJECTS)}")
    started = visit.state.verifier.start(subject)
    await visit.act(lambda admin: admin.record("verify", outcome="done", reason=subject, conversations=0))
    return visit.see("integrity", done="verify" if started else "nothing")
