"""The one error tree of the project.

Every error names the thing that is wrong (its message) and what to do about it (its remedy).

    VmMobilityError
    ├── ConfigError          a file's key is wrong: file, key, remedy
    ├── DecodeError          bytes that are not a valid message (wire)
    ├── StoreError           the journal cannot be read or written
    ├── EnvironmentProblem   a tool, device or right is missing on this machine
    ├── DataPlaneError       the kernel refused a route, neighbour, tap or filter
    ├── HypervisorError      the hypervisor refused or lost a guest
    ├── ApiError             the daemon's API refused a request or cannot be reached
    │   ├── BadRequest       the request is wrong in itself
    │   ├── Unauthorized     nobody knows who asks: no token, or none that counts
    │   ├── Forbidden        the asker's role may not do this
    │   ├── NotFound         there is no such VM, NVE or move
    │   ├── Conflict         it does not fit the present state
    │   └── Unavailable      the daemon cannot do it now, or no daemon answers
    ├── RecordingError       a recording is damaged, foreign, or of another version
    └── LabError             a fabric or scenario is wrong, or an assertion in it failed

Rests on nothing.  Does not print: the command line does, as `error: MESSAGE` and `remedy: REMEDY`.
"""

from __future__ import annotations


class VmMobilityError(Exception):
    """Root of all errors.  `message` names the thing, `remedy` says what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class ConfigError(VmMobilityError):
    """A configuration file is wrong."""


class DecodeError(VmMobilityError):
    """Bytes are not a valid message.  `reason` is the drop counter's name (docs/protocol.md)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreError(VmMobilityError):
    """The durable store cannot be read or written."""


class EnvironmentProblem(VmMobilityError):
    """This machine lacks a tool, a device or a right."""


class DataPlaneError(VmMobilityError):
    """The kernel refused something that the data plane needs."""


class HypervisorError(VmMobilityError):
    """The hypervisor refused an order or lost a guest."""


class ApiError(VmMobilityError):
    """A daemon's API refused a request, or no daemon answers."""


class BadRequest(ApiError):
    """The request is wrong in itself."""


class Unauthorized(ApiError):
    """Nobody knows who asks: there is no token, or none that counts."""


class Forbidden(ApiError):
    """The asker's role may not do this."""


class NotFound(ApiError):
    """There is no such VM, NVE or move."""


class Conflict(ApiError):
    """It does not fit the present state (a move is under way, the VM is already there)."""


class Unavailable(ApiError):
    """The daemon cannot do it now, or no daemon answers."""


class RecordingError(VmMobilityError):
    """A file is no recording, is damaged, or was made by a version that differs too much."""


class LabError(VmMobilityError):
    """A fabric or scenario is wrong, or one of its assertions failed."""
