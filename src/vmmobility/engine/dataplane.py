"""What an NVE's engine wants of the data plane, one value a VM: desired state, not deltas.

The driver (drivers/linux) makes it so and reports what it could not.  Not here: how.
Rests on wire.values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from vmmobility.wire.values import Interface, Nve, VmKey


class Forwarding(Enum):
    """Where packets for a VM's addresses go from this node."""

    NONE = "none"  # this node installs no route for the VM
    LOCAL = "local"  # to the VM's own taps (a stopped guest's packets wait in the tap's queue)
    REDIRECT = "redirect"  # to `target`, by tunnel or host route


class RedirectPolicy(Enum):
    """How a redirect is done (design: Redirect: host route or tunnel)."""

    AUTO = "auto"  # host route where the target is adjacent, else tunnel
    HOST_ROUTE = "host-route"
    TUNNEL = "tunnel"


@lru_cache(maxsize=1024)  # asked for at each state of a VM, of a definition that does not change
def policy_of(definition: bytes) -> RedirectPolicy | None:
    """What a VM's definition (JSON, as it travels between NVEs) says under `redirect`, if anything.

    Every NVE at which the VM has been holds its definition, hence redirects it alike.
    """
    try:
        return RedirectPolicy(json.loads(definition)["redirect"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class VmDataPlane:
    """Everything this node's data plane should hold for one VM.

    vm:          its key
    interfaces:  MACs and prefixes; interface i's tap is named port_name(vm, i)
    plugged:     whether the taps (with gateway MAC, permanent neighbours, source filter) exist here
    forwarding:  where its addresses lead from here
    target:      the NVE that REDIRECT leads to
    policy:      how to redirect: the VM's own, else the NVE's
    accept_from: NVEs whose tunnelled packets for this VM are accepted here (previous NVEs, source)
    """

    vm: VmKey
    interfaces: tuple[Interface, ...]
    plugged: bool
    forwarding: Forwarding
    target: Nve | None = None
    policy: RedirectPolicy = RedirectPolicy.AUTO
    accept_from: tuple[Nve, ...] = field(default=())

    def words(self) -> str:
        """This state for people, in one line."""
        if not self.plugged and self.forwarding is Forwarding.NONE:
            return "nothing"
        words = ["plugged"] if self.plugged else []
        to = f" to {self.target.nve_id}" if self.target else ""
        words.append(self.forwarding.value + to)
        if self.accept_from:
            words.append("accepts " + " ".join(nve.nve_id for nve in self.accept_from))
        return ", ".join(words)


def port_name(vm: VmKey, index: int) -> str:
    """The tap's name for interface `index`: the same at every NVE, at most 15 characters."""
    digest = hashlib.sha256(f"{vm.vni}/{vm.vm_id}".encode()).hexdigest()[:9]
    return f"vmt{digest}.{index}"
