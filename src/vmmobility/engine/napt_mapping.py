"""One mapping of a NAPT box as a value, for the record and for people.

Not here: what becomes of it (napt_mappings.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vmmobility.wire.values import VmKey


@dataclass(slots=True)
class LocatorMapping:
    """One NVE's locator."""

    nve_id: str
    private: IPv4Address
    public: IPv4Address


@dataclass(slots=True)
class VmMapping:
    """One address of a VM.

    owner:  the box in whose pool the public address is
    ours:   this box translates it (the owner, or a box that it was handed over to)
    here:   the VM is served behind this box
    holder: at the owner: the other box behind which the VM is, "" for none
    epoch:  the highest that came with what is known of it
    moving: a move of the VM is under way
    ended:  it is over; at its owner, its public address waits
    due:    it ends then, or its wait does (monotonic seconds, not durable)
    lingers: it was handed over, and is translated here, too, until then; 0: not so (durable
             is whether)
    stays:  why it is not handed over though its VM is behind another box, in words (not durable)
    forgetting: its flows are about to be forgotten here (NaptState.departing; not durable)
    tried:  another box hands it over, and the kernel is asked to hold it (not durable)
    """

    vm: VmKey
    private: IPv4Address
    public: IPv4Address
    owner: str
    ours: bool
    here: bool = False
    holder: str = ""
    epoch: int = 0
    moving: bool = False
    ended: bool = False
    due: float = 0.0
    lingers: float = 0.0
    forgetting: bool = False
    tried: bool = False
    stays: str = ""

    @property
    def is_translated(self) -> bool:
        """Whether this box's kernel is to translate it, if it has not ended."""
        return self.ours or self.tried or self.lingers > 0

    @property
    def standing(self) -> str:
        """How it stands, in a word, for people."""
        if self.ended:
            return "ended"
        if self.ours:
            return "translated"
        return "detour" if self.here else "elsewhere"

    @property
    def key(self) -> str:
        return f"map/{self.vm.vni}/{self.vm.vm_id}/{self.private}"


def words(mapping: VmMapping) -> dict[str, Any]:
    """A mapping for people."""
    return {
        "vni": mapping.vm.vni,
        "vm": mapping.vm.vm_id,
        "private": str(mapping.private),
        "public": str(mapping.public),
        "owner": mapping.owner,
        "ours": mapping.ours,
        "here": mapping.here,
        "holder": mapping.holder,
        "epoch": mapping.epoch,
    }


def to_json(mapping: VmMapping) -> dict[str, Any]:
    value = words(mapping)
    del value["vni"], value["vm"], value["private"]
    lingers = {"lingers": True} if mapping.lingers else {}
    return {**value, "moving": mapping.moving, "ended": mapping.ended, **lingers}


def from_json(rest: str, value: Mapping[str, Any]) -> VmMapping:
    vni, vm_id, private = rest.split("/")
    return VmMapping(
        VmKey(int(vni), vm_id),
        IPv4Address(private),
        IPv4Address(value["public"]),
        value["owner"],
        value["ours"],
        value["here"],
        value["holder"],
        value["epoch"],
        value["moving"],
        value["ended"],
    )
