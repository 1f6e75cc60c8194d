"""The agent of a server that stands apart from its NVE: it does what the NVE orders.

It serves this host's hypervisor drivers to one NVE over TCP, plugs each guest's taps into circuits
to that NVE, and sends on what the guests do.  It decides nothing.  Guests and circuits outlive it.

Not here: circuits (drivers/linux/server_circuits.py), the frames (server_session.py), assembly
(daemon/server.py).
"""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Protocol

from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.interface import GuestEvent, GuestReport, Hypervisor
from vmmobility.drivers.hypervisor.server_session import (
    BROKEN,
    Connection,
    Message,
    Session,
    Who,
    greet_nve,
    new_instance,
)
from vmmobility.engine.capacity import ServerRoom
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import HypervisorError, VmMobilityError
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

INTERFACES_MOST = 16


class Circuits(Protocol):
    """The taps of this server's guests, each joined to its circuit."""

    def ensure(self, ports: Mapping[str, int]) -> None:
        """Make these taps and their circuits (numbers).  Raises DataPlaneError."""

    def remove(self, ports: Collection[str]) -> None:
        """Remove these, whether they exist or not."""

    def names(self) -> Collection[str]:
        """The taps that exist."""


class Look(Protocol):
    """Measures this host, in a thread.  used: vCPUs of the guests that are here."""

    def __call__(self, used: int) -> ServerRoom: ...


class Note(Protocol):
    """Logs an event of the daemon itself."""

    def __call__(self, name: str, **detail: Any) -> None: ...


