"""The hypervisor driver for guests of a server that stands apart: its agent does the work.

Implements interface.Hypervisor and keeps its contract, whatever happens to the line: reports come
once and in order; what cannot be known is said to be unknown.  After a restart of the agent it
compares what it knew of each guest with what is there, and reports the difference as the server's
own driver would have.

Not here: the line (server_link.py), the agent (server_agent.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from ipaddress import ip_address
from typing import Any

from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.server_link import Call, ServerLink
from vmmobility.drivers.hypervisor.server_session import Message
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom
from vmmobility.errors import DecodeError, HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

CircuitOf = Callable[[str], int]
"""The number (VXLAN) of the circuit whose end at the NVE has this name.  Raises DataPlaneError."""


class Stage(Enum):
    """What a guest was doing when it was last heard of."""

    HERE = "here"
    WAITING = "waiting"
    COPYING = "copying"
    HANDED = "handed over"


_STAGES = {
    GuestEvent.STARTED: Stage.HERE,
    GuestEvent.RESUMED: Stage.HERE,
    GuestEvent.ARRIVED: Stage.HERE,
    GuestEvent.COMPLETED: Stage.HANDED,
}


class RemoteHypervisor:
    """The guests of one server.  Reports go to `listener`, called in the event loop; each one's
    detail names the server."""

    def __init__(self, link: ServerLink, listener: Listener, circuit_of: CircuitOf) -> None:
        self.link = link
        self._listener = listener
        self._circuit_of = circuit_of
        self._definitions: dict[VmKey, VmDefinition] = {}
        self._stages: dict[VmKey, Stage] = {}
        link.reported = self._reported
        link.restarted = self._restarted

    # ---- orders --------------------------------------------------------------------------------

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """See Hypervisor.adopt.  HypervisorError if the agent does not answer."""
        for definition in definitions:
            self._definitions[definition.vm] = definition
        call = self.link.begin("adopt", self._adoption(definitions), changes=False)
        return self._adopted(await self.link.end(call), definitions)

    def _adoption(self, wanted: Sequence[VmDefinition]) -> dict[str, Any]:
        return {"definitions": [definitions.encode(one).decode() for one in wanted]}

    def _adopted(self, result: Any, wanted: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        with self._understood("adopt"):
            found = {VmKey(int(vni), str(vm)): bool(running) for vni, vm, running in result}
        for definition in wanted:
            if definition.vm not in found:
                self._stages.pop(definition.vm, None)
            else:
                stage = Stage.HERE if found[definition.vm] else Stage.WAITING
                self._stages.setdefault(definition.vm, stage)
        return found

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        """See Hypervisor.start."""
        await self._bring_up("start", definition, ports, {"held": held})
        self._stages[definition.vm] = Stage.HERE

    async def keep(self, definition: VmDefinition) -> None:
        """See Hypervisor.keep."""
        await self.link.end(self.link.begin("keep", self._adoption([definition])))
        if definition.vm in self._stages:
            self._stages[definition.vm] = Stage.HERE

    async def stop(self, vm: VmKey) -> None:
        """See Hypervisor.stop.  Waits for the agent: what it was told may live until it answers."""
        # Its end is no news.
        self._stages.pop(vm, None)
        await self._order("stop", vm, patient=True)
        self._definitions.pop(vm, None)

    async def retire(self, definition: VmDefinition) -> None:
        """See Hypervisor.retire."""
        await self.link.end(self.link.begin("retire", self._adoption([definition])))

    async def shut_down(self, vm: VmKey) -> None:
        """See Hypervisor.shut_down."""
        await self._order("shut-down", vm)

    async def pause(self, vm: VmKey) -> None:
        """See Hypervisor.pause."""
        await self._order("pause", vm, patient=True)

    async def resume(self, vm: VmKey) -> None:
        """See Hypervisor.resume."""
        await self._order("resume", vm, patient=True)
        self._stages[vm] = Stage.HERE

    async def prepare_incoming(
        self,
        definition: VmDefinition,
        ports: Sequence[str],
        listen_address: str,
        terms: MoveTerms = NO_TERMS,
        *,
        held: bool = False,
        secret: str = "",
    ) -> tuple[str, int]:
        """See Hypervisor.prepare_incoming; the address is the server's own, whatever is asked."""
        told = {"terms": asdict(terms), "held": held, "secret": secret}
        result = await self._bring_up("prepare-incoming", definition, ports, told)
        with self._understood("prepare-incoming"):
            address, port = result
            at = str(ip_address(address)), int(port)
        self._stages.setdefault(definition.vm, Stage.WAITING)
        return at

    async def copy_out(
        self,
        vm: VmKey,
        address: str,
        port: int,
        terms: MoveTerms = NO_TERMS,
        *,
        secret: str = "",
    ) -> None:
        """See Hypervisor.copy_out."""
        before = self._stages.get(vm)
        self._stages[vm] = Stage.COPYING
        try:
            where: dict[str, Any] = {"address": address, "port": port, "terms": asdict(terms)}
            where["secret"] = secret
            await self._order("copy-out", vm, where, again=False)
        except HypervisorError:
            if before is not None:
                self._stages[vm] = before
            raise

    async def switch_over(self, vm: VmKey) -> None:
        """See Hypervisor.switch_over."""
        await self._order("switch-over", vm, again=False)

    async def proceed(self, vm: VmKey) -> None:
        """See Hypervisor.proceed."""
        await self._order("proceed", vm, again=False)

    async def cancel(self, vm: VmKey) -> None:
        """See Hypervisor.cancel.  Waits for the agent: only it can say that a guest never runs."""
        if self._stages.get(vm) is Stage.WAITING:
            del self._stages[vm]
        await self._order("cancel", vm, patient=True)

    async def announce(self, vm: VmKey) -> None:
        """See Hypervisor.announce."""
        await self._order("announce", vm)

    async def query(self, vm: VmKey) -> GuestLife:
        """See Hypervisor.query.  HypervisorError if the agent does not answer."""
        life = await self._order("query", vm, changes=False)
        with self._understood("query"):
            return GuestLife[life]

    async def receive_checkpoints(
        self, definition: VmDefinition, listen_address: str
    ) -> tuple[str, int, str, int]:
        """See Hypervisor.receive_checkpoints; the address is the server's own."""
        arguments = self._adoption([definition])
        call = self.link.begin("receive-checkpoints", arguments)
        result = await self.link.end(call)
        with self._understood("receive-checkpoints"):
            address, port, token, number = result
            return str(ip_address(address)), int(port), str(token), int(number)

    async def checkpoint(
        self, vm: VmKey, address: str, port: int, token: str, *, final: bool = False
    ) -> None:
        """See Hypervisor.checkpoint."""
        where = {"address": address, "port": port, "token": token, "final": final}
        await self._order("checkpoint", vm, {**where}, again=False)

    async def unprotect(self, vm: VmKey) -> None:
        """See Hypervisor.unprotect."""
        await self._order("unprotect", vm)

    async def activate(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """See Hypervisor.activate."""
        await self._bring_up("activate", definition, ports)
        self._stages[definition.vm] = Stage.HERE

    def arm(self, vm: VmKey, until: float | None) -> None:
        """A server's agent has no guard yet: nothing there outlives both daemons and the path."""
        if until is not None:
            raise HypervisorError(
                f"{vm}: a server apart has no guard that pauses its guests",
                "protect it with --no-fail-over",
            )

    async def drop_checkpoints(self, definition: VmDefinition) -> None:
        """See Hypervisor.drop_checkpoints."""
        await self.link.end(self.link.begin("drop-checkpoints", self._adoption([definition])))

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """See Hypervisor.watch."""
        await self._bring_up("watch", definition, ports)

    async def unwatch(self, vm: VmKey) -> None:
        """See Hypervisor.unwatch."""
        await self._order("unwatch", vm)
        self._stages.pop(vm, None)
        self._definitions.pop(vm, None)

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """See Hypervisor.orphans.  The agent also removes circuits that belong to none of them."""
        call = self.link.begin("orphans", {"known": [[vm.vni, vm.vm_id] for vm in known]})
        result = await self.link.end(call)
        with self._understood("orphans"):
            return [VmKey(int(vni), str(vm)) for vni, vm in result]

    @contextmanager
    def _understood(self, do: str) -> Iterator[None]:
        """An answer that makes no sense says nothing: HypervisorError."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise HypervisorError(
                f"the agent of {self.link.server.name} has answered {do} with nonsense: {error!r}",
                "run the same version on both nodes",
            ) from None

    async def room(self, used_vcpus: int) -> ServerRoom:
        """What VMs may have of the server.  HypervisorError if the agent does not answer.
        used_vcpus: of the guests there."""
        call = self.link.begin("measure", {"used_vcpus": used_vcpus}, changes=False)
        told, name = await self.link.end(call), self.link.server.name
        if told is None:
            return ServerRoom(name, True)
        host = HostCapacity(Resources(*told["total"]), Resources(*told["free"]))
        return ServerRoom(name, True, told["threads"], host)

    async def close(self) -> None:
        """Nothing is held: guests and agent go on."""

    async def _order(
        self,
        do: str,
        vm: VmKey,
        more: Mapping[str, Any] | None = None,
        *,
        again: bool = True,
        changes: bool = True,
        patient: bool = False,
    ) -> Any:
        arguments = {"vm": [vm.vni, vm.vm_id], **(more or {})}
        call = self.link.begin(do, arguments, again=again, changes=changes)
        return await self.link.end(call, patient=patient)

    async def _bring_up(
        self,
        do: str,
        definition: VmDefinition,
        ports: Sequence[str],
        more: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = {
            **(more or {}),
            "definition": definitions.encode(definition).decode(),
            "ports": [[port, self._circuit_of(port)] for port in ports],
        }
        self._definitions[definition.vm] = definition
        return await self.link.end(self.link.begin(do, arguments))

    # ---- reports -------------------------------------------------------------------------------

    def _reported(self, message: Message) -> None:
        """Raises DecodeError."""
        vm, event, detail, time_ns = report_of(message)
        if event is GuestEvent.GONE:
            self._stages.pop(vm, None)
        elif event is GuestEvent.FAILED and self._stages.get(vm) is Stage.COPYING:
            self._stages[vm] = Stage.HERE
        elif event in _STAGES:
            self._stages[vm] = _STAGES[event]
        self._tell(vm, event, detail, time_ns)

    def _tell(
        self, vm: VmKey, event: GuestEvent, detail: Mapping[str, Any], time_ns: int | None = None
    ) -> None:
        told = {**detail, "server": self.link.server.name}
        when = {} if time_ns is None else {"time_ns": time_ns}
        self._listener(GuestReport(vm, event, told, **when))

    # ---- an agent that has begun anew ----------------------------------------------------------

    def _restarted(self) -> None:
        known = list(self._definitions.values())
        before = dict(self._stages)
        call: Call = self.link.begin("adopt", self._adoption(known), changes=False)
        call.done.add_done_callback(lambda done: self._compare(done, known, before))

    def _compare(
        self, done: asyncio.Future[Any], known: list[VmDefinition], before: dict[VmKey, Stage]
    ) -> None:
        """What each guest has done meanwhile, as its driver would have reported it."""
        if done.cancelled() or done.exception() is not None:
            return  # asked again by whoever looks next: query() says that it is not known
        found = self._adopted(done.result(), known)
        for definition in known:
            vm = definition.vm
            if vm not in before or self._stages.get(vm, before[vm]) is not before[vm]:
                continue  # nothing was known of it, or it was ordered otherwise meanwhile
            self._compare_one(vm, before[vm], found.get(vm))

    def _compare_one(self, vm: VmKey, stage: Stage, running: bool | None) -> None:
        reason = f"the agent of {self.link.server.name} was restarted"
        failed = {"reason": reason, "running": bool(running)}
        if stage is Stage.WAITING and running:
            self._stages[vm] = Stage.HERE
            self._tell(vm, GuestEvent.RESUMED, {"reason": reason})
        elif stage is Stage.COPYING:
            self._stages[vm] = Stage.HERE
            self._tell(vm, GuestEvent.FAILED, failed)
        elif stage is Stage.WAITING and running is None:
            self._tell(vm, GuestEvent.FAILED, failed)
        if running is None:
            self._stages.pop(vm, None)
            self._tell(vm, GuestEvent.GONE, {"reason": reason})


def report_of(message: Message) -> tuple[VmKey, GuestEvent, dict[str, Any], int]:
    """What an agent reports, as the engine may hear it.  Raises DecodeError."""
    try:
        (vni, vm_id), detail, time_ns = message["vm"], message["detail"], message["time_ns"]
        event = GuestEvent(message["event"])
        # The log, the journal and other nodes are told of it.
        json.dumps([vm_id, detail], ensure_ascii=False, allow_nan=False).encode()
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError("bad-value", f"a server's report is none: {error!r}") from None
    if type(vni) is not int or not isinstance(vm_id, str) or type(time_ns) is not int:
        raise DecodeError("bad-value", "a server's report names no VM, or no time")
    if not isinstance(detail, dict):
        raise DecodeError("bad-value", f"a server's report {event.value} has no details")
    numbered = event is GuestEvent.CHECKPOINT_HELD or (
        event is GuestEvent.CHECKPOINT and detail.get("ok")
    )
    if numbered and type(detail.get("number")) is not int:
        raise DecodeError("bad-value", f"a server's report {event.value} has no number")
    if type(detail.get("age_ms", 0)) not in (int, float):
        raise DecodeError("bad-value", f"a server's report {event.value} has no age")
    return VmKey(vni, vm_id), event, detail, time_ns
