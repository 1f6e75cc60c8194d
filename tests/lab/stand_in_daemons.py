"""A control plane in one thread, to test the lab without the daemons: adjacent NVEs, light VMs.

It keeps the lab's side of the contract (docs/architecture.md): API answers and JSON log events.
Not here: anything of the protocol; redirects are host routes on a shared segment.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import threading
import time
from functools import partial
from typing import Any

from vmmobility.daemon.nve_service import read_definition
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Hypervisor,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.light import LightHypervisor
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import QemuSettings
from vmmobility.engine.dataplane import port_name
from vmmobility.errors import ApiError
from vmmobility.lab import workdir
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.inside import set_namespace


class StandInDaemons(Daemons):
    """Answers as the daemons would.  sabotage: "" or "break-move"."""

    sabotage = ""
    _thread: threading.Thread | None = None

    def configure(self) -> None:
        for node in self.nodes:
            (self._folder / "nodes" / node.name).mkdir(parents=True, exist_ok=True)

    def start_all(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._waiting: dict[tuple[str, GuestEvent], asyncio.Event] = {}
        self._definitions: dict[str, VmDefinition] = {}
        self._place: dict[str, str] = {}
        self._redirects: dict[str, dict[str, str]] = {}
        self._moves: dict[str, dict[str, Any]] = {}
        self._over: dict[str, asyncio.Event] = {}
        self._light: dict[str, Hypervisor] = {}
        for node in self.fabric.of_kind("nve"):
            home = self._folder / "nodes" / node.name
            heard = partial(self._heard, node.name)
            if any(vm.kind == "guest" for vm in self.fabric.vms):
                settings = QemuSettings(accelerator="tcg", images=(workdir.cache(),))
                self._light[node.name] = QemuHypervisor(home, heard, settings)
            else:
                self._light[node.name] = LightHypervisor(home, heard)
            for key in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
                space = self._spaces.name(node.name)
                subprocess.run(["ip", "netns", "exec", space, "sysctl", "-qw", key], check=True)

    def ask(self, node: str, method: str, target: str, body: Any = None,
            timeout_s: float = 30.0) -> Any:  # fmt: skip
        path = target.split("?")[0].split("/")[2:]
        if path == ["status"]:
            return {"tunnels": {"back_end": "relay"}}
        if path[0] == "vms" and method == "PUT":
            return self._do(self._start(node, read_definition(body)))
        if path[0] == "vms":
            return self._entries(node)
        if path == ["bindings"]:
            return [{"vm": vm, "nve": nve, "epoch": 1} for vm, nve in self._place.items()]
        if path[0] == "bindings":
            return {"vm": path[1], "nve": self._place[path[1]]}
        if method == "POST":
            if body["to"] == self._place[body["vm"]]:
                raise ApiError("it is there", "move it elsewhere")
            move_id = f"m{len(self._moves) + 1}"
            self._moves[move_id] = {"id": move_id, "ok": None, "mode": "hot"}
            self._over[move_id] = asyncio.Event()
            asyncio.run_coroutine_threadsafe(
                self._move(move_id, body["vm"], body["to"]), self._loop
            )
            return dict(self._moves[move_id])
        self._do(self._ended(path[1]))
        return dict(self._moves[path[1]])

    def end_all(self) -> None:
        async def let_go() -> None:
            for hypervisor in self._light.values():
                await hypervisor.close()

        if self._thread is not None:
            self._do(let_go())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._thread = None

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _entries(self, node: str) -> list[dict[str, Any]]:
        found = []
        for vm, place in self._place.items():
            traffic = {"redirected": 0}
            if place == node:
                found.append({"vm": vm, "forwarding": "local", "phase": "x", "traffic": traffic})
            elif node in self._redirects.get(vm, {}):
                found.append({"vm": vm, "forwarding": "redirect", "phase": "x", "traffic": traffic})
        return found

    def _log(self, node: str, event: str, **fields: Any) -> None:
        line = {"ts_ns": time.time_ns(), "node": node, "event": event, **fields}
        with self.log(node).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _heard(self, node: str, report: GuestReport) -> None:
        name = f"guest.{report.event.value}"
        self._log(node, name, vm=report.vm.vm_id, at_ns=report.time_ns, **report.detail)
        self._signal(node, report.event).set()

    def _signal(self, node: str, event: GuestEvent) -> asyncio.Event:
        return self._waiting.setdefault((node, event), asyncio.Event())

    def _ip(self, node: str, *lines: str) -> None:
        text = "".join(line + "\n" for line in lines)
        command = ["ip", "-n", self._spaces.name(node), "-batch", "-"]
        subprocess.run(command, input=text, text=True, check=True)

    def _plug(self, node: str, definition: VmDefinition) -> str:
        tap, mac = port_name(definition.vm, 0), definition.interfaces[0].mac_text
        addresses = [p.network_address for p in definition.interfaces[0].prefixes]
        self._ip(
            node,
            f"tuntap add dev {tap} mode tap",
            f"link set {tap} address 02:76:6d:6d:00:01 txqueuelen 10000 up",
            f"address add 169.254.1.1/32 dev {tap}",
            f"address add fe80::1/64 dev {tap} nodad",
            *(f"neigh add {a} lladdr {mac} dev {tap} nud permanent" for a in addresses),
        )
        return tap

    def _route(self, node: str, definition: VmDefinition, how: str) -> None:
        for prefix in definition.interfaces[0].prefixes:
            via = how if how.startswith("dev") else ""
            if how and not via:
                via = f"via {self.fabric.first_end(how).address(prefix.version)}"
            verb = "replace" if how else "del"
            self._ip(node, f"route {verb} {prefix} {via} proto 77")
        kind = "local" if how.startswith("dev") else "redirect" if how else "none"
        self._log(node, "forwarding", vm=definition.vm.vm_id, forwarding=kind, target=how)

    async def _inside(self, node: str, work: Any) -> Any:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        set_namespace(self._spaces.name(node))
        try:
            return await work
        finally:
            ctypes.CDLL(None).setns(home, 0x40000000)
            os.close(home)

    async def _start(self, node: str, definition: VmDefinition) -> dict[str, Any]:
        tap = self._plug(node, definition)
        self._route(node, definition, f"dev {tap}")
        await self._inside(node, self._light[node].start(definition, [tap]))
        vm = definition.vm.vm_id
        self._definitions[vm], self._place[vm] = definition, node
        return {}

    async def _ended(self, move_id: str) -> None:
        async with asyncio.timeout(20):
            await self._over[move_id].wait()

    async def _move(self, move_id: str, vm: str, target: str) -> None:
        definition, source = self._definitions[vm], self._place[vm]
        self._waiting.clear()
        self._log(self.manager, "move.requested", vm=vm, move=move_id)
        self._redirects.get(vm, {}).pop(target, None)
        if self.sabotage == "break-move":
            self._moves[move_id].update(ok=False, reason="sabotaged")
            self._over[move_id].set()
            return
        tap = self._plug(target, definition)
        listen = str(self.fabric.first_end(target).address(4))
        out, into = self._light[source], self._light[target]
        address, port = await self._inside(target, into.prepare_incoming(definition, [tap], listen))
        self._log(self.manager, "move.prepared", vm=vm, move=move_id, to=target)
        await self._inside(source, out.copy_out(definition.vm, address, port))
        await self._signal(source, GuestEvent.CONVERGED).wait()
        await out.switch_over(definition.vm)
        await self._signal(source, GuestEvent.ABOUT_TO_STOP).wait()
        self._route(target, definition, f"dev {tap}")
        self._route(source, definition, target)
        await out.proceed(definition.vm)
        await self._signal(source, GuestEvent.COMPLETED).wait()
        await self._signal(target, GuestEvent.RESUMED).wait()
        self._place[vm] = target
        self._log(self.manager, "move.registered", vm=vm, move=move_id)
        await out.stop(definition.vm)
        self._ip(source, f"link del {tap}")
        home = self.fabric.vm(vm).home
        if target == home:
            self._route(source, definition, "")
        else:
            self._redirects.setdefault(vm, {})[source] = target
        self._log(self.manager, "move.redirected", vm=vm, move=move_id)
        self._log(self.manager, "move.done", vm=vm, move=move_id)
        self._moves[move_id]["ok"] = True
        self._over[move_id].set()

    def kill(self, names: Any, sign: Any) -> None:
        raise AssertionError("not in this stand-in")
