"""The mutations of load-shared groups: who may be where, what leads to them, who is in service.

Not here: those of everything else (mutations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from tests.simulation.mutations import Mutant
from vmmobility.engine.binding_update_list import BindingUpdateList
from vmmobility.engine.fabric_record import Lead
from vmmobility.engine.manager_group_routes import ManagerGroupRoutes
from vmmobility.engine.manager_groups import ManagerGroups
from vmmobility.wire.registry import RouteState

GROUP_MUTANTS: dict[str, Mutant] = {}


def _method(name: str, breaks: str, owner: type, method: str, new: Any) -> None:
    """The method `new` in place of the owner's."""
    GROUP_MUTANTS[name] = Mutant(breaks, partial(patch.object, owner, method, new))


@contextmanager
def _two_at_one_nve() -> Iterator[None]:
    with (
        patch.object(ManagerGroups, "_mate_there", lambda engine, vm, node: None),
        patch.object(BindingUpdateList, "sharer", lambda entries, vm, interfaces: None),
    ):
        yield


GROUP_MUTANTS["two members at one NVE"] = Mutant(
    "an NVE may have a part of several members of a group", _two_at_one_nve
)

_group_leads = ManagerGroupRoutes._group_leads


def _to_the_first(engine: Any, binding: Any, move: Any) -> dict[str, Lead]:
    """Every router of the domain leads to the member, wherever that is."""
    everywhere = {r: Lead(RouteState.LEAD, binding.nve) for r in engine._sites}
    return everywhere | _group_leads(engine, binding, move)


_method(
    "tell no router of members", "what routers do for members of a group does not follow them",
    ManagerGroups, "_follow_routes", lambda engine, binding, now: None,
)  # fmt: skip

_method(
    "lead to members far away", "routers lead to members that are not theirs",
    ManagerGroupRoutes, "_group_leads", _to_the_first,
)  # fmt: skip

_method(
    "a group is blind to its moves", "routers take the place that a member moves to for astray",
    ManagerGroupRoutes, "_others", lambda engine, group, vm: (),
)  # fmt: skip
