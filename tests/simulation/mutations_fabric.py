"""The mutations of what leads packets through the fabric: the gate, what is withdrawn, routers.

Not here: those of everything else (mutations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from tests.simulation.mutations import Mutant
from vmmobility.engine.manager_fabric import ManagerFabric
from vmmobility.engine.manager_gate import ManagerGate
from vmmobility.engine.manager_holding import ManagerHolding
from vmmobility.engine.router import RouterEngine

FABRIC_MUTANTS: dict[str, Mutant] = {}


def _method(name: str, breaks: str, owner: type, method: str, new: Any) -> None:
    """The method `new` in place of the owner's."""
    FABRIC_MUTANTS[name] = Mutant(breaks, partial(patch.object, owner, method, new))


_has_changed = ManagerFabric._has_changed


@contextmanager
def _no_border_holds() -> Iterator[None]:
    with (
        patch.object(ManagerHolding, "_borders_in_move", lambda engine, move: {}),
        patch.object(ManagerHolding, "_is_overridden", lambda engine, vm, towards, ends: True),
    ):
        yield


FABRIC_MUTANTS["no border router holds"] = Mutant(
    "while the fabric turns border routers lead where they hear", _no_border_holds
)

_method(
    "skip the gate", "a move does not wait for the fabric",
    ManagerGate, "_unready", lambda engine, entry, goal, ends, *, with_sight: [],
)  # fmt: skip

_method(
    "never withdraw", "routers that are to do nothing are not told so",
    ManagerFabric, "_has_changed",
    staticmethod(lambda entry, name, lead: lead is not None and _has_changed(entry, name, lead)),
)  # fmt: skip

_method(
    "obey an old order", "a router obeys any epoch",
    RouterEngine, "_stale", staticmethod(lambda entry, epoch, state: False),
)  # fmt: skip

_method(
    "drain though a router leads there", "a redirect ends though a router may still need it",
    ManagerGate, "_may_lead", lambda engine, vm, nve_id, now: False,
)  # fmt: skip

_method(
    "no net under the gate", "a home's NVE does not redirect again before a route is withdrawn",
    ManagerGate, "_spread_net", lambda engine, binding, move, now: None,
)  # fmt: skip
