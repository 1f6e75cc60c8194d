"""What must be true when nothing is under way any more (design, invariants 6 to 8).

Faults have ended, everything runs, the network is well; after a while it must be quiet, and then:

- every move has ended; a VM that runs is bound where it runs and reached from everywhere; a VM of
  which a whole copy survived runs (Fates);
- a packet meets at most the home's NVE on its way, and nothing is left of VMs and moves that are no
  more, nor of redirects that no traffic and no covering prefix needs.

What may stay open is named here, in `JUSTIFIED`, with its reason; nothing else may.
"""

from __future__ import annotations

from tests.engine import safety
from tests.engine.fake_hypervisor import Life
from tests.engine.network import MANAGER, World
from tests.engine.safety import Violation
from tests.simulation.fates import Fates
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.dataplane import Forwarding
from vmmobility.wire.registry import GuestState, Phase, Purpose
from vmmobility.wire.values import VmKey

SETTLE_S = 180.0  # of virtual time, at most
CHUNK_S = 0.5
# The ends of a switch that the manager has forgotten, if its guest never ran on: neither knows of
# the other whether that is to come.
OPEN = (Phase.SWITCHED, Phase.DELIVERING)
KEPT = (Life.PAUSED, Life.DEPARTED)  # superseded; sent away by other hands, which end it


def settle(world: World, at_least_s: float) -> None:
    """Run until nothing is outstanding (twice in a row), and for `at_least_s`."""
    least, end, quiet = world.now + at_least_s, world.now + SETTLE_S, 0
    while quiet < 2 or world.now < least:
        if world.now > end:
            raise Violation("does not settle", "; ".join(unsettled(world)))
        world.run(CHUNK_S)
        quiet = 0 if unsettled(world) else quiet + 1


def unsettled(world: World) -> list[str]:
    """What is still under way, in words."""
    found = []
    for name, node in world.nodes.items():
        if node.engine is None:
            found.append(f"{name} is down")
        else:
            asked = [
                one
                for one in node.engine.channel._outstanding.values()
                if one.message.purpose is not Purpose.HEARTBEAT
            ]
            found += [f"{name} asks {a.peer.node_id} {a.message.purpose.name}" for a in asked]
    if world.fabric is not None:
        found += [f"the fabric turns for {vm}" for vm, n in world.fabric.under_way.items() if n]
    manager = world.nodes[MANAGER].manager
    if manager is not None:
        moves = [m for m in manager.moves.values() if m.ok is None]
        found += [f"routers are told of {vm} again" for vm in manager._route_retry]
        found += [f"routers still turn for {vm}" for vm in manager._withdrawals]
        found += [f"the move of {m.vm} is {m.state.value}" for m in moves]
        drains = [d for d in manager.drains.values() if d.ok is None]
        found += [f"the drain of {d.nve_id} is {d.state.value}" for d in drains]
    return found


def check(world: World, fates: Fates) -> None:
    """Raises Violation."""
    manager = world.nodes[MANAGER].manager
    assert manager is not None
    open_still = left_open(world, fates)
    safety.check_settled(world, set(world.interfaces) - fates.must_live, open_still)
    for vm in sorted(set(world.interfaces) - open_still):
        places = safety.running(world, vm)
        binding = manager.cache.bindings.get(vm)
        if binding is not None and not fates.manager_forgot:
            _check_awake(world, vm, binding)
        if binding is not None and binding.guest is not GuestState.RUNNING:
            if not binding.lost:
                _check_bound(world, vm, binding)
            continue
        if vm in fates.must_live and len(places) != 1:
            raise Violation("lost", f"{vm} runs nowhere, and no fault destroyed it")
        if places and binding is None:
            raise Violation("not bound", f"{vm} runs at {places} and is not bound")
        if binding is None:
            _check_forgotten(world, vm)
        elif places and not safety.has_failed(manager, binding):
            _check_bound(world, vm, binding)


