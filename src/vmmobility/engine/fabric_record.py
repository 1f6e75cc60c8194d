"""What the manager has told the routers about each VM, and its durable form.

Not here: what they should be told (manager_fabric.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine.binding_update_list import (
    interface_from_json,
    interface_to_json,
    nve_from_json,
    nve_to_json,
)
from vmmobility.wire.registry import RouteState
from vmmobility.wire.values import Interface, Nve, VmKey


@dataclass(frozen=True, slots=True)
class RouterSite:
    """A router as the manager's configuration knows it.

    serves: the NVEs whose default router it is; none for a border router
    dc:     the data centre whose edge, or part, it is
    """

    router_id: str
    border: bool
    serves: tuple[str, ...] = ()
    dc: str = ""


@dataclass(frozen=True, slots=True)
class Lead:
    """What one router should do for a VM: a state, and the pair that it is about.

    group, member: of a load-shared group, the VM's number in it; others: the other members in
    service, (number, NVE)
    """

    state: RouteState
    serving: Nve
    previous: Nve | None = None
    group: str = ""
    member: int = 0
    others: tuple[tuple[int, Nve], ...] = ()

    @property
    def target(self) -> Nve | None:
        """The NVE to which the router itself leads the VM's packets."""
        if self.state is RouteState.KEEP:
            return self.previous
        return None if self.state is RouteState.WATCH else self.serving


@dataclass(slots=True)
class Told:
    """What one router was told.

    epoch:        the order's, above every earlier one's for that VM; 0: it said that it holds
                  something, and this manager, which has lost its records, told it nothing yet
    acknowledged: it has done so
    held:         NVEs to which it may still lead, by earlier orders, until it has acknowledged this
    direct:       it has said that the fabric leads there; None: it has not said yet (not durable)
    heard:        when it was told, or last said anything (monotonic seconds, not durable)
    """

    lead: Lead | None
    epoch: int
    acknowledged: bool = False
    held: tuple[Nve, ...] = ()
    direct: bool | None = None
    heard: float = 0.0

    @property
    def target(self) -> Nve | None:
        """The NVE to which it was told to lead the VM's packets."""
        return self.lead.target if self.lead else None

    @property
    def may_lead_to(self) -> tuple[Nve, ...]:
        """NVEs to which it may lead the VM's packets now."""
        return (*self.held, *((self.target,) if self.target else ()))

    def then(self, lead: Lead | None, epoch: int) -> Told:
        """The next order."""
        return Told(lead, epoch, held=tuple(dict.fromkeys(self.may_lead_to)))

    def done(self) -> None:
        """It has obeyed."""
        self.acknowledged, self.held = True, ()


@dataclass(slots=True)
class FabricEntry:
    """One VM's routers, by name.  A router told to do nothing stays until it has answered."""

    vm: VmKey
    interfaces: tuple[Interface, ...]
    routers: dict[str, Told] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"fabric/{self.vm.vni}/{self.vm.vm_id}"


def _told_to_json(told: Told) -> dict[str, Any]:
    value: dict[str, Any] = {
        "epoch": told.epoch,
        "acknowledged": told.acknowledged,
        "held": [nve_to_json(nve) for nve in told.held],
    }
    if told.lead is not None:
        value |= {
            "state": told.lead.state.name,
            "serving": nve_to_json(told.lead.serving),
            "previous": nve_to_json(told.lead.previous),
        }
        if told.lead.group:
            others = [[number, nve_to_json(nve)] for number, nve in told.lead.others]
            value["group"] = [told.lead.group, told.lead.member, others]
    return value


def _told_from_json(value: Mapping[str, Any]) -> Told:
    lead = None
    if "state" in value:
        previous = value["previous"]
        lead = Lead(
            RouteState[value["state"]],
            nve_from_json(value["serving"]),
            nve_from_json(previous) if previous else None,
            *_group_from_json(value),
        )
    held = tuple(nve_from_json(nve) for nve in value.get("held", ()))
    return Told(lead, value["epoch"], value["acknowledged"], held)


def _group_from_json(value: Mapping[str, Any]) -> tuple[str, int, tuple[tuple[int, Nve], ...]]:
    name, member, others = value.get("group", ("", 0, ()))
    return name, member, tuple((number, nve_from_json(nve)) for number, nve in others)


def fabric_to_json(entry: FabricEntry) -> dict[str, Any] | None:
    """None: no router knows the VM."""
    if not entry.routers:
        return None
    return {
        "interfaces": [interface_to_json(i) for i in entry.interfaces],
        "routers": {name: _told_to_json(told) for name, told in entry.routers.items()},
    }


def load_fabric(state: Mapping[str, Any]) -> dict[VmKey, FabricEntry]:
    """All entries of a store."""
    found = {}
    for key, value in state.items():
        kind, _, rest = key.partition("/")
        if kind == "fabric":
            vni, _, vm_id = rest.partition("/")
            vm = VmKey(int(vni), vm_id)
            interfaces = tuple(interface_from_json(i) for i in value["interfaces"])
            routers = {name: _told_from_json(told) for name, told in value["routers"].items()}
            found[vm] = FabricEntry(vm, interfaces, routers)
    return found
