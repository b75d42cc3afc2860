"""Every error an HTTP caller can get: one table of statuses, one JSON shape {code, message, field}."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llmrec_ray.errors import RequestError

__all__ = ["Problem", "UnauthorizedError", "UnavailableError", "add_problem_handlers", "unavailable"]

logger = logging.getLogger("ray.serve")

STATUS = {
    "invalid_request": 422,
    "not_supported": 422,
    "not_found": 404,
    "method_not_allowed": 405,
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


class UnauthorizedError(Exception):
    """The API key is missing or wrong."""


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
    app.add_exception_handler(UnauthorizedError, _unauthorized)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(Exception, _internal)


def _answer(code: str, message: str, field: str | None = None) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if code == "unauthorized" else None
    problem = Problem(code=code, message=message, field=field)
    return JSONResponse(problem.model_dump(), STATUS[code], headers=headers)


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _answer(error.code, str(error), error.field)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *parts = first["loc"]
    field = ".".join(str(part) for part in parts) or str(where)
    if first["type"] == "json_invalid":
        return _answer("invalid_request", "The body is not valid JSON.", "body")
    if field == "body" and "json" not in request.headers.get("content-type", ""):
        message = "The body must be JSON: send the header `Content-Type: application/json`."
        return _answer("invalid_request", message, "body")
    return _answer("invalid_request", f"{field}: {first['msg']}.", field)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "invalid_request")
    messages = {
        "not_found": f"There is nothing at {request.url.path}; see /docs.",
        "method_not_allowed": f"{request.url.path} does not answer {request.method}; see /docs.",
    }
    return _answer(code, messages.get(code, str(error.detail)))


async def _unauthorized(_: Request, error: Exception) -> JSONResponse:
    return _answer("unauthorized", str(error))


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return _answer("unavailable", str(error))


async def _internal(request: Request, error: Exception) -> JSONResponse:
    logger.error("Unexpected error at %s", request.url.path, exc_info=error)
    return _answer("internal", "Something unexpected went wrong; the endpoint's log has the details.")
