"""The API's errors, each with its HTTP status: raised by the service, and again by the client.

Not here: the tree's root (vmmobility/errors.py).  Rests on it alone.
"""

from __future__ import annotations

from vmmobility.errors import (
    ApiError,
    ConfigError,
    DecodeError,
    VmMobilityError,
)


class BadRequest(ApiError):
    """400: the request is wrong in itself."""


class NotFound(ApiError):
    """404: there is no such VM, NVE or move."""


class Conflict(ApiError):
    """409: it does not fit the present state (a move is under way, the VM is already there)."""


class Unavailable(ApiError):
    """503: the daemon cannot do it now, or no daemon answers."""


STATUS: dict[type[ApiError], int] = {
    BadRequest: 400,
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