def _check_awake(world: World, vm: VmKey, binding: Binding) -> None:
    """A guest that was suspended for a move alone goes on when that has ended."""
    if binding.guest is not GuestState.SUSPENDED or binding.guest_error or binding.lost:
        return
    for move in world.manager.moves.values():
        ended = move.vm == vm and move.wakes and move.ok is not None
        if ended and max(binding.guest_epoch, binding.epoch) <= max(move.epoch, move.back_epoch):
            raise Violation("left suspended", f"{vm} at {binding.nve.nve_id}: {move.reason}")


def _check_bound(world: World, vm: VmKey, binding: Binding) -> None:
    for walk in safety.walks(world, vm):
        start = world.nodes[walk.path[0]].kernel.held.get(vm)
        leads = start is not None and start.forwarding is not Forwarding.NONE
        longest = 2 if leads else 3  # by the covering prefix to the home's NVE
        # Where routers are none may be met but that where it begins (safety.check_routes).
        if len(walk.path) > longest and not world.fabric:
            raise Violation("a detour", f"{vm}: {safety.describe(walk)}")
    for name, node in world.nodes.items():
        edge, hypervisor = node.edge, node.hypervisor
        if edge is None or hypervisor is None:
            continue
        entry = edge.entries.get(vm)
        phase = entry.phase if entry else Phase.NONE
        serving = name == binding.nve.nve_id
        held = Phase.SERVING if binding.guest is GuestState.RUNNING else Phase.STOPPED
        allowed = {held} if serving else {Phase.NONE, Phase.REDIRECTING}
        by_hand = entry is not None and entry.expected  # taps stay, and guests are not ours to end
        if phase not in allowed:
            raise Violation("a leftover", f"{vm} at {name}: {phase.name}")
        if phase is Phase.REDIRECTING and name not in binding.previous:
            raise Violation("unknown redirect", f"{vm} at {name}, which the manager does not know")
        guest = hypervisor.guests.get(vm)
        if not serving and guest is not None and guest.life not in KEPT:
            raise Violation("a leftover", f"{vm} at {name}: a guest {guest.life.value}")
        state = node.kernel.held.get(vm)
        if state is not None and state.plugged and not serving and not by_hand:
            raise Violation("a leftover", f"{vm} at {name}: taps")


def _check_forgotten(world: World, vm: VmKey) -> None:
    """Of a VM that is no more, only tombstones stay - and, where other hands run it, what waits for
    it to come again and what those hands have left."""
    for name, node in world.nodes.items():
        entry = node.edge.entries.get(vm) if node.edge else None
        by_hand = entry is not None and entry.expected
        held = node.kernel.held.get(vm)
        if held is not None and not (by_hand and held.forwarding is Forwarding.NONE):
            what = f"{vm} is not bound, and {name} holds {held.forwarding.value}"
            raise Violation("a leftover", what)
        guest = node.hypervisor.guests.get(vm) if node.hypervisor else None
        if guest is not None and not (by_hand and guest.life is Life.DEPARTED):
            what = f"{vm} is not bound, and a guest is {guest.life.value} at {name}"
            raise Violation("a leftover", what)


def left_open(world: World, fates: Fates) -> set[VmKey]:
    """VMs of which no guest runs, whose switch was forgotten with the manager's records."""
    if not fates.manager_forgot:
        return set()
    entries = [(v, e) for n in world.nodes.values() if n.edge for v, e in n.edge.entries.items()]
    return {v for v, e in entries if e.phase in OPEN and not safety.running(world, v)}


def check_drained(world: World, fates: Fates) -> None:
    """Some time after the last traffic: who still redirects has a covering prefix for it, past
    which no router leads."""
    for vm in set(world.interfaces) - left_open(world, fates):
        for name, node in world.nodes.items():
            held = node.kernel.held.get(vm)
            if held is None or held.forwarding is not Forwarding.REDIRECT:
                continue
            needed = name == safety.home(world, vm) and not world.fabric
            if not needed and (name, vm) not in world.senders:
                raise Violation("not drained", f"{vm} at {name}")
