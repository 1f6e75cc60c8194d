"""Services behind the API for tests: a manager with one binding, an NVE with a dictionary."""

from __future__ import annotations

import asyncio
from typing import Any

from vmmobility.api.errors import BadRequest, Conflict, NotFound, Unavailable
from vmmobility.daemon.event_feed import EventFeed, Reader, Wanted
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms, terms_to_json
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
    "state": "serving",
    "nve_liveness": "alive",
    "guest": "running",
    "guest_ordered": None,
    "guest_error": "",
}
LIVENESS: dict[str, Any] = {
    "liveness": "silent",
    "silent_s": 2.0,
    "boot": 3,
    "capacity": {
        "vcpus": 16,
        "vcpus_free": 12,
        "memory_mib": 0,
        "memory_free_mib": 0,
        "storage_mib": 100,
        "storage_free_mib": 50,
    },
}
RESOURCES = {"vcpus": 2, "memory_mib": 512, "storage_mib": 0, "threads": 0}
LIFE: dict[str, Any] = {
    "vni": 0,
    "vm": "vm9",
    "state": "offered",
    "nve": "nve-b",
    "reason": "",
    "client_key": "key",
    "resources": RESOURCES,
    "offer": {"nve": "nve-b", "resources": RESOURCES, "expires_in_s": 60.0},
    "placement": {"nves": [], "dc": "", "anti_affinity": []},
}
STATUS: dict[str, Any] = {
    "node": "n",
    "role": "manager",
    "version": "0",
    "boot": 1,
    "uptime_s": 2.0,
    "drops": {"bad-value": 3},
    "unsent": 0,
    "log_lines_lost": 0,
    "counts": {"drift.route": 2},
    "unproven": ["nve-b"],
}
DIFFERENCE: dict[str, Any] = {
    "vni": 0,
    "vm": "vm1",
    "nve": "nve-a",
    "what": "route",
    "expected": "10.1.0.5/32 dev vmt0.0",
    "found": "none",
    "repaired": True,
}
ALARM: dict[str, Any] = {
    "alarm": "binding.frozen",
    "vni": 0,
    "vm": "vm1",
    "nve": "nve-a",
    "for_s": None,
    "what": "five NVEs took it",
    "remedy": "end one copy, then `vmmob vm release vm1`",
}
TRACE: dict[str, Any] = {
    "address": "10.1.0.5",
    "vni": 0,
    "vm": "vm1",
    "serving": "nve-b",
    "from": None,
    "arrives": None,
    "ok": True,
    "silent": [],
    "steps": [
        {
            "node": "manager",
            "role": "manager",
            "decision": "bound to",
            "to": "nve-b",
            "detail": "VM vm1, epoch 7; away from nve-a",
            "ok": True,
            "wrong": "",
        },
        {
            "node": "tor-1",
            "role": "default router",
            "decision": "hold table",
            "to": "nve-b",
            "detail": "10.1.0.5/32 by vmmobility in table 7701 dev eth1; told announce (epoch 8)",
            "ok": True,
            "wrong": "",
        },
        {
            "node": "nve-b",
            "role": "serving NVE",
            "decision": "delivers to",
            "to": "vm1",
            "detail": "",
            "ok": True,
            "wrong": "",
        },
    ],
}


DRAIN: dict[str, Any] = {
    "id": "d1", "nve": "nve-a", "to": [], "parallel": 4, "mode": "auto", "uncordon": False,
    "state": "running", "ok": None, "started_ns": 1, "elapsed_s": 2.0, "rest_s": 4.0, "all": 3,
    "settled": 1, "waiting": 1, "moving": 1, "moved": 1, "left": 0, "failed": 0, "bytes": None,
    "reasons": [],
}  # fmt: skip
DRAINED: dict[str, Any] = {
    "vni": 0, "vm": "vm1", "stage": "moving", "to": "nve-b", "move": "m1", "attempts": 1,
    "reason": "",
}  # fmt: skip


class FakeEvents:
    """A true feed; `loop` is that of whoever serves it, once somebody follows."""

    def __init__(self) -> None:
        super().__init__()
        self.feed = EventFeed(1)
        self.endings: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    def follow(
        self,
        after: str,
        kinds: frozenset[str],
        vm: tuple[int, str] | None,
        move: str,
        audit: bool,
    ) -> Reader:
        self.loop = asyncio.get_running_loop()
        for number in range(len(self.endings)):
            self.loop.call_later(0.02 * (number + 1), self._happens)
        return self.feed.follow(after, Wanted(kinds, vm, move, audit))

    def _happens(self) -> None:
        """The next ending of the latest move, and the event that tells of it."""
        if self.endings and self.started:
            move = self.started[-1]
            move.update(self.endings.pop(0))
            self.feed.add(f"move.{move['state']}", {"move": move["id"], "vm": move["vm"]})


