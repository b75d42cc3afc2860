"""Every error an HTTP caller can get: one table of statuses, one JSON shape {code, message, field}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llmrec_ray.errors import RequestError
from llmrec_ray.serve.validation import explain

__all__ = [
    "SECURITY_HEADERS",
    "Problem",
    "UnavailableError",
    "add_problem_handlers",
    "problem_response",
    "responses",
    "unavailable",
]

logger = logging.getLogger("ray.serve")

STATUS = {
    "invalid_request": 422,
    "not_supported": 422,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "too_large": 413,
    "unauthorized": 401,
    "forbidden": 403,
    "conflict": 409,
    "refused": 409,
    "too_many_requests": 429,
    "unavailable": 503,
    "internal": 500,
}
CODES = {status: code for code, status in reversed(STATUS.items())}
EXAMPLES: dict[str, tuple[str, str | None]] = {
    "unauthorized": ("The API key is wrong.", None),
    "forbidden": ("This needs an admin key, and the key that was sent is none.", None),
    "not_found": ("There is no item 'gone' in release 3f2a.", "item_id"),
    "refused": ("Release 3f2a is not served: its recall is 0.8.", "release_id"),
    "too_slow": ("The body had not arrived after 10 s: send it faster, or less at once.", "body"),
    "too_large": ("The body is larger than 4000000 bytes: send less at once.", "body"),
    "invalid_request": ("k is 0; it must be at least 1.", "k"),
    "too_many_requests": ("This key has asked too often: send the request again in 1 s.", None),
    "internal": ("Something unexpected went wrong; the endpoint's log has the details.", None),
    "unavailable": ("A stage of the endpoint did not answer: send the request again in a moment.", None),
}
RETRY_AFTER_S = 1
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What browsers heed, on every answer that does not set its own."""


class Problem(BaseModel):
    """Body of every answer that is not a success."""

    code: str
    message: str
    field: str | None = None
    """The part of the request that is wrong, dotted; null when it is none in particular."""


class UnavailableError(Exception):
    """A stage that the request needs did not answer."""


NO_ANSWER = "A stage of the endpoint did not answer: send the request again in a moment."


def unavailable(error: Exception, message: str = NO_ANSWER) -> UnavailableError:
    """What to answer when a part of the endpoint failed with `error`, which goes to the log."""
    logger.error("A part of the endpoint failed", exc_info=error)
    return UnavailableError(message)


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error in the one shape."""
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(Exception, _internal)


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: what a route answers with these codes of EXAMPLES, each with an example."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        message, field = EXAMPLES[code]
        example = Problem(code=code, message=message, field=field).model_dump()
        documented[STATUS[code]] = {"model": Problem, "content": {"application/json": {"example": example}}}
    return documented


def problem_response(
    code: str, message: str, field: str | None = None, *, retry_after_s: int = RETRY_AFTER_S
) -> JSONResponse:
    """The answer to a request that went wrong; `code` is a key of STATUS. Retry-After goes with 429 and 503."""
    headers = {}
    if code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    if code in {"too_many_requests", "unavailable"}:
        headers["Retry-After"] = str(retry_after_s)
    problem = Problem(code=code, message=message, field=field)
    return JSONResponse(problem.model_dump(), STATUS[code], headers=headers)


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return problem_response(error.code, str(error), error.field)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    where = str(errors[0]["loc"][0])
    if errors[0]["type"] == "json_invalid":
        message = f"The body is not valid JSON: {errors[0]['ctx']['error']} at character {errors[0]['loc'][1]}."
        return problem_response("invalid_request", message, "body")
    if where == "body" and "json" not in request.headers.get("content-type", ""):
        message = "The body must be JSON: send the header `Content-Type: application/json`."
        return problem_response("invalid_request", message, "body")
    sent = {"query": request.query_params, "path": request.path_params}.get(where, error.body)
    field, message = explain(errors, sent)
    return problem_response("invalid_request", message, field)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "invalid_request")
    messages = {
        "not_found": f"There is nothing at {request.url.path}; see /docs.",
        "method_not_allowed": f"{request.url.path} does not answer {request.method}; see /docs.",
        "invalid_request": "The body is not valid JSON: its text is not UTF-8, it is nested too deeply, or a number in "
        "it has too many digits.",
    }
    field = "body" if code in {"too_large", "too_slow", "invalid_request"} else None
    response = problem_response(code, messages.get(code, str(error.detail)), field)
    response.headers.update(error.headers or {})
    return response


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return problem_response("unavailable", str(error))


async def _internal(request: Request, error: Exception) -> JSONResponse:
    """Answered outside of every middleware, so the headers that the guard sets elsewhere are set here."""
    logger.error("Unexpected error at %s", getattr(request.scope.get("route"), "path", "no route"), exc_info=error)
    response = problem_response("internal", EXAMPLES["internal"][0])
    response.headers.update(SECURITY_HEADERS)
    return response
