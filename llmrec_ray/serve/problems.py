"""Every error an HTTP caller can get: one table of statuses, one JSON shape {code, message, field}."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llmrec_ray.errors import RequestError

__all__ = ["Problem", "UnavailableError", "add_problem_handlers", "problem_response", "unavailable"]

logger = logging.getLogger("ray.serve")

STATUS = {
    "invalid_request": 422,
    "not_supported": 422,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "unauthorized": 401,
    "unavailable": 503,
    "internal": 500,
}
CODES = {status: code for code, status in reversed(STATUS.items())}


class Problem(BaseModel):
    """Body of every answer that is not a success."""

    code: str
    message: str
    field: str | None = None
    """The part of the request that is wrong, dotted; null when it is none in particular."""


class UnavailableError(Exception):
    """A stage that the request needs did not answer."""


def unavailable(error: Exception) -> UnavailableError:
    """What to answer when a stage failed with `error`, which goes to the log."""
    logger.error("A stage failed", exc_info=error)
    return UnavailableError("A stage of the endpoint did not answer: send the request again in a moment.")


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error in the one shape."""
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(Exception, _internal)


def problem_response(code: str, message: str, field: str | None = None) -> JSONResponse:
    """The answer to a request that went wrong; `code` is a key of STATUS."""
    headers = {"WWW-Authenticate": "Bearer"} if code == "unauthorized" else None
    problem = Problem(code=code, message=message, field=field)
    return JSONResponse(problem.model_dump(), STATUS[code], headers=headers)


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return problem_response(error.code, str(error), error.field)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *parts = first["loc"]
    field = ".".join(str(part) for part in parts) or str(where)
    if first["type"] == "json_invalid":
        return problem_response("invalid_request", "The body is not valid JSON.", "body")
    if field == "body" and "json" not in request.headers.get("content-type", ""):
        message = "The body must be JSON: send the header `Content-Type: application/json`."
        return problem_response("invalid_request", message, "body")
    return problem_response("invalid_request", f"{field}: {first['msg']}.", field)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "invalid_request")
    messages = {
        "not_found": f"There is nothing at {request.url.path}; see /docs.",
        "method_not_allowed": f"{request.url.path} does not answer {request.method}; see /docs.",
    }
    field = "body" if code == "too_large" else None
    return problem_response(code, messages.get(code, str(error.detail)), field)


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return problem_response("unavailable", str(error))


async def _internal(request: Request, error: Exception) -> JSONResponse:
    logger.error("Unexpected error at %s", request.url.path, exc_info=error)
    return problem_response("internal", "Something unexpected went wrong; the endpoint's log has the details.")
