"""The light hypervisor of the lab: a VM of kind "netns" is a namespace behind a card process.

LightHypervisor keeps the Hypervisor contract with the same events in the same order as QEMU; the
card (light_nic.py) does the work and outlives the daemon.  machine.namespace names the VM's
namespace, made beforehand with taps eth0, eth1 … for its interfaces.  Not for production: the
VM's processes never stop and its memory is not copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor import private_files
from vmmobility.drivers.hypervisor.checkpoint_guests import Standbys
from vmmobility.drivers.hypervisor.checkpoint_light import LightCheckpoints
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
    not_watchable,
)
from vmmobility.drivers.hypervisor.light_nic import Spec
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import GuestLife
from vmmobility.wire.values import VmKey

_START_S = 60.0  # a card that dies is noticed at once; an emulated CPU may need most of it
_ANSWER_S = 15.0
_POLL_S = 0.02
_RUNNING = ("running", "converged", "about-to-stop")
_LIVES = {
    **dict.fromkeys(_RUNNING, GuestLife.RUNNING),
    "waiting": GuestLife.HELD,
    "paused": GuestLife.HELD,
    "arrived": GuestLife.HELD,
    "handed": GuestLife.DEPARTED,
}


class _CardClient(asyncio.Protocol):
    """The daemon's conversation with one card."""

    def __init__(self, vm: VmKey, control: Path, listener: Listener) -> None:
        self.vm = vm
        self.control = control
        self.state = ""
        self.port = 0
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._ending = False
        self._lost = asyncio.Event()

    async def refresh(self) -> None:
        """Learn the card's state, connecting to its socket first if need be."""
        if self._transport is None:
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_unix_connection(lambda: self, str(self.control))
        await self.order("state")

    def data_received(self, data: bytes) -> None:
        """Lines from the card: answers and events."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "answer" in message:
                self.state, self.port = message["state"], message["port"]
                future = self._answers.pop(message["answer"], None)
                if future is not None and not future.done():
                    future.set_result(message)
            else:
                self._report(message)

    def connection_lost(self, error: Exception | None) -> None:
        """The card has ended; GONE unless that was expected."""
        self._transport = None
        self._lost.set()
        for future in self._answers.values():
            if not future.done():
                future.set_result({"error": "its network card has ended"})
        if not self._ending and self.state:  # else nobody has heard of it yet
            self._ending = True
            if self.state == "waiting":
                detail = {"reason": "its card ended", "running": False}
                self._listener(GuestReport(self.vm, GuestEvent.FAILED, detail))
            self._listener(GuestReport(self.vm, GuestEvent.GONE, {"reason": "its card ended"}))

    def _report(self, message: dict[str, Any]) -> None:
        event = GuestEvent(message["event"])
        if event is GuestEvent.RESUMED:
            self.state = "arrived" if message["detail"].get("held") else "running"
        if event is GuestEvent.FAILED and self.state == "waiting":
            self.state = "ended"  # a waiting card ends with its move
        self._listener(GuestReport(self.vm, event, message["detail"], message["time_ns"]))

    async def order(self, do: str, **arguments: Any) -> None:
        """Tell the card something and wait for its answer.  Raises HypervisorError."""
        if self._transport is None:
            raise HypervisorError(f"{self.vm}: no network card", "start the VM first")
        waiting_ends = do == "cancel" and self.state == "waiting"
        self._ending = self._ending or do == "stop" or waiting_ends
        self._number += 1
        future = asyncio.get_running_loop().create_future()
        self._answers[self._number] = future
        words = {"do": do, "number": self._number, **arguments}
        self._transport.write(json.dumps(words).encode() + b"\n")
        try:
            answer = await asyncio.wait_for(future, _ANSWER_S)
        except TimeoutError as error:
            raise HypervisorError(f"{self.vm}: {do}: its card does not answer",
                                  "look for its light_nic process") from error  # fmt: skip
        if answer["error"] and do != "stop":
            raise HypervisorError(f"{self.vm}: {do}: {answer['error']}", "is the peer reachable?")

    async def end(self) -> None:
        """End the card; on return it is gone, and its sockets' names with it."""
        with contextlib.suppress(HypervisorError, TimeoutError):
            await self.order("stop")
            await asyncio.wait_for(self._lost.wait(), _START_S)

    @property
    def alive(self) -> bool:
        """Whether the conversation goes on."""
        return self._transport is not None and self.state != "ended"

    def close(self) -> None:
        """Let go of the card, leaving it running."""
        self._ending = True
        if self._transport is not None:
            self._transport.close()
            self._transport = None


