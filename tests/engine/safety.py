"""What must hold after every event (design, Invariants), looked at over all nodes at once.

(a) A guest runs at most at one place.  (b) A packet for a VM, started at any node and walked
through the forwarding state that the kernels hold, never meets a node twice, and packets are
delivered to a running guest at no two places.

One path may come back to a node: redirects lead to a machine that has lost its power and holds
nothing of the VM since.  The packet ends there: what comes out of a tunnel meets no tap.

Both are functions of what kernels hold and of guests' lives, VM by VM; so after an event only
those VMs are looked at of which one of these changed (noted.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.engine.fake_hypervisor import Life
from vmmobility.engine.dataplane import Forwarding
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from collections.abc import Container

    from tests.engine.network import World
    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager import ManagerEngine


class Violation(AssertionError):
    """An invariant is broken.  invariant: which one, in a word or two."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Walk(NamedTuple):
    """Where a packet went.  end: delivered, waits (a guest's memory is on its way there), stale
    (taps of a guest that does not run there), dropped, loop."""

    path: tuple[str, ...]
    end: str


def check(world: World) -> None:
    """The look at what changed since the last one.  Raises Violation."""
    vms = world.touched | world.lossless if world.lossless else world.touched
    if vms:
        for vm in sorted(vms):
            check_vm(world, vm)
        world.touched.clear()


def check_all(world: World) -> None:
    """The same for every VM that any node knows.  Raises Violation."""
    vms = {vm for n in world.nodes.values() if n.hypervisor for vm in n.hypervisor.guests}
    vms |= {vm for n in world.nodes.values() for vm in n.kernel.held}
    for vm in sorted(vms):
        check_vm(world, vm)


def check_vm(world: World, vm: VmKey) -> None:
    places = [name for name in running(world, vm) if not _only_by_hand(world, vm, name)]
    if len(places) > 1:
        raise Violation("two places", f"{world.now:.3f} {vm} runs at {' and '.join(places)}")
    found = walks(world, vm)
    ends = {walk.path[-1] for walk in found if walk.end == "delivered"}
    if len(ends) > 1:
        where = " and ".join(sorted(ends))
        raise Violation("two deliveries", f"{world.now:.3f} {vm} is delivered at {where}")
    if vm in world.lossless:
        for walk in found:
            if walk.end not in ("delivered", "waits"):
                raise Violation("loss", f"{world.now:.3f} {vm}: {describe(walk)}")


def describe(walk: Walk) -> str:
    return f"{' -> '.join(walk.path)} {walk.end}"


def check_settled(
    world: World, may_be_lost: Container[VmKey] = (), left_open: Container[VmKey] = ()
) -> None:
    """Where nothing is under way: each bound VM runs at its NVE, and all packets reach it there -
    or its guest is gone and a failed move says so.  Raises Violation.

    may_be_lost: VMs whose guests a fault has ended; a binding of which none is left says so.
    left_open: not looked at."""
    manager = world.nodes["manager"].manager
    if manager is None:
        return
    for vm, binding in manager.cache.bindings.items():
        if vm in left_open:
            continue
        places, at = running(world, vm), binding.nve.nve_id
        if places != [at]:
            told = vm in may_be_lost and binding.state != "serving"
            if has_failed(manager, binding) or (told and not places):
                continue
            where = places or "no node"
            raise Violation("not at its NVE", f"{vm} is bound to {at} and runs at {where}")
        known = {at, *binding.previous}
        for walk in walks(world, vm):
            # A VM that was started away from its home is reached by a route of its serving NVE's
            # own, which walks do not know: no NVE at its home could redirect.
            unknown_at_home = walk.path[-1] == home(world, vm) not in known
            if walk.end != "delivered" and not (walk.end == "dropped" and unknown_at_home):
                raise Violation("not reached", f"{vm}: {describe(walk)}")


