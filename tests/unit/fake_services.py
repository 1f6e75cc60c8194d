"""Services behind the API for tests: a manager with one binding, an NVE with a dictionary."""

from __future__ import annotations

import asyncio
from typing import Any

from vmmobility.api.errors import BadRequest, Conflict, NotFound, Unavailable
from vmmobility.wire.values import VmKey

BINDING: dict[str, Any] = {
    "vni": 0,
    "vm": "vm1",
    "nve": "nve-a",
    "epoch": 7,
    "lifetime_s": 120,
    "expires_in_s": 99.5,
    "interfaces": [{"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5/32", "fd01::5/128"]}],
    "previous": [{"nve": "nve-0", "acknowledged": True}],
    "state": "bound",
}
STATUS: dict[str, Any] = {
    "node": "n",
    "role": "manager",
    "version": "0",
    "boot": 1,
    "uptime_s": 2.0,
    "drops": {"bad-value": 3},
}


class FakeManager:
    """endings: what each wait makes of the move, in order; with none left a wait runs out."""

    def __init__(self, endings: list[dict[str, Any]] | None = None) -> None:
        self.held = [BINDING]
        self.started: list[dict[str, Any]] = []
        self.endings = endings or []
        self.waiting = asyncio.Event()

    def status(self) -> dict[str, Any]:
        return {**STATUS, "bindings": 1, "moves": len(self.started)}

    def bindings(self) -> list[dict[str, Any]]:
        return self.held

    def binding(self, vm: VmKey) -> dict[str, Any] | None:
        return next((b for b in self.held if (b["vni"], b["vm"]) == (vm.vni, vm.vm_id)), None)

    async def release(self, vm: VmKey) -> dict[str, Any]:
        binding = self.binding(vm)
        if binding is None:
            raise NotFound(f"no VM {vm} is registered", "see `vmmob vm list`")
        if binding["state"] != "expired":
            raise Conflict("the lease lives", "wait until it has expired")
        binding.update(state="released")
        return binding

    def nves(self) -> list[dict[str, Any]]:
        return [{"nve": "nve-a", "addresses": ["10.0.0.1"], "last_heard_s": 1.25, "vms": 1}]

    def moves(self) -> list[dict[str, Any]]:
        return self.started

    def move(self, id: str) -> dict[str, Any] | None:
        return next((move for move in self.started if move["id"] == id), None)

    async def start_move(self, vm: VmKey, to: str) -> dict[str, Any]:
        if to == "nve-a":
            raise Conflict("the VM is at nve-a already", "name another NVE")
        if to == "down":
            raise Unavailable("nve down does not answer", "start it")
        if to == "broken":
            raise ZeroDivisionError("deliberately")
        if self.binding(vm) is None:
            raise NotFound(f"no binding for VM {vm}", "list them with `vmmob vm list`")
        move: dict[str, Any] = {
            "id": f"m{len(self.started) + 1}",
            "vni": vm.vni,
            "vm": vm.vm_id,
            "from": "nve-a",
            "to": to,
            "mode": "hot",
            "state": "requested",
            "ok": None,
            "reason": "",
            "epoch": None,
            "started_ns": 1,
            "phases": [{"name": "requested", "at_ms": 0.0}],
            "measured": {},
        }
        self.started.append(move)
        return move

    async def wait_move(self, id: str, seconds: float) -> dict[str, Any] | None:
        self.waiting.set()
        move = self.move(id)
        if move is None:
            return None
        if self.endings:
            move.update(self.endings.pop(0))
            return move
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        return move


class FakeNve:
    def __init__(self) -> None:
        self.running: dict[VmKey, dict[str, Any]] = {}
        self.definitions: list[dict[str, Any]] = []

    def status(self) -> dict[str, Any]:
        return {**STATUS, "role": "nve", "accelerator": "tcg"}

    async def vms(self) -> list[dict[str, Any]]:
        return list(self.running.values())

    async def start_vm(self, definition: dict[str, Any]) -> dict[str, Any]:
        if definition.get("kind") != "qemu":
            raise BadRequest("kind: not known", "use qemu")
        self.definitions.append(definition)
        vm = VmKey(definition.get("vni", 0), definition["vm_id"])
        self.running[vm] = {
            "vni": vm.vni,
            "vm": vm.vm_id,
            "phase": "serving",
            "epoch": 1,
            "forwarding": "local",
            "target": None,
            "traffic": {"delivered": 5, "consumed": 5, "redirected": 0, "dropped": 0},
        }
        return self.running[vm]

    async def stop_vm(self, vm: VmKey) -> dict[str, Any]:
        if vm not in self.running:
            raise NotFound(f"no VM {vm} here", "list them with `vmmob nve list`")
        return self.running.pop(vm)
