"""Scenarios as text: lines that begin with '>' are told to a World, the rest is what came of it.

    # A comment.
    > start vm1 at a
       0.002 a        holds vm1: plugged, local
       0.002 a        -> manager  attach ...
    > move vm1 to b
    > settle
    > show

`run(text)` replays the '>' lines and gives the text back with the trace that they lead to now.
The commands are the methods `do_...` of Conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

from tests.engine import safety
from tests.engine.fabric_talk import (
    FabricTalk,
    describe_routes,
    entry_in_words,
    fabric_options,
    gate_settings,
)
from tests.engine.hand_talk import HandTalk, vm_key
from tests.engine.network import MANAGER, Node, Weather, World
from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.engine.fabric_routes import VmRoutes
from vmmobility.engine.manager_move import GuestRefused, Move, MoveRefused, ReleaseRefused
from vmmobility.engine.outputs import (
    CommandDone,
    Event,
    Halt,
    HypervisorOrder,
    Order,
    Send,
)
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import decode_part
from vmmobility.wire.registry import GuestState, Phase
from vmmobility.wire.summary import summary
from vmmobility.wire.values import Interface, VmKey

__all__ = ["Conversation", "describe", "interfaces_of", "run", "vm_key"]

SETTLE_S = 120.0
TOLD = (
    "move.", "superseded", "entry.drained", "entry.removed", "binding.expired", "binding.removed",
    "binding.released",
    "rejected", "registration.refused", "redirect.refused", "order.failed",
    "guest.lost", "guest.arrived", "guest.departed", "guest.refused", "binding.frozen",
    "binding.thawed", "binding.lost", "binding.departed", "vm.duplicate", "drift", "state.empty",
    "state.lost", "epoch.learned", "boot.raised", "peer.proven", "route.refused", "gate.timeout",
    "withdrawal.late", "guest.state", "guest.ended", "guest.memory-lost", "provision.",
)  # fmt: skip


def run(text: str) -> str:
    """The scenario with its present trace."""
    return Conversation().replay(text)


def interfaces_of(name: str, home: int, count: int) -> tuple[Interface, ...]:
    """Addresses of a VM under a home node's prefix: vm7's interface i has .7+50i."""
    number = int("".join(c for c in name if c.isdigit()))
    made = []
    for index in range(count):
        host = number + 50 * index
        prefixes = (ip_network(f"10.{home}.0.{host}/32"), ip_network(f"fd01:{home}::{host}/128"))
        made.append(Interface(bytes([2, 0, 0, 0, index, number]), prefixes))
    return tuple(made)


class Conversation(FabricTalk, HandTalk):
    """One replay: a World, the commands, and the trace so far."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._options: dict[str, Any] = {}
        self._lines: list[str] = []
        self._moves: dict[VmKey, str] = {}

    @property
    def world(self) -> World:
        if self._world is None:
            self._world = World(**self._options)
            self._world.observe = self._observe
        return self._world

    def replay(self, text: str) -> str:
        for line in text.splitlines():
            if line.startswith("#") or not line.strip():
                self._lines.append(line.rstrip())
            elif line.startswith(">"):
                self._lines.append(line.rstrip())
                self._command(line[1:].split())
        return "\n".join(self._lines) + "\n"

    def _command(self, words: list[str]) -> None:
        command: Callable[..., None] = getattr(self, "do_" + words[0].replace("-", "_"))
        skip = {"at", "to", "is", "from", "with", "interfaces", "and"}
        command(*[w for w in words[1:] if w not in skip])

    def _say(self, who: str, what: str) -> None:
        self._lines.append(f"{self.world.now:8.3f} {who:<8} {what}")

    # ---- commands ------------------------------------------------------------------------------

    def do_world(self, *words: str) -> None:
        """world lifetime=60 drain=10 seed=3 loss=0.2 repetition=0.2 delay=0.05 strict=yes

        world nves=a,b,c routers=ra:a/rb:b,c/x fabric=0.02..0.2 gate=5 policy=proceed: a router and
        the NVEs behind it; one without any is a border router."""
        given = dict(word.split("=") for word in words)
        weather = Weather(float(given.get("loss", 0)), float(given.get("repetition", 0)))
        if "delay" in given:
            weather.delay_s = (0.001, float(given["delay"]))
        self._options = {"weather": weather, "seed": int(given.get("seed", 1))}
        nve = {f"{k}_s": float(given[k]) for k in ("lifetime", "drain") if k in given}
        manager: dict[str, Any] = {"strict": "strict" in given}
        manager |= {"lifetime_s": float(given["most"])} if "most" in given else {}
        manager |= gate_settings(given)
        self._options |= {"nve_settings": nve, "manager_settings": manager}
        self._options |= fabric_options(given)

    def do_start(self, vm: str, node: str, count: str = "1") -> None:
        home = list(self.world.nodes).index(node) + 1
        key = vm_key(vm)
        addresses = self.world.interfaces.get(key) or interfaces_of(vm, home, int(count))
        number = self.world.start_vm(key, node, addresses)
        self._wait_for_result(number)

    def do_stop(self, vm: str, node: str) -> None:
        self._wait_for_result(self.world.stop_vm(vm_key(vm), node))

    def _wait_for_result(self, number: int) -> None:
        end = self.world.now + 6  # the manager asks an incumbent for up to 5 s
        while number not in self.world.results and self.world.now < end:
            self.world.run(0.001)

    def do_move(self, vm: str, to: str, mode: str = "") -> None:
        try:
            self._moves[vm_key(vm)] = self.world.move(vm_key(vm), to, mode=mode)
        except MoveRefused as refused:
            self._say(MANAGER, f"refuses ({refused.kind}): {refused.message}; {refused.remedy}")

    def do_guest(self, verb: str, vm: str, force: str = "") -> None:
        """guest stop vm1 [force]: what people want of the guest, by the manager."""
        try:
            self.world.order_guest(vm_key(vm), verb, force=bool(force))
        except GuestRefused as refused:
            self._say(MANAGER, f"refuses ({refused.kind}): {refused.message}; {refused.remedy}")

    def do_provision(self, vm: str, node: str) -> None:
        """provision vm1 at b: the manager has an NVE bring it up that has nothing of it."""
        home = list(self.world.nodes).index(node) + 1
        addresses = self.world.interfaces.get(vm_key(vm)) or interfaces_of(vm, home, 1)
        try:
            self.world.provision(vm_key(vm), node, addresses)
        except GuestRefused as refused:
            self._say(MANAGER, f"refuses ({refused.kind}): {refused.message}; {refused.remedy}")

    def do_release(self, vm: str, fenced: str = "") -> None:
        """release vm1: thaw it; release vm1 from a: an operator says that a's host is fenced."""
        node = self.world.nodes[MANAGER]
        manager = node.manager
        assert manager is not None
        try:
            manager.release(vm_key(vm), self.world.now, fenced)
        except ReleaseRefused as refused:
            self._say(MANAGER, f"refuses ({refused.kind}): {refused.message}; {refused.remedy}")
        self.world.feed(node, lambda: None)

    def do_abort(self, vm: str) -> None:
        node = self.world.nodes[MANAGER]
        manager, move = node.manager, self._move(vm_key(vm))
        assert manager is not None
        self.world.feed(node, lambda: manager.abort_move(move, self.world.now))

    def do_run(self, seconds: str) -> None:
        self.world.run(float(seconds))

    def do_until(self, who: str, *words: str) -> None:
        """until b vm1 PREPARED; until move vm1 switching; until a reports stopped"""
        if who == "move":
            key, state = vm_key(words[0]), words[1]
            self.world.run_until(lambda: self._move(key).state.value == state)
        elif words[0] == "reports":
            seen = len(self.world.reports)
            self.world.run_until(lambda: (who, words[1]) in self.world.reports[seen:])
        else:
            key, phase = vm_key(words[0]), Phase[words[1]]
            self.world.run_until(lambda: self._phase(who, key) is phase)

    def _phase(self, node: str, vm: VmKey) -> Phase | None:
        edge = self.world.nodes[node].edge
        entry = edge.entries.get(vm) if edge else None
        return entry.phase if entry else None

    def do_settle(self) -> None:
        """Until no request is outstanding and every move has ended; then all must be well."""
        world = self.world
        end = world.now + SETTLE_S
        quiet = 0
        while quiet < 2 and world.now < end:
            world.run(0.05)
            quiet = quiet + 1 if self._settled() else 0
        if quiet == 2:
            safety.check_settled(world)
        else:
            self._say("", "does not settle")

    def _settled(self) -> bool:
        manager = self.world.nodes[MANAGER].manager
        moves = manager.moves.values() if manager else ()
        engines = [n.engine for n in self.world.nodes.values() if n.engine]
        if manager and (manager._redirect_retry or manager._route_retry):
            return False  # what was refused waits to be sent again
        if manager and manager._withdrawals:
            return False
        if self.world.fabric and any(self.world.fabric.under_way.values()):
            return False
        return all(m.ok is not None for m in moves) and all(
            e.channel.next_timer() is None for e in engines
        )

    def do_crash(self, node: str) -> None:
        self.world.crash(node)

    def do_power_cut(self, node: str) -> None:
        self.world.power_cut(node)

    def do_restart(self, node: str) -> None:
        self.world.restart(node)

    def do_cut(self, one: str, other: str) -> None:
        self.world.cut.add(frozenset((one, other)))

    def do_heal(self, one: str, other: str) -> None:
        self.world.cut.discard(frozenset((one, other)))

    def do_fail(self, node: str, order: str, *reason: str) -> None:
        """fail b prepare-incoming no memory; fail b data-plane no route"""
        words = " ".join(reason) or "refused"
        if order == "data-plane":
            self.world.nodes[node].kernel.fail_next.append(words)
            return
        self._hypervisor(node).fail_next.setdefault(Order(order), []).append(words)

    def do_fill_disk(self, node: str) -> None:
        self.world.nodes[node].fail_persist = True

    def do_traffic(self, vm: str, node: str, state: str = "on") -> None:
        """traffic vm1 from a [off]: packets for the VM enter the fabric at this node."""
        if state == "on":
            self.world.senders.add((node, vm_key(vm)))
        else:
            self.world.senders.discard((node, vm_key(vm)))

    def do_lossless(self, vm: str, state: str = "on") -> None:
        """From now on no packet for the VM may be lost, from wherever it comes."""
        if state == "on":
            self.world.lossless.add(vm_key(vm))
        else:
            self.world.lossless.discard(vm_key(vm))

    def do_expect(self, vm: str, node: str) -> None:
        """expect vm1 at b: other hands may start it there, or move it there."""
        key = vm_key(vm)
        home = list(self.world.nodes).index(node) + 1
        addresses = self.world.interfaces.get(key) or interfaces_of(vm, home, 1)
        self._wait_for_result(self.world.expect_vm(key, node, addresses))

    def do_forget(self, vm: str, node: str) -> None:
        """forget vm1 at b: it is not expected there any more."""
        self._wait_for_result(self.world.unexpect_vm(vm_key(vm), node))

    def do_check(self, node: str = MANAGER) -> None:
        """check; check a: what the manager, or an NVE, finds to differ."""
        number = self.world.check(node)
        self._wait_for_result(number)
        result = self.world.results[number].result
        rows = [
            f"{r['vm']} at {r['nve']}: {r['what']} is {r['found']}, not {r['expected']}"
            for r in result["drift"]
        ]
        rows += [f"no answer of {node}" for node in result.get("unanswered", ())]
        self._lines += [f"    {row}" for row in rows or [f"{result['checked']} checked, no drift"]]

    def do_drift(self, node: str, vm: str) -> None:
        """drift a vm1: hands remove what node a's kernel holds for the VM."""
        self.world.nodes[node].kernel.hold(vm_key(vm), None)

    def do_lose_state(self, node: str) -> None:
        """lose-state a: the node, which is down, comes back without its memory."""
        self.world.lose_state(node)

    def do_onboard(self, vm: str, *nodes: str) -> None:
        """onboard vm1 at a b: with the addresses that it has, at these NVEs only."""
        key = vm_key(vm)
        addresses = self.world.interfaces.setdefault(key, interfaces_of(vm, 1, 1))
        node = self.world.nodes[MANAGER]
        manager = node.manager
        assert manager is not None
        manager.onboard(key, addresses, nodes, self.world.now)
        self.world.feed(node, lambda: None)

    def do_show(self, vm: str = "") -> None:
        """Where everything stands."""
        for key in sorted(self.world.interfaces):
            if not vm or key.vm_id == vm:
                self._show(key)

    # ---- what is shown -------------------------------------------------------------------------

    def _move(self, vm: VmKey) -> Move:
        manager = self.world.nodes[MANAGER].manager
        assert manager is not None
        return manager.moves[self._moves[vm]]

    def _show(self, vm: VmKey) -> None:
        world, say = self.world, lambda text: self._lines.append("    " + text)
        say(f"{vm} runs at {', '.join(safety.running(world, vm)) or 'no node'}")
        manager = world.nodes[MANAGER].manager
        binding = manager.cache.bindings.get(vm) if manager else None
        if binding:
            previous = [
                n + ("" if p.acknowledged >= binding.epoch else " (not yet)")
                for n, p in binding.previous.items()
            ]
            text = f"binding: {binding.nve.nve_id} epoch {binding.epoch}"
            text += f", previous {', '.join(previous)}" if previous else ""
            if binding.guest is not GuestState.RUNNING:
                text += f", {binding.guest.name.lower()}"
            if binding.order is not None:
                text += f", to be {binding.order.state.name.lower()}"
            if binding.guest_error:
                text += f" ({binding.guest_error})"
            say(text + (", the fabric is direct" if binding.fabric_direct else ""))
        elif manager:
            say("binding: none")
        for name, node in world.nodes.items():
            entry = node.edge.entries.get(vm) if node.edge else None
            if entry:
                held = node.kernel.held.get(vm)
                say(f"{name}: {entry.phase.name} epoch {entry.epoch}, {describe(held)}")
            routed = entry_in_words(node, vm)
            if routed:
                say(f"{name}: {routed}")
        walks = [
            f"{'>'.join(('outside', *w.path) if w.outside else w.path)} {w.end}"
            for w in safety.walks(world, vm)
        ]
        say("packets: " + "; ".join(walks))
        move = manager.moves.get(self._moves.get(vm, "")) if manager else None
        if move:
            because = f" ({move.reason})" if move.reason else ""
            say(
                f"move {move.source.nve_id}->{move.destination.nve_id}: {move.state.value}{because}"
            )

    def _observe(self, node: Node, what: str, value: Any) -> None:
        if what == "crash":
            self._say(node.node_id, "is down")
        elif what == "report":
            vm, event, detail = value
            reason = f" ({detail['reason']})" if "reason" in detail else ""
            self._say(node.node_id, f"reports {vm} {event}{reason}")
        elif what == "held":
            if isinstance(value, list):
                self._say(node.node_id, f"the kernel refuses: {'; '.join(value)}")
            else:
                verb = "leads" if isinstance(value, VmRoutes) else "holds"
                self._say(node.node_id, f"{verb} {value.vm}: {describe(value)}")
        elif what == "output":
            self._output(node, value)

    def _output(self, node: Node, output: Any) -> None:
        if isinstance(output, Send):
            peer = self.world.by_address[output.destination.address]
            lost = " (cut)" if frozenset((node.node_id, peer.node_id)) in self.world.cut else ""
            part = decode_part(output.data, TRAILER)
            more = f" part {part.number} of {part.count}" if part.count > 1 else ""
            text = f"-> {peer.node_id:<8} {summary(part.message)}{more}{lost}"
            self._say(node.node_id, text)
        elif isinstance(output, HypervisorOrder):
            self._say(node.node_id, f"orders {output.vm} {output.order.value}")
        elif isinstance(output, CommandDone):
            error = f"fails: {output.error}" if output.error else "is done"
            self._say(node.node_id, f"command {output.command} {error}")
        elif isinstance(output, Event) and output.name.startswith(TOLD):
            said = ("vm", "status", "state", "reason")
            detail = [str(output.detail[k]) for k in said if k in output.detail]
            self._say(node.node_id, f"* {output.name} {' '.join(detail)}")
        elif isinstance(output, Halt):
            self._say(node.node_id, f"halts: {output.reason}")


def describe(state: VmDataPlane | VmRoutes | None) -> str:
    """What an NVE or a router holds, in words; None is nothing."""
    if isinstance(state, VmRoutes):
        return describe_routes(state)
    return state.words() if state is not None else "nothing"
