"""Sign in and out."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from letopis.console.access import is_same_origin
from letopis.console.forms import FormRefused, read_form
from letopis.console.pages.answers import action, problem
from letopis.console.visit import Fields, Visit, field

logger = logging.getLogger("letopis.console")

WRONG_TOKEN_DELAY_SECONDS: Final = 0.5


async def sign_in_form(request: Request) -> Response:
    """Show the form."""
    visit = Visit(request)
    if visit.state.gate.closed:
        return visit.render("refused.html", code=200 if visit.may_read else 403)
    return visit.render("sign_in.html", next_page=_inside(visit.query("next") or ""), wrong=False)


async def sign_in(request: Request) -> Response:
    """Start a session, if the token is right."""
    visit = Visit(request)
    _ = visit.language.gettext
    if not is_same_origin(request.headers):
        logger.warning("a form of another site was refused")
        return problem(visit, 403, _("This form was sent by another site, and nothing was done."))
    if visit.state.gate.closed:
        return visit.render("refused.html", code=403)
    if visit.state.gate.throttled:
        return problem(visit, 429, _("Too many wrong tokens: wait a minute."))
    try:
        fields = await read_form(request)
    except FormRefused:
        return problem(visit, 400, _("The form cannot be read, and nothing was done."))
    page = _inside(field(fields, "next"))
    cookie = visit.state.gate.sign_in(field(fields, "token").strip(), field(fields, "name"))
    if cookie is None:
        logger.warning("a wrong token was given to the console")
        await asyncio.sleep(WRONG_TOKEN_DELAY_SECONDS)
        return visit.render("sign_in.html", code=403, next_page=page, wrong=True)
    visit.session = visit.state.gate.session(cookie)
    await visit.act(lambda admin: admin.record("sign_in", outcome="done", conversations=0))
    response = visit.see(page)
    visit.begin_session(cookie, response)
    return response


@action
async def sign_out(visit: Visit, fields: Fields) -> Response:
    """End the session."""
    response = visit.see("")
    visit.end_session(response)
    return response


def _inside(page: str) -> str:
    """Return a page of the console; the overview for any path that might lead elsewhere."""
    plain = all(one.isascii() and (one.isalnum() or one in "-/") for one in page)
    return page if plain and not page.startswith("/") and "//" not in page else ""
