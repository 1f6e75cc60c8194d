"""Who asks, and whether that role may.  The gate (listener.py) says who it is.

Not here: tokens (tokens.py).  Rests on declared.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmmobility.api.declared import ApiRole, Declared
from vmmobility.api.errors import ApiError, Forbidden, Unauthorized

_KEY = "vmmobility.asker"
_AGAIN = "vmmobility.asked-again"


@dataclass(frozen=True, slots=True)
class Asker:
    """name: of the token, or where it asks from; by_token: not at the unix socket"""

    name: str
    role: ApiRole
    by_token: bool = False


def asked_by(
    scope: Mapping[str, Any], asker: Asker, again: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """The scope of a request, with who makes it.  again: raises ApiError if that counts no more"""
    return {**scope, _KEY: asker, _AGAIN: again}


def counts_still(scope: Mapping[str, Any]) -> bool:
    """Whether who asked may still hear the answer, where that goes on for long."""
    try:
        scope[_AGAIN]()
    except ApiError:
        return False
    return True


def asker_of(scope: Mapping[str, Any]) -> Asker:
    """Raises Unauthorized if nobody has said who asks."""
    asker = scope.get(_KEY)
    if not isinstance(asker, Asker):
        raise Unauthorized("nobody is known to ask", "send a token, or ask on the unix socket")
    return asker


def allow(scope: Mapping[str, Any], route: Declared) -> None:
    """Raises Unauthorized if nobody has said who asks, Forbidden if the role does not suffice."""
    asker = asker_of(scope)
    if asker.role < route.role:
        raise Forbidden(
            f"{route.method} {route.path} needs the role {route.role.text}, "
            f"{asker.name} has {asker.role.text}",
            f"use a token of that role: `vmmob token new NAME --role {route.role.text}`",
        )
