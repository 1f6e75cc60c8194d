"""What a daemon offers to its API: plain methods, JSON-able answers (docs/api.md).

Each raises api.errors (NotFound, Conflict, BadRequest, Unavailable); other errors of the project
become 400 or 503 (api.errors.status_of).  Not here: HTTP.  Rests on wire.values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.values import VmKey

Json = dict[str, Any]


class EventReader(Protocol):
    """One who follows a daemon's events."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def is_cut_off(self) -> bool:
        """It did not keep up."""

    async def next(self, patience_s: float) -> Json | None:
        """The next event: {"id"?, "event", "ts_ns", …}; None if none came, or it is closed."""

    def waiting(self) -> Iterator[Json]:
        """What is there already."""

    def close(self) -> None: ...


class EventService(Protocol):
    """A daemon's events, as its API sees them."""

    def follow(
        self,
        after: str,
        kinds: frozenset[str],
        vm: tuple[int, str] | None,
        move: str,
        audit: bool,
    ) -> EventReader:
        """after: an id, "" for from now on, "0" for all that are kept; kinds, vm, move: which, if
        they are given; audit: also who asks the API.  Raises Unavailable."""


class DrainService(Protocol):
    """Drains and cordons of the manager, as its API sees them."""

    def drains(self) -> list[Json]:
        """All that are remembered, oldest first; without their VMs."""

    def drain(self, id: str) -> Json | None:
        """One with its VMs."""

    async def start_drain(self, nve: str, to: list[str], parallel: int, uncordon: bool) -> Json:
        """The drain, once it is durable; the one under way there, if there is one."""

    async def abort_drain(self, id: str) -> Json: ...

    async def wait_drain(self, id: str, seconds: float) -> Json | None:
        """The drain once it has ended (`ok` is not null), or as it is after so many seconds."""

    async def cordon(self, nve: str) -> Json: ...

    async def uncordon(self, nve: str) -> Json: ...


class ProtectionService(Protocol):
    """Warm standbys of the manager, as its API sees them."""

    def protected(self) -> list[Json]: ...

    async def protect(
        self,
        vm: VmKey,
        to: str,
        every_s: float,
        fail_over: bool,
        lease_s: float | None,
        at: str | None,
    ) -> Json:
        """The protection, once it is durable.  at: daily at this time of day, "03:00", UTC."""

    async def unprotect(self, vm: VmKey) -> Json: ...


class ManagerService(DrainService, EventService, ProtectionService, Protocol):
    """The manager, as its API sees it."""

    def status(self) -> Json: ...

    def bindings(self) -> list[Json]: ...

    def binding(self, vm: VmKey) -> Json | None: ...

    async def order_guest(self, vm: VmKey, verb: str, force: bool, grace_s: int | None) -> Json:
        """start, suspend, resume, stop or delete: the VM's binding, with the order in it."""

    async def release(self, vm: VmKey, fenced: str) -> Json:
        """The binding, once it is durable that it is thawed; or, with `fenced`, that people have
        said that this NVE's host is fenced: any NVE may have the VM then."""

    def lives(self) -> list[Json]:
        """The VMs that were asked for, each with its state."""

    def life(self, vm: VmKey) -> Json | None: ...

    def unbound(self) -> list[Json]:
        """Those of them that no NVE has, as bindings are."""

    async def create_vm(self, body: Json) -> Json:
        """Its life, once the offer is durable; body: as NEW_VM, unchecked but for its form."""

    async def confirm_vm(self, vm: VmKey, body: Json) -> Json: ...

    def onboarded(self) -> list[Json]: ...

    async def onboard(self, vm: VmKey, interfaces: object, nves: list[str]) -> Json:
        """What is on record of the VM, durable.  interfaces: as in a definition, unchecked."""

    async def offboard(self, vm: VmKey) -> Json: ...

    def groups(self) -> list[Json]: ...

    async def declare_group(self, name: str, vni: int, members: dict[str, int]) -> Json:
        """The load-shared group, durable.  members: VM-IDs and their numbers."""

    async def delete_group(self, name: str) -> Json: ...

    async def check(self, limit_s: float) -> Json:
        """Compare bindings and redirects with every NVE (docs/api.md)."""

    async def trace(self, address: str, start: str, seconds: float) -> Json:
        """Where packets for an address go, and what is wrong with that (docs/api.md).

        start: the node where they begin, "" for all nodes; seconds: how long a node may take.
        """

    def alarms(self) -> list[Json]: ...

    def nves(self) -> list[Json]: ...

    def routers(self) -> list[Json]: ...

    def routes(self) -> list[Json]: ...

    def moves(self) -> list[Json]:
        """All that are remembered, oldest first."""

    def move(self, id: str) -> Json | None: ...

    async def start_move(
        self, vm: VmKey, to: str, terms: MoveTerms = NO_TERMS, mode: str = ""
    ) -> Json:
        """The new move, once it is durable.  mode: "hot", "warm", "cold"; "": by the guest."""

    async def abort_move(self, id: str) -> Json:
        """The move, once it is durable that it is being given up."""

    async def wait_move(self, id: str, seconds: float) -> Json | None:
        """The move once it has ended (`ok` is not null), or as it is after so many seconds."""


class RouterService(Protocol):
    """A router, as its API sees it."""

    def status(self) -> Json: ...

    def routes(self) -> list[Json]: ...

    async def check(self, limit_s: float) -> Json:
        """Compare the record and the kernel."""

    def explain(self, address: str) -> list[Json]:
        """The rules and routes that lead an address there."""


class NaptService(Protocol):
    """A NAPT box, as its API sees it."""

    async def status(self) -> Json: ...

    def mappings(self) -> list[Json]:
        """One row a mapping: NVEs first, then VMs."""

    async def check(self, limit_s: float) -> Json:
        """Compare the record and the kernel."""


class NveService(Protocol):
    """An NVE, as its API sees it."""

    def status(self) -> Json: ...

    async def vms(self) -> list[Json]: ...

    async def start_vm(self, definition: Json, server: str = "") -> Json:
        """Define, start (at this server of the NVE) and attach; the VM once it is registered.

        definition: {"vm_id","vni","kind","vcpus","memory_mib","machine":{},
        "interfaces":[{"mac","addresses":[]}]}, unchecked but for vm_id and vni.
        """

    async def stop_vm(self, vm: VmKey) -> Json:
        """End the guest and deregister; the VM as it was left."""

    async def relocate_vm(self, vm: VmKey, server: str) -> Json:
        """Move it to another server of the NVE; the VM once it runs there."""

    async def expect_vm(self, definition: Json) -> Json:
        """Let a guest that other hands run (kind "external") arrive here; the VM with its ports."""

    async def unexpect_vm(self, vm: VmKey) -> Json: ...

    async def check(self, limit_s: float) -> Json:
        """Compare the list, the kernel and the hypervisors."""

    def alarms(self) -> list[Json]: ...
