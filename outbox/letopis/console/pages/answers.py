"""Wrap the views: check who may read and who may act, and render errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from letopis.console.access import is_same_origin
from letopis.console.forms import FormRefused, read_form
from letopis.console.visit import Fields, Visit, field
from letopis.outbox.operations.repair import NotRepairable
from letopis.store.database.faults import StoreFault
from letopis.store.errors import (
    Closed,
    ConfigurationError,
    InvalidInput,
    LetopisError,
    OutboxFull,
    OutboxUnavailable,
    ReadTimeout,
    StoreUnavailable,
)

logger = logging.getLogger("letopis.console")

Page = Callable[[Visit], Awaitable[Response]]
Action = Callable[[Visit, Fields], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]

FORM_TOKEN: Final = "form_token"  # noqa: S105 - the name of a field
_UNAVAILABLE: Final = (
    OutboxUnavailable,
    OutboxFull,
    StoreUnavailable,
    ReadTimeout,
    StoreFault,
    Closed,
    ConfigurationError,  # a file that holds no outbox any more
)


def page(view: Page) -> Endpoint:
    """Answer a GET with the result of ``view``, if the reader may see it."""

    @wraps(view)
    async def endpoint(request: Request) -> Response:
        visit = Visit(request)
        if not visit.may_read:
            return refused(visit)
        try:
            return await view(visit)
        except LetopisError as error:
            return failed(visit, error)

    return endpoint


def action(view: Action) -> Endpoint:
    """Answer a POST with the result of ``view``, if it comes from a form of the operator's session."""

    @wraps(view)
    async def endpoint(request: Request) -> Response:
        visit = Visit(request)
        _ = visit.language.gettext
        if not is_same_origin(request.headers):
            logger.warning("a form of another site was refused")
            return problem(visit, 403, _("This form was sent by another site, and nothing was done."))
        if visit.session is None:
            return refused(visit)
        try:
            fields = await read_form(request)
            if not visit.state.gate.is_form_token(visit.session, field(fields, FORM_TOKEN)):
                text = _("This form is not from your session, and nothing was done: reload the page.")
                return problem(visit, 403, text)
            return await view(visit, fields)
        except FormRefused:
            return problem(visit, 400, _("The form cannot be read, and nothing was done."))
        except LetopisError as error:
            return failed(visit, error)

    return endpoint


def refused(visit: Visit) -> Response:
    """Return the page for a reader who has to sign in, or who cannot."""
    if visit.state.gate.closed:
        return visit.render("refused.html", code=403)
    return visit.render("sign_in.html", code=401, next_page=visit.page, wrong=False)


def problem(visit: Visit, status: int, text: str) -> Response:
    """Return a page with an error message."""
    return visit.render("problem.html", code=status, text=text, detail="")


def failed(visit: Visit, error: LetopisError) -> Response:
    """Return a page for an exception; the text is ours and quotes no content."""
    _ = visit.language.gettext
    if isinstance(error, NotRepairable):
        status, text = 409, _("Nothing was changed: the event has moved on, or cannot be repaired this way.")
    elif isinstance(error, InvalidInput):
        status, text = 400, _("Nothing was changed: the input is not valid.")
    elif isinstance(error, _UNAVAILABLE):
        status, text = 503, _("The outbox or the history store cannot be used at present. Nothing is lost.")
    else:
        status, text = 500, _("Unexpected error. The log of the console names it.")
        logger.error("a page failed: %s", type(error).__name__)
    return visit.render("problem.html", code=status, text=text, detail=str(error))
