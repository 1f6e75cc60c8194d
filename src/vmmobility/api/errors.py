"""The HTTP status of each of the API's errors, both ways: for the service and for the client.

Not here: the errors themselves (vmmobility/errors.py).  Rests on it alone.
"""

from __future__ import annotations

from vmmobility.errors import (
    ApiError,
    BadRequest,
    ConfigError,
    Conflict,
    DecodeError,
    Forbidden,
    NotFound,
    Unauthorized,
    Unavailable,
    VmMobilityError,
)

__all__ = [
    "ApiError", "BadRequest", "Conflict", "Forbidden", "NotFound", "Unauthorized", "Unavailable",
    "error_of", "status_of",
]  # fmt: skip

STATUS: dict[type[ApiError], int] = {
    BadRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Unavailable: 503,
}


def status_of(error: VmMobilityError) -> int:
    """The HTTP status of any error of the project."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    # A definition that does not parse is the asker's; the rest is this machine's.
    return 400 if isinstance(error, ConfigError | DecodeError) else 503


def error_of(status: int, message: str, remedy: str) -> ApiError:
    """The error that a status stands for."""
    kinds = {number: kind for kind, number in STATUS.items()}
    return kinds.get(status, ApiError)(message, remedy)
