"""Wrap the views: check who may read and who may act, and render errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from letopis.console.access import is_same_origin
from letopis.console.forms import ForeignForm, FormRefused, read_form
from letopis.console.visit import Fields, Visit
from letopis.outbox.operations.repair import NotRepairable
from letopis.store.database.faults import StoreFault
from letopis.store.errors import (
    Closed,
    ConfigurationError,
    ConversationGone,
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


def action(view: Action, *, of_readers: bool = False) -> Endpoint:
    """Answer a POST with the result of ``view``, if it comes from a form of an operator's session.

    :param of_readers: whether readers may do it too.
    """

    @wraps(view)
    async def endpoint(request: Request) -> Response:
        visit = Visit(request)
        _ = visit.language.gettext
        if not is_same_origin(request.headers):
            logger.warning("a form of another site was refused")
            return problem(visit, 403, _("This form was sent by another site, and nothing was done."))
        if visit.session is None:
            return refused(visit)
        if not (visit.may_act or of_readers):
            return problem(visit, 403, _("Readers can change nothing, and nothing was done."))
        try:
            return await view(visit, await read_form(request, is_token=visit.is_form_token))
        except ForeignForm:
            text = _("This form is not from your session, and nothing was done: reload the page.")
            return problem(visit, 403, text)
        except FormRefused:
            return problem(visit, 400, _("The form cannot be read, and nothing was done."))
        except LetopisError as error:
            return failed(visit, error)

    return endpoint


def refused(visit: Visit) -> Response:
    """Return the page for a reader who has to sign in."""
    return sign_in_page(visit, 401, next_page=visit.page)


def sign_in_page(visit: Visit, status: int, *, next_page: str, wrong: str = "") -> Response:
    """Return the form to sign in, or how to sign in where there are no tokens."""
    return visit.render("sign_in.html", code=status, next_page=next_page, wrong=wrong)


def problem(visit: Visit, status: int, text: str, *, detail: str = "") -> Response:
    """Return a page with an error message."""
    return visit.render("problem.html", code=status, text=text, detail=detail)


def failed(visit: Visit, error: LetopisError) -> Response:
    """Return a page for an exception; the text is ours and quotes no content."""
    _ = visit.language.gettext
    if isinstance(error, NotRepairable):
        status, text = 409, _("Nothing was changed: the event has moved on, or cannot be repaired this way.")
    elif isinstance(error, ConversationGone):
        status, text = 409, _("Nothing was changed: the conversation was deleted.")
    elif isinstance(error, InvalidInput):
        status, text = 400, _("Nothing was changed: the input is not valid.")
    elif isinstance(error, _UNAVAILABLE):
        status, text = 503, _("The outbox or the history store cannot be used at present. Nothing is lost.")
    else:
        status, text = 500, _("Unexpected error. The log of the console names it.")
        logger.error("a page failed: %s", type(error).__name__)
    return problem(visit, status, text, detail=str(error))