class ServerAgent:
    """One server's agent.

    hypervisors: kind -> driver, whose listener is `report`; listen: where memory is expected
    secret_of: the secret of the pair's key of this number; look: None, nothing is measured
    """

    def __init__(
        self,
        name: str,
        nve: str,
        listen: str,
        circuits: Circuits,
        secret_of: Callable[[int], bytes | None],
        note: Note,
        look: Look | None = None,
    ) -> None:
        self._look = look
        self.hypervisors: Mapping[str, Hypervisor] = {}
        self.connected = False
        self.drops: defaultdict[str, int] = defaultdict(int)
        self._who = Who(name, nve, new_instance())
        self._listen = listen
        self._circuits = circuits
        self._secret_of = secret_of
        self._note = note
        self._kinds: dict[VmKey, str] = {}
        self._locks: defaultdict[VmKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._busy: set[str] = set()  # ports of guests that are being brought up
        self._session: Session | None = None
        self._current: Connection | None = None
        self._group: asyncio.TaskGroup | None = None

    # ---- the NVE -------------------------------------------------------------------------------

    async def run(self, server: asyncio.Server) -> None:
        """Serve until cancelled; guests go on."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await server.serve_forever()
        finally:
            self._group = None
            if self._current is not None:
                await self._current.close()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its greeting to its end."""
        try:
            connection = await greet_nve(
                reader, writer, self._who, self._secret_of, self._known_session
            )
            await connection.prove()
            if self._group is not None:
                await self._converse(connection)
        except BROKEN as error:
            reason = getattr(error, "reason", "")
            if reason:
                self.drops[reason] += 1
                self._note("drop", reason=reason, words=str(error))
        finally:
            writer.close()

    def _known_session(self, instance: str) -> Session | None:
        known = self._session
        return known if known is not None and known.peer == instance else None

    async def _converse(self, connection: Connection) -> None:
        """It is the NVE for certain: an older connection of it is over, also one that hangs."""
        instance = connection.theirs.instance
        session = self._known_session(instance)
        if session is None:
            session = self._session = Session(instance)
        if self._current is not None:
            await self._current.close()
        self._current, self.connected = connection, True
        self._note("nve.connected", nve=self._who.peer)
        try:
            await connection.run(session, lambda message: self._hear(session, message))
        except BROKEN as error:
            if self._current is connection:
                self._current, self.connected = None, False
                reason = str(error) or type(error).__name__
                self._note("nve.lost", nve=self._who.peer, reason=reason)
            raise

    def report(self, report: GuestReport) -> None:
        """A driver's listener.  Without an NVE nobody is told: it asks when it comes."""
        vm = report.vm
        if report.event is GuestEvent.GONE and self._group is not None:
            self._group.create_task(self._gone(vm), name=f"circuits of {vm}")
        if self._session is not None:
            self._session.post(
                {
                    "vm": [vm.vni, vm.vm_id],
                    "event": report.event.value,
                    "detail": report.detail,
                    "time_ns": report.time_ns,
                }
            )

    def _hear(self, session: Session, message: Message) -> None:
        assert self._group is not None
        number = session.heard
        do, arguments = message.get("do"), message.get("with")
        self._group.create_task(self._answer(session, number, do, arguments), name=f"order {do}")

    async def _answer(self, session: Session, number: int, do: Any, arguments: Any) -> None:
        try:
            handler = self._handlers.get(do)
            if handler is None:
                raise HypervisorError(f"no order {do!r} here", "run the same version on both nodes")
            answer = {"answer": number, "result": await handler(self, arguments)}
        except VmMobilityError as error:
            answer = {"answer": number, "error": error.message, "remedy": error.remedy}
        except Exception as error:
            if not isinstance(error, OSError):  # nonsense, or a defect of ours: the agent lives on
                shown = "".join(traceback.format_exception(error))
                self._note("order.defect", order=str(do), traceback=shown)
            words = f"{do}: {type(error).__name__}: {error}"
            answer = {"answer": number, "error": words, "remedy": ""}
        if session is self._session:
            session.post(answer)

    # ---- orders --------------------------------------------------------------------------------

    async def _adopt(self, arguments: Any) -> Any:
        wanted = [definitions.decode(text.encode()) for text in arguments["definitions"]]
        found = []
        for definition in wanted:
            vm = definition.vm
            async with self._locks[vm]:
                self._kinds[vm] = definition.kind
                here = await self._driver(vm, definition.kind).adopt([definition])
                if vm not in here:
                    self._circuits.remove(self._ports_of(vm))
                found += [[one.vni, one.vm_id, running] for one, running in here.items()]
        return found

    async def _bring_up(self, arguments: Any, act: str) -> Any:
        definition = definitions.decode(arguments["definition"].encode())
        ports = {str(name): int(circuit) for name, circuit in arguments["ports"]}
        vm = definition.vm
        async with self._locks[vm]:
            await self._check_kind(vm, definition.kind)
            self._kinds[vm] = definition.kind
            driver = self._driver(vm, definition.kind)
            self._busy.update(ports)
            held = {"held": True} if arguments.get("held") else {}
            try:
                self._circuits.ensure(ports)
                if act == "prepare-incoming":
                    terms = MoveTerms(**arguments["terms"])
                    names = list(ports)
                    return await driver.prepare_incoming(
                        definition, names, self._listen, terms, secret=_secret(arguments), **held
                    )
                if act == "start":
                    await driver.start(definition, list(ports), **held)
                    return None
                await getattr(driver, act)(definition, list(ports))
                return None
            except BaseException:
                await self._clear(vm, driver)
                raise
            finally:
                self._busy.difference_update(ports)

    async def _gone(self, vm: VmKey) -> None:
        async with self._locks[vm]:  # one that is being brought up anew keeps its circuits
            for driver in self._drivers(vm):
                await self._clear(vm, driver)

    async def _clear(self, vm: VmKey, driver: Hypervisor) -> None:
        """Remove the circuits of a guest that is not here."""
        try:
            here = await driver.query(vm) is not GuestLife.NONE
        except (VmMobilityError, OSError):
            here = True  # it may live
        if not here:
            self._circuits.remove(self._ports_of(vm))

    async def _check_kind(self, vm: VmKey, kind: str) -> None:
        before = self._kinds.get(vm, kind)
        if before == kind or before not in self.hypervisors:
            return
        if await self.hypervisors[before].query(vm) is not GuestLife.NONE:
            raise HypervisorError(
                f"{vm}: it lives here already, of kind {before!r}", "end that guest first"
            )

    async def _start(self, arguments: Any) -> Any:
        return await self._bring_up(arguments, "start")

    async def _prepare_incoming(self, arguments: Any) -> Any:
        return await self._bring_up(arguments, "prepare-incoming")

    async def _watch(self, arguments: Any) -> Any:
        return await self._bring_up(arguments, "watch")

    async def _activate(self, arguments: Any) -> Any:
        return await self._bring_up(arguments, "activate")

    async def _receive_checkpoints(self, arguments: Any) -> Any:
        definition = definitions.decode(arguments["definitions"][0].encode())
        driver = self._driver(definition.vm, definition.kind)
        return await driver.receive_checkpoints(definition, self._listen)

    async def _keep(self, arguments: Any) -> Any:
        definition = definitions.decode(arguments["definitions"][0].encode())
        async with self._locks[definition.vm]:
            await self._driver(definition.vm, definition.kind).keep(definition)

    async def _retire(self, arguments: Any) -> Any:
        definition = definitions.decode(arguments["definitions"][0].encode())
        await self._driver(definition.vm, definition.kind).retire(definition)

    async def _drop_checkpoints(self, arguments: Any) -> Any:
        definition = definitions.decode(arguments["definitions"][0].encode())
        await self._driver(definition.vm, definition.kind).drop_checkpoints(definition)

    async def _checkpoint(self, arguments: Any) -> Any:
        vm, final = VmKey(*arguments["vm"]), bool(arguments["final"])
        where = str(arguments["address"]), int(arguments["port"]), str(arguments["token"])
        await self._one(vm).checkpoint(vm, *where, final=final)

    async def _unprotect(self, arguments: Any) -> Any:
        vm = VmKey(*arguments["vm"])
        for driver in self._drivers(vm):
            await driver.unprotect(vm)

    async def _stop(self, arguments: Any) -> Any:
        vm = VmKey(*arguments["vm"])
        async with self._locks[vm]:
            for driver in self._drivers(vm):
                await driver.stop(vm)
            if self._kinds.get(vm) != "external":  # other hands may still have its taps open
                self._circuits.remove(self._ports_of(vm))

    async def _unwatch(self, arguments: Any) -> Any:
        vm = VmKey(*arguments["vm"])
        async with self._locks[vm]:
            await self._one(vm).unwatch(vm)
            self._circuits.remove(self._ports_of(vm))

    async def _cancel(self, arguments: Any) -> Any:
        vm = VmKey(*arguments["vm"])
        async with self._locks[vm]:
            for driver in self._drivers(vm):
                await driver.cancel(vm)
                await self._clear(vm, driver)

    async def _copy_out(self, arguments: Any) -> Any:
        vm, address, port = VmKey(*arguments["vm"]), arguments["address"], arguments["port"]
        async with self._locks[vm]:
            terms = MoveTerms(**arguments["terms"])
            secret = _secret(arguments)
            await self._one(vm).copy_out(vm, str(address), int(port), terms, secret=secret)

    async def _query(self, arguments: Any) -> Any:
        vm = VmKey(*arguments["vm"])
        lives = [await driver.query(vm) for driver in self._drivers(vm)]
        return next((life for life in lives if life is not GuestLife.NONE), GuestLife.NONE).name

    async def _orphans(self, arguments: Any) -> Any:
        known = [VmKey(*vm) for vm in arguments["known"]]
        found: list[VmKey] = []
        for kind, driver in self.hypervisors.items():
            for vm in await driver.orphans(known):
                self._kinds[vm] = kind
                found.append(vm)
        used = {port for vm in (*known, *found) for port in self._ports_of(vm)} | self._busy
        self._circuits.remove([name for name in self._circuits.names() if name not in used])
        return [[vm.vni, vm.vm_id] for vm in found]

    async def _measure(self, arguments: Any) -> Any:
        if self._look is None:
            return None
        found = await asyncio.to_thread(self._look, int(arguments["used_vcpus"]))
        return {
            "threads": found.threads,
            "total": list(astuple(found.host.total)),
            "free": list(astuple(found.host.free)),
        }

    @staticmethod
    def _simple(act: str) -> Callable[[ServerAgent, Any], Awaitable[Any]]:
        """An order of a guest that is here, with nothing but its name."""

        async def order(self: ServerAgent, arguments: Any) -> None:
            vm = VmKey(*arguments["vm"])
            async with self._locks[vm]:
                await getattr(self._one(vm), act)(vm)

        return order

    # ---- whose guest it is ---------------------------------------------------------------------

    def _driver(self, vm: VmKey, kind: str) -> Hypervisor:
        driver = self.hypervisors.get(kind)
        if driver is None:
            known = ", ".join(self.hypervisors)
            raise HypervisorError(f"{vm}: no hypervisor for kind {kind!r} here", f"have: {known}")
        return driver

    def _one(self, vm: VmKey) -> Hypervisor:
        if vm not in self._kinds:
            raise HypervisorError(f"{vm}: no guest of it is known here", "start it first")
        return self._driver(vm, self._kinds[vm])

    def _drivers(self, vm: VmKey) -> Sequence[Hypervisor]:
        """The one that has the guest; all where it is not known which."""
        driver = self.hypervisors.get(self._kinds.get(vm, ""))
        own = [one for kind, one in self.hypervisors.items() if kind != "external"]
        return own if driver is None else [driver]

    @staticmethod
    def _ports_of(vm: VmKey) -> list[str]:
        return [port_name(vm, index) for index in range(INTERFACES_MOST)]

    _handlers: Mapping[str, Callable[[ServerAgent, Any], Awaitable[Any]]] = {
        "adopt": _adopt,
        "start": _start,
        "prepare-incoming": _prepare_incoming,
        "watch": _watch,
        "keep": _keep,
        "activate": _activate,
        "receive-checkpoints": _receive_checkpoints,
        "retire": _retire,
        "drop-checkpoints": _drop_checkpoints,
        "checkpoint": _checkpoint,
        "unprotect": _unprotect,
        "stop": _stop,
        "unwatch": _unwatch,
        "cancel": _cancel,
        "copy-out": _copy_out,
        "query": _query,
        "orphans": _orphans,
        "measure": _measure,
        "shut-down": _simple("shut_down"),
        "pause": _simple("pause"),
        "resume": _simple("resume"),
        "switch-over": _simple("switch_over"),
        "proceed": _simple("proceed"),
        "announce": _simple("announce"),
    }


def _secret(arguments: Any) -> str:
    return str(arguments.get("secret", ""))