class FakeDrains:
    """drain_endings: what each wait makes of a drain, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.drained: list[dict[str, Any]] = []
        self.cordoned: set[str] = set()
        self.drain_endings: list[dict[str, Any]] = []

    def drains(self) -> list[dict[str, Any]]:
        return [{key: row[key] for key in row if key != "vms"} for row in self.drained]

    def drain(self, id: str) -> dict[str, Any] | None:
        return next((row for row in self.drained if row["id"] == id), None)

    async def start_drain(
        self, nve: str, to: list[str], parallel: int, uncordon: bool
    ) -> dict[str, Any]:
        if nve == "nowhere":
            raise NotFound("no NVE nowhere is known", "see `vmmob show nves`")
        wanted = {"nve": nve, "to": to, "parallel": parallel, "uncordon": uncordon}
        row = {**DRAIN, **wanted, "id": f"d{len(self.drained) + 1}", "vms": [dict(DRAINED)]}
        self.drained.append(row)
        return row

    async def abort_drain(self, id: str) -> dict[str, Any]:
        row = self.drain(id)
        if row is None:
            raise NotFound(f"no drain {id}", "see `vmmob drain list`")
        row["state"] = "aborting"
        return row

    async def wait_drain(self, id: str, seconds: float) -> dict[str, Any] | None:
        row = self.drain(id)
        if row is not None and self.drain_endings:
            row.update(self.drain_endings.pop(0))
        return row

    async def cordon(self, nve: str) -> dict[str, Any]:
        self.cordoned.add(nve)
        return {"nve": nve, "cordoned": True, "since_ns": 1}

    async def uncordon(self, nve: str) -> dict[str, Any]:
        self.cordoned.discard(nve)
        return {"nve": nve, "cordoned": False, "since_ns": None}


class FakeProtections:
    """Warm standbys: a protection is as it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded: list[dict[str, Any]] = []

    def protected(self) -> list[dict[str, Any]]:
        return self.guarded

    async def protect(
        self,
        vm: VmKey,
        to: str,
        every_s: float,
        fail_over: bool,
        lease_s: float | None,
        at: str | None,
    ) -> dict[str, Any]:
        if to == "nowhere":
            raise NotFound("no NVE nowhere is known", "see `vmmob show nves`")
        row: dict[str, Any] = {
            "vni": vm.vni, "vm": vm.vm_id, "nve": "nve-a", "standby": to, "state": "active",
            "every_s": every_s, "at": at, "next_s": 2.5, "fail_over": fail_over,
            "lease_s": lease_s or 10.0,
            "checkpoint": 3, "staleness_s": 1.25, "reason": "",
        }  # fmt: skip
        self.guarded.append(row)
        return row

    async def unprotect(self, vm: VmKey) -> dict[str, Any]:
        for row in self.guarded:
            if (row["vni"], row["vm"]) == (vm.vni, vm.vm_id):
                self.guarded.remove(row)
                return {**row, "state": "ending"}
        raise NotFound(f"VM {vm} is not protected", "see `vmmob show protected`")


