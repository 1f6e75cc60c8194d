"""A load-shared group: members of one address, as an operator declared them, and who is in service.

Section 7, hot standby: "the VMs in both primary and secondary domains have identical information
and can provide services simultaneously as in load-share mode of operation".  Each member is a VM of
its own - VM-ID, binding, epochs, moves - so fencing compares within a member by itself; the group
alone lets them share addresses.  Not here: what follows (manager_groups.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmmobility.engine.manager_move import CommandRefused
from vmmobility.wire.values import VmKey

MAX_MEMBERS = 8


class GroupRefused(CommandRefused):
    """A group that cannot be declared, or taken back."""


@dataclass(slots=True)
class Group:
    """One group.

    members: the VMs and their numbers, from 1
    epoch:   rises with each change of who is in service (from the domain-wide sequence)
    present: members in service; out: bound members that are not, and why
    """

    name: str
    vni: int
    members: dict[VmKey, int]
    epoch: int = 0
    present: tuple[VmKey, ...] = ()
    out: dict[VmKey, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"group/{self.name}"

    @property
    def ordered(self) -> list[VmKey]:
        """The members, by number."""
        return sorted(self.members, key=self.members.__getitem__)

    def mates(self, vm: VmKey) -> tuple[VmKey, ...]:
        """The other members, by number."""
        return tuple(member for member in self.ordered if member != vm)


def group_to_json(group: Group) -> dict[str, Any]:
    return {
        "vni": group.vni,
        "members": {vm.vm_id: number for vm, number in group.members.items()},
        "epoch": group.epoch,
        "present": [vm.vm_id for vm in group.present],
        "out": {vm.vm_id: why for vm, why in group.out.items()},
    }


def load_groups(state: Mapping[str, Any]) -> dict[str, Group]:
    """All groups of a store, by name."""
    found = {}
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind == "group":
            vni = value["vni"]
            found[name] = Group(
                name,
                vni,
                {VmKey(vni, vm_id): number for vm_id, number in value["members"].items()},
                value["epoch"],
                tuple(VmKey(vni, vm_id) for vm_id in value["present"]),
                {VmKey(vni, vm_id): why for vm_id, why in value["out"].items()},
            )
    return found