class LightHypervisor(LightCheckpoints):
    """Light VMs of this node.  Reports go to `listener`, called in the event loop."""

    def __init__(self, state_dir: Path, listener: Listener, streams: Streams | None = None) -> None:
        self._folder = state_dir.absolute() / "light"
        self._listener = listener
        self._cards: dict[VmKey, _CardClient] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._taking = {}
        stores = self._folder / "standby"
        usual = QemuSettings()
        self._streams = streams or Streams.of(usual)
        self._standbys = Standbys(stores, stores, listener, usual.ports, self._streams)

    async def adopt(self, definitions: Sequence[VmDefinition]) -> dict[VmKey, bool]:
        """Reconnect to the cards that live; VM -> is it running here."""
        found: dict[VmKey, bool] = {}
        for definition in definitions:
            if definition.kind != "netns":
                continue
            client = self._living(definition.vm) or self._client(definition.vm)
            try:
                await client.refresh()
            except (OSError, HypervisorError):
                mute = client.alive
                client.close()
                if mute:
                    raise
                continue
            self._cards[definition.vm] = client
            if client.state == "arrived":  # while nobody looked, perhaps
                self._listener(GuestReport(definition.vm, GuestEvent.RESUMED, {"held": True}))
            found[definition.vm] = client.state in _RUNNING
        return found

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        """Start a card that runs at once.  Reports STARTED, unless it is held."""
        client = self._living(definition.vm)
        if client is None:
            await self._launch(definition, ports, "", held=held)
            if not held:
                self._listener(GuestReport(definition.vm, GuestEvent.STARTED))
            return
        await client.refresh()
        if client.state not in (("paused",) if held else _RUNNING):
            raise HypervisorError(
                f"{definition.vm}: it lives here already, but is {client.state}",
                "resume it, or stop it and start it again",
            )

    async def stop(self, vm: VmKey) -> None:
        """End the card.  No error if it is absent."""
        client = self._cards.pop(vm, None)
        if client is not None:
            if client.alive:
                await client.end()
            client.close()
        self._reap()

    async def retire(self, definition: VmDefinition) -> None:
        """It has nothing that could be left."""

    async def shut_down(self, vm: VmKey) -> None:
        """There is nothing in it that could: it is ended."""
        await self.stop(vm)

    async def pause(self, vm: VmKey) -> None:
        """Stop copying frames."""
        await self._card(vm).order("pause")

    async def keep(self, definition: VmDefinition) -> None:
        """It is the VM's, and copies no frames."""
        client = await self._found(definition.vm)
        if client is not None:
            await client.order("keep")

    async def resume(self, vm: VmKey) -> None:
        """Copy frames again, and announce."""
        await self._card(vm).order("resume")

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
        """Start a card that waits for a move; where it waits."""
        client = self._living(definition.vm)
        if client is None:
            client = await self._launch(definition, ports, listen_address, held=held)
        return listen_address, client.port

    async def copy_out(
        self,
        vm: VmKey,
        address: str,
        port: int,
        terms: MoveTerms = NO_TERMS,
        *,
        secret: str = "",
    ) -> None:
        """Begin the move.  Reports CONVERGED at once: there is nothing to copy."""
        await self._card(vm).order("copy-out", address=address, port=port)

    async def switch_over(self, vm: VmKey) -> None:
        """Report ABOUT_TO_STOP and wait for proceed()."""
        await self._card(vm).order("switch-over")

    async def proceed(self, vm: VmKey) -> None:
        """Hand the VM over.  Reports STOPPED, then COMPLETED or FAILED."""
        await self._card(vm).order("proceed")

    async def cancel(self, vm: VmKey) -> None:
        """Give up a move; a waiting card is ended."""
        client = self._living(vm)
        if client is None:
            return
        if client.state in ("waiting", "arrived"):
            await self.stop(vm)
        else:
            await client.order("cancel")

    def state(self, vm: VmKey) -> str:
        """What the VM's card was when it last answered (light_nic.py)."""
        return self._card(vm).state

    async def announce(self, vm: VmKey) -> None:
        """Send gratuitous ARP and unsolicited NA on the VM's behalf."""
        await self._card(vm).order("announce")

    async def query(self, vm: VmKey) -> GuestLife:
        """What is here of the VM, as its card says now."""
        client = await self._found(vm)
        return GuestLife.NONE if client is None else _LIVES[client.state]

    async def watch(self, definition: VmDefinition, ports: Sequence[str]) -> None:
        """These VMs are its own."""
        raise not_watchable(definition.vm)

    async def unwatch(self, vm: VmKey) -> None:
        """These VMs are its own."""
        raise not_watchable(vm)

    async def orphans(self, known: Collection[VmKey]) -> Sequence[VmKey]:
        """The VMs of cards of this state folder that are none of `known`."""
        strangers = [vm for vm in self._specified() if vm not in known]
        found = []
        for vm in strangers:
            with contextlib.suppress(HypervisorError):  # mute: nothing but SIGKILL would end it
                if await self._found(vm) is not None:
                    found.append(vm)
        return found

    async def close(self) -> None:
        """Let go of all cards, leaving them running."""
        for client in self._cards.values():
            client.close()
        self._cards.clear()
        await asyncio.gather(*self._taking.values(), return_exceptions=True)
        await self._standbys.close()
        self._reap()

    def _control(self, vm: VmKey) -> Path:
        digest = hashlib.sha256(f"{vm.vni}/{vm.vm_id}".encode()).hexdigest()[:9]
        return self._folder / digest

    def _client(self, vm: VmKey) -> _CardClient:
        return _CardClient(vm, self._control(vm), self._listener)

    def _living(self, vm: VmKey) -> _CardClient | None:
        client = self._cards.get(vm)
        return client if client is not None and client.alive else None

    async def _found(self, vm: VmKey) -> _CardClient | None:
        """The card, with its state of now; None if there is none."""
        client = self._living(vm) or self._client(vm)
        try:
            await client.refresh()
        except OSError:
            return None
        except HypervisorError:
            mute = client.alive
            if client is not self._cards.get(vm):
                client.close()
            if mute:
                raise
            return None
        self._cards[vm] = client
        return client if client.alive else None

    def _specified(self) -> list[VmKey]:
        """The VMs whose cards were ever specified here and not ended."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(VmKey(*json.loads(file.read_text())["vm"]))
        return found

    def _card(self, vm: VmKey) -> _CardClient:
        client = self._living(vm)
        if client is None:
            raise HypervisorError(f"{vm}: no network card runs here", "start the VM first")
        return client

    async def _launch(
        self, definition: VmDefinition, ports: Sequence[str], listen: str, *, held: bool = False
    ) -> _CardClient:
        vm = definition.vm
        control = self._specify(definition, ports, listen, held=held)
        process = self._spawn(control)
        client = self._client(vm)
        await self._await_card(client, process)
        self._cards[vm] = client
        return client

    def _specify(
        self, definition: VmDefinition, ports: Sequence[str], listen: str, *, held: bool
    ) -> Path:
        """Write down what the card needs to know; the path of its control socket."""
        vm = definition.vm
        namespace = definition.machine.get("namespace")
        if not isinstance(namespace, str) or not Path("/run/netns", namespace).exists():
            raise HypervisorError(f"{vm}: no namespace {namespace!r}", "set machine.namespace")
        private_files.make_folder(self._folder)
        control = self._control(vm)
        control.unlink(missing_ok=True)
        interfaces = definition.interfaces
        addresses = [[str(p.network_address) for p in i.prefixes] for i in interfaces]
        macs = [interface.mac_text for interface in interfaces]
        ports = list(ports)
        key = (vm.vni, vm.vm_id)
        spec = Spec(str(control), namespace, ports, macs, addresses, listen, key, held)
        control.with_suffix(".json").write_text(json.dumps(asdict(spec)))
        return control

    def _spawn(self, control: Path) -> subprocess.Popen[bytes]:
        module = "vmmobility.drivers.hypervisor.light_nic"
        source = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
        with control.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(control.with_suffix(".json"))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path})  # fmt: skip
        self._processes.append(process)
        return process

    async def _await_card(self, client: _CardClient, process: subprocess.Popen[bytes]) -> None:
        """Connect as soon as the card listens, or say why it does not."""
        deadline = asyncio.get_running_loop().time() + _START_S
        while process.poll() is None and asyncio.get_running_loop().time() < deadline:
            try:
                await client.refresh()
            except OSError:
                await asyncio.sleep(_POLL_S)
                continue
            return
        log = client.control.with_suffix(".log").read_text(errors="replace").strip()
        raise HypervisorError(f"{client.vm}: its network card did not start: {log[-300:]}",
                              "do its tap and namespace exist, and are they free?")  # fmt: skip

    def _reap(self) -> None:
        self._processes = [p for p in self._processes if p.poll() is None]