def _only_by_hand(world: World, vm: VmKey, name: str) -> bool:
    """Whether other hands run the guest and no packet is led to it: a second copy that hands start
    cannot be kept from it, only from being heard; its NVE stops it as soon as it is refused."""
    node = world.nodes[name]
    state = node.kernel.held.get(vm)
    delivered = state is not None and state.forwarding is Forwarding.LOCAL
    return node.hypervisor is not None and node.hypervisor.guests[vm].by_hand and not delivered


def has_failed(manager: ManagerEngine, binding: Binding) -> bool:
    """Whether a move has failed since this binding was made, and so nobody may run the VM."""
    return any(
        move.vm == binding.vm
        and move.state is MoveState.FAILED
        and max(move.epoch, move.back_epoch) >= binding.epoch
        for move in manager.moves.values()
    )


def running(world: World, vm: VmKey) -> list[str]:
    """The nodes at which the VM's guest runs."""
    return [
        name
        for name, node in world.nodes.items()
        if node.hypervisor and vm in node.hypervisor.guests
        and node.hypervisor.guests[vm].life is Life.RUNNING
    ]  # fmt: skip


def walks(world: World, vm: VmKey) -> list[Walk]:
    """A packet from each NVE, walked to its end.  Raises Violation for a loop."""
    found = []
    for name, node in world.nodes.items():
        if node.hypervisor is not None:
            walk = _walk(world, vm, name)
            if walk.end == "loop":
                raise Violation("loop", f"{world.now:.3f} {vm}: {describe(walk)}")
            found.append(walk)
    return found


def _walk(world: World, vm: VmKey, start: str) -> Walk:
    path, came_from = [start], ""
    seen = set()
    while True:
        node = world.nodes[path[-1]]
        state = node.kernel.held.get(vm)
        if came_from and not _accepts(world, vm, path[-1], came_from):
            return Walk(tuple(path), "dropped")
        if state is None or state.forwarding is Forwarding.NONE:
            covering = home(world, vm)
            if covering is None or covering == path[-1] or came_from:
                return Walk(tuple(path), "dropped")
            following, tunnelled = covering, ""
        elif state.forwarding is Forwarding.LOCAL:
            return Walk(tuple(path), _local(world, vm, path[-1]))
        else:
            assert state.target is not None
            following, tunnelled = state.target.nve_id, path[-1]
            if following == came_from:
                return Walk(tuple(path), "dropped")
        if following in path and vm not in world.nodes[following].kernel.lost:
            refused = tunnelled and not _accepts(world, vm, following, tunnelled)
            return Walk((*path, following), "dropped" if refused else "loop")
        if (following, tunnelled) in seen:
            return Walk((*path, following), "loop")
        seen.add((following, tunnelled))
        path.append(following)
        came_from = tunnelled


def _accepts(world: World, vm: VmKey, name: str, sender: str) -> bool:
    """Whether the node takes the VM's packets out of a tunnel from that sender."""
    state = world.nodes[name].kernel.held.get(vm)
    return state is not None and sender in {n.nve_id for n in state.accept_from}


def _local(world: World, vm: VmKey, name: str) -> str:
    hypervisor = world.nodes[name].hypervisor
    assert hypervisor is not None
    guest = hypervisor.guests.get(vm)
    if guest is None:
        return "stale"
    ends = {Life.RUNNING: "delivered", Life.WAITING: "waits"}
    return ends.get(guest.life, "stale")


def home(world: World, vm: VmKey) -> str | None:
    """The node to which the fabric's covering prefix leads for the VM (by its first address)."""
    if vm not in world.homes:
        addresses = [p for i in world.interfaces.get(vm, ()) for p in i.prefixes]
        if not addresses:
            return None
        world.homes[vm] = next(
            (
                name
                for name, node in world.nodes.items()
                for covering in node.home
                if addresses[0].version == covering.version and addresses[0].subnet_of(covering)
            ),
            None,
        )
    return world.homes[vm]
