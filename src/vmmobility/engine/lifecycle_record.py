"""One VM's life as the manager records it, what its asker wants, and the durable form.

Not here: what becomes of it (manager_lifecycle.py), its states (lifecycle_transitions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmmobility.engine.binding_update_list import interface_from_json, interface_to_json
from vmmobility.engine.capacity import Resources
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.wire.values import Interface, VmKey


@dataclass(frozen=True, slots=True)
class VmRequest:
    """What is asked for (Section 8.1, step 1).

    client_key, digest: of the asker, and of all that it asks for: the same pair is the same
    request.  threads: of the host that it uses at once: it takes so many vCPUs at least.
    definition: for its hypervisor.  nves: where it may be, none named is anywhere; dc: in that
    data centre, "" is any; apart: VMs that it must not share an NVE with.
    """

    client_key: str
    digest: str
    vm: VmKey
    interfaces: tuple[Interface, ...]
    definition: bytes
    resources: Resources
    threads: int = 0
    nves: tuple[str, ...] = ()
    dc: str = ""
    apart: tuple[VmKey, ...] = ()

    @property
    def wanted(self) -> Resources:
        """What it takes of a host."""
        told = self.resources
        return Resources(max(told.vcpus, self.threads), told.memory_mib, told.storage_mib)


@dataclass(slots=True)
class Life:
    """One VM's.

    nve_id: where it is offered, or brought up; a binding's NVE counts before it; server: at which
    of its servers, if it stands apart from them
    offer_until: monotonic seconds, not durable: a restart grants the time again
    onboarded: strict mode's record of it was made with it, and goes with it
    """

    request: VmRequest
    nve_id: str
    state: LifeState = LifeState.REQUESTED
    reason: str = ""
    offer_until: float = 0.0
    onboarded: bool = False
    server: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return self.nve_id, self.server

    @property
    def vm(self) -> VmKey:
        return self.request.vm


class LifeRefused(CommandRefused):
    """A VM that cannot be had, confirmed or deleted.  kind: "unknown-vm", "unknown-nve",
    "conflict", "no-room"."""


def life_key(vm: VmKey) -> str:
    """A record's key in the store."""
    return f"life/{vm.vni}/{vm.vm_id}"


def life_to_json(life: Life) -> dict[str, Any]:
    asked = life.request
    return {
        "client_key": asked.client_key,
        "digest": asked.digest,
        "interfaces": [interface_to_json(i) for i in asked.interfaces],
        "definition": asked.definition.decode(),
        "vcpus": asked.resources.vcpus,
        "memory_mib": asked.resources.memory_mib,
        "storage_mib": asked.resources.storage_mib,
        "threads": asked.threads,
        "nves": list(asked.nves),
        "dc": asked.dc,
        "apart": [[vm.vni, vm.vm_id] for vm in asked.apart],
        "nve": life.nve_id,
        "state": life.state.value,
        "reason": life.reason,
        "onboarded": life.onboarded,
        **({"server": life.server} if life.server else {}),
    }


def life_from_json(vm: VmKey, value: Mapping[str, Any]) -> Life:
    asked = VmRequest(
        value["client_key"],
        value["digest"],
        vm,
        tuple(interface_from_json(i) for i in value["interfaces"]),
        value["definition"].encode(),
        Resources(value["vcpus"], value["memory_mib"], value["storage_mib"]),
        value["threads"],
        tuple(value["nves"]),
        value["dc"],
        tuple(VmKey(vni, vm_id) for vni, vm_id in value["apart"]),
    )
    state = LifeState(value["state"])
    made = Life(asked, value["nve"], state, value["reason"], onboarded=value["onboarded"])
    made.server = value.get("server", "")
    return made
