"""What an NVE's engine wants of the data plane, one value a VM: desired state, not deltas.

The driver (drivers/linux) makes it so and reports what it could not.  Not here: how.
Rests on wire.values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from vmmobility.wire.values import Interface, Nve, Prefix, VmKey


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


class Outside(Enum):
    """What becomes of packets from outside the data centres where REDIRECT is by tunnel.

    Section 3: "Tunneling MUST NOT be used between a VM located in a data center and a host in
    some other site".
    """

    DROP = "drop"  # they are dropped here, and counted
    QUEUE = "queue"  # to the VM's own taps, where they wait for the guest that is to resume here


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
    outside:     what becomes of packets from outside the data centres, where REDIRECT is by tunnel
    server:      the server that its guest's frames go to, where the NVE stands apart; "": its taps
                 are here
    sends:       servers besides whose frames of it are taken, too (it moves from one to another)
    """

    vm: VmKey
    interfaces: tuple[Interface, ...]
    plugged: bool
    forwarding: Forwarding
    target: Nve | None = None
    policy: RedirectPolicy = RedirectPolicy.AUTO
    accept_from: tuple[Nve, ...] = field(default=())
    outside: Outside = Outside.DROP
    server: str = ""
    sends: tuple[str, ...] = ()

    def words(self) -> str:
        """This state for people, in one line."""
        if not self.plugged and self.forwarding is Forwarding.NONE:
            return "nothing"
        at = f" at {self.server}" if self.server else ""
        words = ["plugged" + at] if self.plugged else []
        to = f" to {self.target.nve_id}" if self.target else ""
        words.append(self.forwarding.value + to)
        if self.outside is not Outside.DROP:
            words.append(f"outside: {self.outside.value}")
        if self.accept_from:
            words.append("accepts " + " ".join(nve.nve_id for nve in self.accept_from))
        return ", ".join(words)


def outside_of(prefixes: Iterable[Prefix], dc_prefixes: Sequence[Prefix]) -> list[Prefix]:
    """Those that lie in no data centre prefix; none where no data centre prefix is known."""
    if not dc_prefixes:
        return []
    return [
        prefix
        for prefix in prefixes
        if not any(
            dc.version == prefix.version
            and dc.prefixlen <= prefix.prefixlen
            and dc.overlaps(prefix)
            for dc in dc_prefixes
        )
    ]


def port_name(vm: VmKey, index: int) -> str:
    """The tap's name for interface `index`: the same at every NVE, at most 15 characters."""
    digest = hashlib.sha256(f"{vm.vni}/{vm.vm_id}".encode()).hexdigest()[:9]
    return f"vmt{digest}.{index}"
