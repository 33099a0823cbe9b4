"""Sign in and out."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from letopis.console.access import is_same_origin
from letopis.console.forms import FormRefused, read_form
from letopis.console.pages.answers import action, failed, problem, sign_in_page
from letopis.console.visit import Fields, Visit, field
from letopis.store.errors import LetopisError

logger = logging.getLogger("letopis.console")

WRONG_TOKEN_DELAY_SECONDS: Final = 1.0


async def sign_in_form(request: Request) -> Response:
    """Show the form, or start a session by the link that the console printed."""
    visit = Visit(request)
    secret = visit.query("once")
    if secret is None or request.method != "GET":
        return sign_in_page(visit, 200, next_page=_inside(visit.query("next") or ""))
    cookie = visit.state.gate.use_link(secret)
    if cookie is None:
        return await _wrong(visit, visit.language.gettext("This link was used already, or is not of this console."))
    return await _begin(visit, cookie, "")


async def sign_in(request: Request) -> Response:
    """Start a session, if the token is right."""
    visit = Visit(request)
    _ = visit.language.gettext
    if not is_same_origin(request.headers):
        logger.warning("a form of another site was refused")
        return problem(visit, 403, _("This form was sent by another site, and nothing was done."))
    try:
        fields = await read_form(request)
    except FormRefused:
        return problem(visit, 400, _("The form cannot be read, and nothing was done."))
    page = _inside(field(fields, "next"))
    # A right token is never delayed, however many wrong ones are.
    cookie = visit.state.gate.sign_in(field(fields, "token").strip())
    return await (_wrong(visit, _("Wrong token."), page) if cookie is None else _begin(visit, cookie, page))


async def _begin(visit: Visit, cookie: str, page: str) -> Response:
    visit.session = visit.state.gate.session(cookie)
    try:
        await visit.act(lambda admin: admin.record("sign_in", outcome="done", conversations=0))
    except LetopisError as error:
        visit.state.gate.end(cookie)
        return failed(visit, error)
    response = visit.see(page)
    visit.begin_session(cookie, response)
    return response


async def _wrong(visit: Visit, text: str, page: str = "") -> Response:
    if visit.state.delays.locked():  # the delayed ones must not fill the server
        return problem(visit, 429, visit.language.gettext("Too many wrong tokens at once: try again."))
    logger.warning("a wrong token was given to the console")
    async with visit.state.delays:
        await asyncio.sleep(WRONG_TOKEN_DELAY_SECONDS)
    return sign_in_page(visit, 403, next_page=page, wrong=text)


async def _end(visit: Visit, _: Fields) -> Response:
    response = visit.see("")
    visit.end_session(response)
    return response


sign_out = action(_end, of_readers=True)


def _inside(page: str) -> str:
    """Return a page of the console; the overview for any path that might lead elsewhere."""
    plain = all(one.isascii() and (one.isalnum() or one in "-/") for one in page)
    return page if plain and not page.startswith("/") and "//" not in page else ""