class FakeManager(FakeEvents, FakeDrains, FakeProtections):
    """endings: what each wait makes of the move, in order; with none left a wait runs out.

    compared: the answer of a check; pause_s: how long it takes
    """

    def __init__(self, endings: list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.held = [dict(BINDING)]
        self.started: list[dict[str, Any]] = []
        self.endings = endings or []
        self.waiting = asyncio.Event()
        self.compared: dict[str, Any] = {"checked": 3, "drift": [], "repaired": 0, "unanswered": []}
        self.pause_s = 0.0
        self.modes: list[str] = []
        self.ordered: list[tuple[str, bool, int | None]] = []
        self.records: dict[VmKey, dict[str, Any]] = {}
        self.raised: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, float]] = []
        self.declared: dict[str, dict[str, Any]] = {}
        self.asked_for: dict[str, dict[str, Any]] = {}
        self.traced: dict[str, Any] = TRACE

    def status(self) -> dict[str, Any]:
        records = {
            "onboarded": len(self.records),
            "strict": False,
            "api_refused": {},
            "events_cut_off": 0,
        }
        guarded = {"protected": len(self.guarded), "stale_s": None}
        return {**STATUS, **records, **guarded, "bindings": 1, "moves": len(self.started)}

    def bindings(self) -> list[dict[str, Any]]:
        return self.held

    def binding(self, vm: VmKey) -> dict[str, Any] | None:
        return next((b for b in self.held if (b["vni"], b["vm"]) == (vm.vni, vm.vm_id)), None)

    async def release(self, vm: VmKey, fenced: str) -> dict[str, Any]:
        binding = self.binding(vm)
        if binding is None:
            raise NotFound(f"no VM {vm} is registered", "see `vmmob vm list`")
        if not fenced:
            if binding["state"] != "frozen":
                raise Conflict(f"VM {vm} is not frozen", "fence its host, then add --fenced NVE")
            binding.update(state="serving")
        elif fenced != binding["nve"]:
            raise Conflict(f"VM {vm} is at {binding['nve']}, not at {fenced}", "name that NVE")
        elif binding["state"] == "moving":
            pass
        elif binding["state"] != "expired":
            raise Conflict("the lease lives", "wait until it has expired")
        else:
            binding.update(state="released")
        return binding

    def groups(self) -> list[dict[str, Any]]:
        return list(self.declared.values())

    async def declare_group(self, name: str, vni: int, members: dict[str, int]) -> dict[str, Any]:
        rows = [
            {"vm": vm, "member": number, "state": "in service", "nve": "nve-a", "epoch": 5,
             "reason": ""}
            for vm, number in members.items()
        ]  # fmt: skip
        self.declared[name] = {"group": name, "vni": vni, "epoch": 9, "members": rows}
        return self.declared[name]

    async def delete_group(self, name: str) -> dict[str, Any]:
        if name not in self.declared:
            raise NotFound(f"no group {name} is declared", "see `vmmob group list`")
        return self.declared.pop(name)

    async def order_guest(
        self, vm: VmKey, verb: str, force: bool, grace_s: int | None
    ) -> dict[str, Any]:
        """vm1 does at once what it is told, except to be suspended: its NVE refuses that."""
        binding = self.binding(vm)
        if binding is None:
            raise NotFound(f"no VM {vm} is registered", "see `vmmob vm list`")
        self.ordered.append((verb, force, grace_s))
        if verb == "delete" and not force and binding["guest"] != "stopped":
            raise Conflict(f"VM {vm} is running", "stop it first")
        if verb == "delete":
            self.held.remove(binding)
            return {**binding, "guest_ordered": "none"}
        if verb == "suspend":
            binding["guest_error"] = "hypervisor-failure: no such command"
        else:
            binding["guest"] = "stopped" if verb == "stop" else "running"
        return dict(binding)

    def lives(self) -> list[dict[str, Any]]:
        return list(self.asked_for.values())

    def life(self, vm: VmKey) -> dict[str, Any] | None:
        return self.asked_for.get(vm.vm_id)

    def unbound(self) -> list[dict[str, Any]]:
        return [
            {**BINDING, "vm": name, "state": "unbound", "guest": "none"}
            for name in self.asked_for
            if name != BINDING["vm"]
        ]

    async def create_vm(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["vm_id"] == "huge":
            raise Conflict("no NVE has room for VM huge: 9 vCPUs wanted, 1 free", "ask for less")
        life = {**LIFE, "vm": body["vm_id"], "client_key": body["client_key"]}
        return self.asked_for.setdefault(body["vm_id"], life)

    async def confirm_vm(self, vm: VmKey, body: dict[str, Any]) -> dict[str, Any]:
        if vm.vm_id not in self.asked_for:
            raise NotFound(f"no request or offer of VM {vm} is on record", "make it again")
        less = {**LIFE["resources"], **body.get("resources", {})}
        state = {"state": "running", "offer": None, "resources": less}
        self.asked_for[vm.vm_id] = {**self.asked_for[vm.vm_id], **state}
        return self.asked_for[vm.vm_id]

    def onboarded(self) -> list[dict[str, Any]]:
        return list(self.records.values())

    async def onboard(self, vm: VmKey, interfaces: object, nves: list[str]) -> dict[str, Any]:
        if not interfaces:
            raise BadRequest("interface: at least one [[interface]] is required", "add one")
        if "nowhere" in nves:
            raise NotFound("no NVE nowhere is known", "see `vmmob show nves`")
        row = {"vni": vm.vni, "vm": vm.vm_id, "interfaces": interfaces, "nves": nves}
        self.records[vm] = row
        return row

    async def offboard(self, vm: VmKey) -> dict[str, Any]:
        if vm not in self.records:
            raise NotFound(f"VM {vm} is not onboarded", "see `vmmob show onboarded`")
        return self.records.pop(vm)

    async def check(self, limit_s: float) -> dict[str, Any]:
        if self.pause_s > limit_s:
            raise Unavailable(f"not ended within {limit_s:g} s", "ask with a longer --timeout")
        await asyncio.sleep(self.pause_s)
        return self.compared

    async def trace(self, address: str, start: str, seconds: float) -> dict[str, Any]:
        if address == "10.1.0":
            raise BadRequest(f"{address!r} is no address", "write an IPv4 or IPv6 address")
        if start == "nowhere":
            raise NotFound(f"no NVE or router {start} is known", "see `vmmob show nves`")
        self.asked.append((address, start, seconds))
        return self.traced

    def alarms(self) -> list[dict[str, Any]]:
        return self.raised

    def nves(self) -> list[dict[str, Any]]:
        row = {"nve": "nve-a", "addresses": ["10.0.0.1"], "last_heard_s": 1.25, "vms": 1}
        return [{**row, "proven": False, **LIVENESS, "cordoned": "nve-a" in self.cordoned}]

    def routers(self) -> list[dict[str, Any]]:
        row = {"router": "tor-a", "role": "default-router", "dc": "dc1", "serves": ["nve-a"]}
        heard = {"last_heard_s": None, "proven": True}
        return [{**row, **heard, "vms": 1, "announced": 1, "unanswered": 0}]

    def routes(self) -> list[dict[str, Any]]:
        row = {"vni": 0, "vm": "vm1", "router": "tor-a", "state": "watch", "serving": "nve-b"}
        return [{**row, "epoch": 4, "acknowledged": True, "direct": False}]

    def moves(self) -> list[dict[str, Any]]:
        return self.started

    def move(self, id: str) -> dict[str, Any] | None:
        return next((move for move in self.started if move["id"] == id), None)

    async def start_move(
        self, vm: VmKey, to: str, terms: MoveTerms = NO_TERMS, mode: str = ""
    ) -> dict[str, Any]:
        self.modes.append(mode)
        if to == "nve-a":
            raise Conflict("the VM is at nve-a already", "name another NVE")
        if to == "down":
            raise Unavailable("nve down does not answer", "start it")
        if to == "broken":
            raise ZeroDivisionError("deliberately")
        if self.binding(vm) is None:
            raise NotFound(f"no binding for VM {vm}", "list them with `vmmob vm list`")
        if mode == "warm" and to not in [row["standby"] for row in self.guarded]:
            raise Conflict(f"VM {vm} has no standby at {to}", "`vmmob vm protect` it first")
        move: dict[str, Any] = {
            "id": f"m{len(self.started) + 1}",
            "vni": vm.vni,
            "vm": vm.vm_id,
            "from": "nve-a",
            "to": to,
            "mode": mode or "hot",
            "state": "requested",
            "ok": None,
            "reason": "",
            "epoch": None,
            "started_ns": 1,
            "phases": [{"name": "requested", "at_ms": 0.0}],
            "measured": {},
            "terms": terms_to_json(terms),
            "progress": {},
        }
        self.started.append(move)
        return move

    async def abort_move(self, id: str) -> dict[str, Any]:
        move = self.move(id)
        if move is None:
            raise NotFound(f"no move {id}", "list them with `vmmob show moves`")
        if move["ok"] is not None:
            raise Conflict(f"move {id} is {move['state']}", "it has ended")
        move.update(state="turning-back", reason="given up")
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


class FakeRouter:
    """A router that leads one VM."""

    def __init__(self) -> None:
        self.compared: dict[str, Any] = {"checked": 1, "drift": [], "repaired": 0}

    def status(self) -> dict[str, Any]:
        return {**STATUS, "role": "default-router", "routes": {"announced": 1, "held": 0}}

    def routes(self) -> list[dict[str, Any]]:
        row = {"vni": 0, "vm": "vm1", "state": "announce", "epoch": 3, "serving": "nve-a"}
        fabric = {"direct": True, "covered": False}
        return [{**row, **fabric, "prefixes": ["10.1.0.5/32"], "previous": None}]

    async def check(self, limit_s: float) -> dict[str, Any]:
        return self.compared

    def explain(self, address: str) -> list[dict[str, Any]]:
        if address != "10.1.0.5":
            raise BadRequest(f"{address}: no address", "write an IPv4 or IPv6 address")
        hop = {"interface": "nve-a", "gateway": "10.0.1.2"}
        row = {"priority": 78, "table": 7701, "prefix": "10.1.0.5/32", "protocol": 77}
        return [{**row, "ours": True, "next_hops": [hop], "leads": True}]


TRAFFIC = {
    "delivered": 0, "consumed": 0, "redirected": 0, "dropped": 0, "outside": 0, "too_big": 2,
}  # fmt: skip


class FakeNve:
    def __init__(self) -> None:
        self.running: dict[VmKey, dict[str, Any]] = {}
        self.definitions: list[dict[str, Any]] = []
        self.compared: dict[str, Any] = {"checked": 1, "drift": [], "repaired": 0}
        self.raised: list[dict[str, Any]] = []
        self.dc_prefixes: list[str] = []

    def status(self) -> dict[str, Any]:
        tunnels = {"back_end": "relay", "why": "no ipip here", "cost": "one process"}
        return {
            **STATUS, "role": "nve", "accelerator": "tcg", "relay_deaths": 0,
            "dc_prefixes": self.dc_prefixes, "servers": [], "tunnels": tunnels,
        }  # fmt: skip

    async def vms(self) -> list[dict[str, Any]]:
        return list(self.running.values())

    async def start_vm(self, definition: dict[str, Any], server: str = "") -> dict[str, Any]:
        if definition.get("kind") != "qemu":
            raise BadRequest("kind: not known", "use qemu")
        self.definitions.append(definition)
        vm = VmKey(definition.get("vni", 0), definition["vm_id"])
        self.running[vm] = {
            "vni": vm.vni,
            "vm": vm.vm_id,
            "phase": "serving",
            "expected": False,
            "ports": ["vmt0.0"],
            "epoch": 1,
            "server": server or None,
            "forwarding": "local",
            "target": None,
            "outside": None,
            "traffic": dict(TRAFFIC, delivered=5, consumed=5),
        }
        return self.running[vm]

    async def stop_vm(self, vm: VmKey) -> dict[str, Any]:
        if vm not in self.running:
            raise NotFound(f"no VM {vm} here", "list them with `vmmob nve list`")
        return self.running.pop(vm)

    async def relocate_vm(self, vm: VmKey, server: str) -> dict[str, Any]:
        if vm not in self.running:
            raise NotFound(f"no VM {vm} here", "list them with `vmmob nve list`")
        self.running[vm]["server"] = server or None
        return self.running[vm]

    async def expect_vm(self, definition: dict[str, Any]) -> dict[str, Any]:
        if definition.get("kind") != "external":
            raise BadRequest("kind: not external", "start it with `vmmob nve start`")
        vm = VmKey(definition.get("vni", 0), definition["vm_id"])
        ports = [f"vmt0.{index}" for index, _ in enumerate(definition["interfaces"])]
        self.running[vm] = {
            "vni": vm.vni,
            "vm": vm.vm_id,
            "phase": "none",
            "expected": True,
            "ports": ports,
            "epoch": 0,
            "server": None,
            "forwarding": "none",
            "target": None,
            "outside": None,
            "traffic": dict(TRAFFIC),
        }
        return self.running[vm]

    async def unexpect_vm(self, vm: VmKey) -> dict[str, Any]:
        if not self.running.get(vm, {}).get("expected"):
            raise NotFound(f"VM {vm} is not expected here", "list them with `vmmob nve list`")
        return self.running.pop(vm)

    async def check(self, limit_s: float) -> dict[str, Any]:
        return self.compared

    def alarms(self) -> list[dict[str, Any]]:
        return self.raised


class FakeNapt:
    """A NAPT box that has mapped an NVE."""

    async def status(self) -> dict[str, Any]:
        held = {"pool": ["198.51.100.0/28"], "pool_free": 15, "vms": 0, "nves": 1}
        return {**STATUS, "role": "napt", "policy": "keep", **held, "translation": {"flows": 0}}

    def mappings(self) -> list[dict[str, Any]]:
        row = {"kind": "nve", "nve": "nve-a", "private": "10.1.0.2", "public": "198.51.100.1"}
        return [{**row, "owner": "napt-1", "state": "translated"}]

    async def check(self, limit_s: float) -> dict[str, Any]:
        return {"checked": 1, "drift": [], "repaired": 0}
