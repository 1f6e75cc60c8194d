"""The NVE's desk for hypervisor orders: each VM's orders one after another, VMs side by side.

It knows which hypervisor a VM's kind needs.  Not here: what to order (engine/nve.py).
"""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.interface import Hypervisor, VmDefinition
from vmmobility.engine.dataplane import port_name
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.errors import DecodeError, HypervisorError, VmMobilityError
from vmmobility.wire.move_terms import NO_TERMS
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

LOOK_S = 0.1  # a guest that shuts itself down is looked at so often

Done = Callable[[VmKey, Order, Mapping[str, Any], str], None]
Refuse = Callable[[VmDefinition, str | None], None]


# What needs nothing to be done where nothing was ever brought up.
IN_VAIN = (Order.STOP, Order.CANCEL, Order.UNWATCH, Order.UNPROTECT, Order.DROP_STANDBY)
BRINGING_UP = (
    Order.START, Order.KEEP, Order.PREPARE_INCOMING, Order.WATCH, Order.RECEIVE, Order.ACTIVATE
)  # fmt: skip


class Note(Protocol):
    """Logs an event of the daemon itself."""

    def __call__(self, name: str, **detail: Any) -> None: ...


class HypervisorDesk:
    """Carries out HypervisorOrder outputs.  `done(vm, order, result, error)` gets each end.

    hypervisors: kind -> driver, of this host; servers: name -> driver, of servers that stand apart;
    note: as EventLog.note; refuse: what may not be brought up, and where (a server, or None), is a
    HypervisorError of it
    """

    def __init__(
        self,
        hypervisors: Mapping[str, Hypervisor],
        group: asyncio.TaskGroup,
        done: Done,
        note: Note,
        servers: Mapping[str, Hypervisor] | None = None,
        refuse: Refuse = lambda definition, place: None,
    ) -> None:
        self._hypervisors = hypervisors
        self._servers = servers or {}
        self._places: dict[VmKey, str] = {}  # of the order under way, or the last one
        self._known_at: defaultdict[VmKey, set[str]] = defaultdict(set)
        self._group = group
        self._done = done
        self._note = note
        self._refuse = refuse
        self._kinds: dict[VmKey, str] = {}
        self._queues: dict[VmKey, deque[HypervisorOrder]] = {}
        self._hurry: dict[VmKey, asyncio.Event] = {}  # of guests that are shutting themselves down

    async def adopt(
        self, known: Mapping[VmKey, bytes], places: Mapping[VmKey, Sequence[str]] | None = None
    ) -> dict[VmKey, bool]:
        """After a restart: which of these VMs' guests live here, and whether they run.

        places: the servers of each VM that is at any; the first one's answer counts.  A guest that
        cannot be asked counts as held (False) and is noted; the others are found.
        """
        for vm, servers in (places or {}).items():
            self._places[vm] = servers[0]
            self._known_at[vm].update(servers)
        here = await asyncio.gather(*(self._adopt(vm, known[vm]) for vm in known if known[vm]))
        return {vm: running for found in here for vm, running in found.items()}

    async def _adopt(self, vm: VmKey, data: bytes) -> dict[VmKey, bool]:
        self._kinds[vm] = ""  # something of it may be here
        try:
            definition = definitions.decode(data)
            self._kinds[vm] = definition.kind
            for name in self._known_at[vm] - {self._places.get(vm)}:
                if name in self._servers:
                    await self._servers[name].adopt([definition])
            return await self._hypervisor(vm).adopt([definition])
        except Exception as problem:
            # Not left out: that would say "gone", and its guest, perhaps alive, lost its binding.
            self._note_unclear(vm, problem)
            return {vm: False}

    async def sweep(self, known: Collection[VmKey], *, spare: bool) -> None:
        """After adopt(): end what an earlier daemon has left running of VMs that nobody knows here,
        as after a crash between the last record of a VM and its end.

        spare: the records may be incomplete, so its guests are kept and only noted
        """
        here = [vm for vm in known if vm not in self._places]
        for kind, hypervisor in self._hypervisors.items():
            for vm in await hypervisor.orphans(here):
                self._kinds[vm] = kind  # it lives: whoever asks must hear so
                await self._end_orphan(vm, hypervisor, spare=spare, kind=kind)

    async def sweep_server(self, name: str, known: Collection[VmKey], *, spare: bool) -> None:
        """The same at one server.  Raises HypervisorError while its agent does not answer."""
        server = self._servers[name]
        at = [vm for vm in known if name in self._known_at[vm]]
        for vm in await server.orphans(at):
            # One that was prepared or started while the agent was asked is none.
            if name not in self._known_at[vm]:
                await self._end_orphan(vm, server, spare=spare, server=name)

    async def _end_orphan(
        self, vm: VmKey, hypervisor: Hypervisor, *, spare: bool, **where: str
    ) -> None:
        try:
            if not spare:
                await hypervisor.stop(vm)
        except Exception as problem:
            self._note_unclear(vm, problem)
            return
        self._note("guest.orphan", vni=vm.vni, vm=vm.vm_id, **where, ended=not spare)

    def take(self, order: HypervisorOrder) -> None:
        """Queue one order; a worker lives while its VM has any.  A guest that is to be ended, or
        stilled, at once is not waited for; nor does ARM wait for anything."""
        if order.vm in self._hurry and order.order in (Order.STOP, Order.PAUSE):
            self._hurry[order.vm].set()
        if order.order is Order.ARM:
            self._arm(order)
            return
        if "server" in order.arguments:
            self._known_at[order.vm].add(order.arguments["server"])
        queue = self._queues.get(order.vm)
        if queue is None:
            queue = self._queues[order.vm] = deque()
            self._group.create_task(self._work(order.vm, queue), name=f"orders of {order.vm}")
        queue.append(order)

    def _arm(self, order: HypervisorOrder) -> None:
        error = ""
        try:
            if self._kinds.get(order.vm):
                self._hypervisor(order.vm).arm(order.vm, order.arguments["until"])
        except Exception as problem:
            error = self._told(order, problem)
        self._done(order.vm, order.order, {}, error)

    async def _work(self, vm: VmKey, queue: deque[HypervisorOrder]) -> None:
        while queue:
            order = queue.popleft()
            if "server" in order.arguments:
                self._places[vm] = order.arguments["server"]
            else:
                self._places.pop(vm, None)
            error, result = "", {}
            try:
                result = await self._carry_out(order)
            except Exception as problem:
                # One guest's trouble is not the others': it is the order's answer.
                error = self._told(order, problem)
            if "server" in order.arguments:
                result = {**result, "server": order.arguments["server"]}
            self._done(order.vm, order.order, result, error)
        del self._queues[vm]

    def _told(self, order: HypervisorOrder, problem: Exception) -> str:
        """An order's error.  What nobody has foreseen is a defect of ours: the log shows where, but
        a daemon that ended of it would be asked the same again after its next start."""
        if not isinstance(problem, VmMobilityError | OSError):
            self._note_defect(order.vm, problem, order=order.order.value)
            told = f"a defect of this daemon, see its log: {type(problem).__name__}: {problem}"
            return told.encode(errors="backslashreplace").decode()  # it goes into a message
        return str(problem) or type(problem).__name__

    def _note_defect(self, vm: VmKey, problem: Exception, **where: str) -> None:
        shown = "".join(traceback.format_exception(problem))
        self._note("order.defect", vni=vm.vni, vm=vm.vm_id, **where, traceback=shown)

    def _hypervisor(self, vm: VmKey) -> Hypervisor:
        place = self._places.get(vm)
        if place is not None:
            if place not in self._servers:
                raise HypervisorError(
                    f"{vm}: it is at {place}, which is no server of this NVE any more",
                    "put its [[server]] back, and restart the NVE",
                )
            return self._servers[place]
        kind = self._kinds.get(vm, "")
        hypervisor = self._hypervisors.get(kind)
        if hypervisor is None:
            known = ", ".join(self._hypervisors)
            remedy = f"have: {known}"
            if kind == "netns":
                remedy += "; a lab's host sets netns = true under [hypervisor]"
            raise HypervisorError(f"{vm}: no hypervisor for kind {kind!r} here", remedy)
        return hypervisor

    async def _carry_out(self, order: HypervisorOrder) -> dict[str, Any]:
        vm, arguments = order.vm, order.arguments
        if order.order in BRINGING_UP:
            return await self._bring_up(order)
        if order.order is Order.QUERY:
            return await self._query(vm)
        if order.order is Order.RETIRE:
            await self._retire(arguments["definition"])
            return {}
        at = vm in self._kinds or vm in self._places
        if not at and order.order in IN_VAIN:
            return {}  # nothing was ever brought up here
        unknown = vm not in self._places and self._kinds.get(vm) not in self._hypervisors
        if order.order is Order.STOP and unknown:
            for each in self._hypervisors.values():  # adopt() could not tell whose it is
                await each.stop(vm)
            return {}
        hypervisor = self._hypervisor(vm)
        match order.order:
            case Order.STOP:
                if arguments.get("grace_s"):
                    await self._shut_down(hypervisor, vm, arguments["grace_s"])
                await hypervisor.stop(vm)
            case Order.PAUSE:
                await hypervisor.pause(vm)
            case Order.RESUME:
                await hypervisor.resume(vm)
            case Order.COPY_OUT:
                terms, secret = arguments.get("terms", NO_TERMS), arguments.get("secret", "")
                address, port = arguments["address"], arguments["port"]
                await hypervisor.copy_out(vm, address, port, terms, secret=secret)
            case Order.SWITCH_OVER:
                await hypervisor.switch_over(vm)
            case Order.PROCEED:
                await hypervisor.proceed(vm)
            case Order.CANCEL:
                await hypervisor.cancel(vm)
            case Order.ANNOUNCE:
                await hypervisor.announce(vm)
            case Order.UNWATCH:
                await hypervisor.unwatch(vm)
            case Order.CHECKPOINT:
                await hypervisor.checkpoint(vm, **arguments)
            case Order.UNPROTECT:
                await hypervisor.unprotect(vm)
            case Order.DROP_STANDBY:
                await hypervisor.drop_checkpoints(definitions.decode(arguments["definition"]))
        return {}

    async def _retire(self, encoded: bytes) -> None:
        """Nothing of it may be known here: its machine has lost its power since."""
        definition = definitions.decode(encoded)
        if definition.vm in self._places or definition.vm in self._kinds:
            await self._hypervisor(definition.vm).retire(definition)
        elif definition.kind in self._hypervisors:
            await self._hypervisors[definition.kind].retire(definition)

    async def _shut_down(self, hypervisor: Hypervisor, vm: VmKey, grace_s: float) -> None:
        """Let the guest end by itself, for at most so long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        hurry = self._hurry[vm] = asyncio.Event()
        try:
            await hypervisor.shut_down(vm)
            while not hurry.is_set() and loop.time() < deadline:
                if await hypervisor.query(vm) is GuestLife.NONE:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), LOOK_S)
        except HypervisorError as problem:
            self._note("guest.no-shutdown", vni=vm.vni, vm=vm.vm_id, reason=_reason(problem))
        finally:
            del self._hurry[vm]

    async def _bring_up(self, order: HypervisorOrder) -> dict[str, Any]:
        try:
            definition = definitions.decode(order.arguments["definition"])
        except DecodeError as error:
            raise HypervisorError(str(error), "correct the VM's definition") from error
        if definition.vm != order.vm:
            raise HypervisorError(f"{order.vm}: its definition is of VM {definition.vm}")
        self._refuse(definition, self._places.get(order.vm))
        await self._check_kind(order.vm, definition.kind)
        self._kinds[order.vm] = definition.kind
        hypervisor = self._hypervisor(order.vm)
        ports = [port_name(order.vm, index) for index in range(len(definition.interfaces))]
        if order.order is Order.WATCH:
            await hypervisor.watch(definition, ports)
            return {"ports": ports}
        held = {"held": True} if order.arguments.get("held") else {}
        if order.order is Order.START:
            await hypervisor.start(definition, ports, **held)
            return {}
        if order.order is Order.KEEP:
            await hypervisor.keep(definition)
            return {}
        if order.order is Order.ACTIVATE:
            await hypervisor.activate(definition, ports)
            return {}
        if order.order is Order.RECEIVE:
            address, port, token, number = await hypervisor.receive_checkpoints(
                definition, order.arguments["address"]
            )
            return {"address": address, "port": port, "token": token, "number": number}
        terms = order.arguments.get("terms", NO_TERMS)
        address, port = await hypervisor.prepare_incoming(
            definition,
            ports,
            order.arguments["address"],
            terms,
            secret=order.arguments.get("secret", ""),
            **held,
        )
        return {"address": address, "port": port}

    async def _check_kind(self, vm: VmKey, kind: str) -> None:
        """A guest that lives under another kind would be lost from sight, and run on."""
        before = self._kinds.get(vm, kind)
        if vm in self._places or before == kind or before not in self._hypervisors:
            return
        if await self._hypervisors[before].query(vm) is not GuestLife.NONE:
            raise HypervisorError(
                f"{vm}: it lives here already, of kind {before!r}", "end that guest first"
            )

    async def _query(self, vm: VmKey) -> dict[str, Any]:
        """Never an error: a guest that cannot be asked may live, and so is held to be here."""
        if vm not in self._kinds and vm not in self._places:
            return {"life": GuestLife.NONE.name.lower()}
        try:
            life = await self._hypervisor(vm).query(vm)
        except Exception as problem:
            self._note_unclear(vm, problem)
            return {"life": GuestLife.HELD.name.lower(), "note": _reason(problem)}
        return {"life": life.name.lower()}

    def _note_unclear(self, vm: VmKey, problem: Exception) -> None:
        if not isinstance(problem, VmMobilityError | OSError):
            self._note_defect(vm, problem)
        self._note(
            "guest.unclear",
            vni=vm.vni,
            vm=vm.vm_id,
            reason=_reason(problem),
            remedy=getattr(problem, "remedy", "") or "stop the VM, or its process by hand",
        )


def _reason(problem: Exception) -> str:
    return getattr(problem, "message", "") or str(problem) or type(problem).__name__
