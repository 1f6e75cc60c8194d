"""What must hold after every event (design, Invariants), looked at over all nodes at once.

(a) A guest runs at most at one place.  (b) A packet for a VM, started at any node and walked
through the forwarding state that the kernels hold, never meets a node twice, and packets are
delivered to a running guest at no two places.

One path may come back to a node: redirects lead to a machine that has lost its power and holds
nothing of the VM since.  The packet ends there: what comes out of a tunnel meets no tap.

Where routers are (fake_fabric.py) an NVE that holds nothing sends to its router, and packets begin
at routers, too.  A loop while announcements or withdrawals of that VM are still on their way is the
fabric's own and is only counted; one that outlasts them is a violation.  So is what a router leads
to an NVE that holds nothing and sends it back - unless the VM is bound there, and the grant on its
way, or it is no more: then it is dropped when its hops are used up.

Both are functions of what kernels hold and of guests' lives, VM by VM; so after an event only
those VMs are looked at of which one of these changed (noted.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.engine import group_walks
from tests.engine.fake_hypervisor import Life
from vmmobility.engine.binding_cache import BindingCache
from vmmobility.engine.dataplane import Forwarding, Outside
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.wire.registry import GuestState, Phase
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
    (taps of a guest that does not run there), dropped, loop.  outside: its sender is outside of the
    data centres (it came in by a border router), so no NVE may tunnel it."""

    path: tuple[str, ...]
    end: str
    outside: bool = False


def check(world: World) -> None:
    """The look at what changed since the last one.  Raises Violation."""
    vms = world.touched | world.lossless if world.lossless else world.touched
    if vms:
        vms = vms | {mate for vm in vms for mate in world.groups.get(vm, ())}
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
    if len(ends) > 1 and vm not in world.groups:
        where = " and ".join(sorted(ends))
        raise Violation("two deliveries", f"{world.now:.3f} {vm} is delivered at {where}")
    if vm in world.lossless:
        for walk in found:
            if walk.end not in ("delivered", "waits") and not _turns_without_net(world, vm):
                raise Violation("loss", f"{world.now:.3f} {vm}: {describe(walk)}")


def _turns_without_net(world: World, vm: VmKey) -> bool:
    """Whether the fabric turns for a VM that was never at its home: where a withdrawal overtakes
    the announcement the covering prefix leads, to an NVE that the manager does not know for it."""
    fabric, manager = world.fabric, world.nodes["manager"].manager
    if fabric is None or not fabric.under_way[vm]:
        return False
    binding = manager.cache.bindings.get(vm) if manager else None
    fabric.losses += 1
    return binding is None or binding.home is None


def describe(walk: Walk) -> str:
    return f"{'outside -> ' if walk.outside else ''}{' -> '.join(walk.path)} {walk.end}"


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
    for vm in {vm for vm in world.interfaces if vm not in manager.cache.bindings}:
        if world.fabric and world.fabric.left_of(vm) and vm not in left_open:
            left = "; ".join(world.fabric.left_of(vm))
            raise Violation("a stale route", f"{vm} is not bound, and {left}")
    for vm, binding in manager.cache.bindings.items():
        if vm in left_open:
            continue
        places, at = running(world, vm), binding.nve.nve_id
        if binding.guest is not GuestState.RUNNING and binding.order is None:
            if vm in may_be_lost and binding.state != "serving":
                continue
            check_held(world, vm, binding)
            continue
        if places != [at]:
            told = vm in may_be_lost and binding.state != "serving"
            if has_failed(manager, binding) or (told and not places):
                continue
            where = places or "no node"
            raise Violation("not at its NVE", f"{vm} is bound to {at} and runs at {where}")
        known = {at, *binding.previous}
        if world.fabric is not None:
            check_routes(world, vm, at, at_home=binding.at_home)
        for walk in walks(world, vm):
            # A VM that was started away from its home is reached by a route of its serving NVE's
            # own, which walks do not know: no NVE at its home could redirect.
            unknown_at_home = walk.path[-1] == home(world, vm) not in known and not world.fabric
            if walk.outside and not _is_led_to(world, vm, at):
                continue  # nobody may tunnel it
            if vm in world.groups and group_walks.is_held(world, vm, walk):
                continue
            if walk.end != "delivered" and not (walk.end == "dropped" and unknown_at_home):
                raise Violation("not reached", f"{vm}: {describe(walk)}")


def check_held(world: World, vm: VmKey, binding: Binding) -> None:
    """A VM that its NVE has confirmed to be suspended or stopped runs nowhere; its packets end at
    that NVE's taps, and one that is suspended is in memory there.  Raises Violation."""
    at = binding.nve.nve_id
    if running(world, vm):
        where = f"{binding.guest.name.lower()} at {at} and runs at {running(world, vm)}"
        raise Violation("runs though it was stopped", f"{vm} is {where}")
    entry = world.edge(at).entries.get(vm)
    if entry is None or entry.phase is not Phase.STOPPED or entry.guest is not binding.guest:
        where = f"{entry.phase.name} {entry.guest.name}" if entry else "not there"
        raise Violation("not as it was ordered", f"{vm} at {at}: {where}")
    guest = world.nodes[at].hypervisor.guests.get(vm)  # type: ignore[union-attr]
    if (guest is not None) is not (binding.guest is GuestState.SUSPENDED):
        life = guest.life.value if guest else "none"
        raise Violation("not as it was ordered", f"{vm} at {at}: its guest is {life}")
    for walk in walks(world, vm):
        if walk.path[-1] == at and walk.end != "stale":
            raise Violation("not held", f"{vm}: {describe(walk)}")


def check_routes(world: World, vm: VmKey, at: str, *, at_home: bool) -> None:
    """Where nothing is under way: packets meet no NVE but that where they begin and that where they
    are delivered; a VM at home is known to no router.  Raises Violation."""
    fabric = world.fabric
    assert fabric is not None
    if vm in world.groups:
        group_walks.check_routes(world, vm, at)
        return
    if at_home and fabric.left_of(vm):
        raise Violation("a stale route", f"{vm} is at home, and {'; '.join(fabric.left_of(vm))}")
    for name in fabric.sites:
        router = world.nodes[name].router
        if at_home and router is not None and vm in {r.vm for r in router.watched()}:
            raise Violation("a stale route", f"{vm} is at home, and {name} knows of it")
        held = fabric.held[name].get(vm)
        if held is not None and at not in fabric.sites[name].serves:
            raise Violation("a stale route", f"{vm} is at {at}, and {name} {held.state.value}s it")
    if fabric.barred or not fabric.router_of(at):
        return
    for walk in walks(world, vm):
        detour = [n for n in walk.path[1:] if n not in fabric.sites and n != at]
        if detour:
            raise Violation("a detour", f"{vm}: {describe(walk)}")


def _is_led_to(world: World, vm: VmKey, at: str) -> bool:
    """Whether the fabric itself leads there, wherever a packet comes in."""
    fabric = world.fabric
    assert fabric is not None
    return not fabric.barred and (home(world, vm) == at or fabric.router_of(at) is not None)


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
    """A packet from each NVE and router, and one from outside by each border router, walked to its
    end.  Raises Violation for a loop."""
    found = []
    fabric = world.fabric
    if vm in world.groups:
        return group_walks.walks(world, vm)
    for name, outside in starts_of(world):
        path, end = _walk(world, vm, name, outside=outside)
        if end == "loop" and _bounces(world, vm, path):
            end = "dropped"
        walk = Walk(path, end, outside)
        if end == "loop" and fabric is not None and fabric.under_way[vm]:
            fabric.micro_loops += 1
        elif end == "loop":
            raise Violation("loop", f"{world.now:.3f} {vm}: {describe(walk)}")
        found.append(walk)
    return found


def starts_of(world: World) -> list[tuple[str, bool]]:
    """Where packets begin, and whether they come from outside there."""
    sites = world.fabric.sites if world.fabric is not None else {}
    starts = [(n, False) for n, node in world.nodes.items() if node.hypervisor or n in sites]
    return starts + [(name, True) for name, site in sites.items() if site.border]


def _walk(world: World, vm: VmKey, start: str, *, outside: bool) -> tuple[tuple[str, ...], str]:
    path, came_from = [start], ""
    seen = set()
    while True:
        node = world.nodes[path[-1]]
        state = node.kernel.held.get(vm)
        hop = _by_fabric(world, vm, path)
        if hop is not None and not came_from:
            path += [hop] if hop else []
            if not hop or hop in path[:-1]:
                unknown = not hop or (hop == path[0] and _by_fabric(world, vm, path) == "")
                return tuple(path), "dropped" if unknown else "loop"
            continue
        if came_from and not _accepts(world, vm, path[-1], came_from):
            return tuple(path), "dropped"
        if state is None or state.forwarding is Forwarding.NONE:
            covering = home(world, vm)
            if covering is None or covering == path[-1] or came_from:
                return tuple(path), "dropped"
            following, tunnelled = covering, ""
        elif state.forwarding is Forwarding.LOCAL:
            return tuple(path), local_end(world, vm, path[-1])
        elif outside:
            queued = state.outside is Outside.QUEUE
            return tuple(path), local_end(world, vm, path[-1]) if queued else "dropped"
        else:
            assert state.target is not None
            following, tunnelled = state.target.nve_id, path[-1]
            if following == came_from:
                return tuple(path), "dropped"
        if following in path and vm not in world.nodes[following].kernel.lost:
            refused = tunnelled and not _accepts(world, vm, following, tunnelled)
            return (*path, following), "dropped" if refused else "loop"
        if (following, tunnelled) in seen:
            return (*path, following), "loop"
        seen.add((following, tunnelled))
        path.append(following)
        came_from = tunnelled


def _bounces(world: World, vm: VmKey, path: tuple[str, ...]) -> bool:
    """Whether a packet comes to the NVE that a VM was granted to, or that is being told to
    redirect, or to any of a VM that is no more, and that NVE holds nothing yet, or any more."""
    fabric = world.fabric
    if fabric is None or not {path[-1], path[-2]} & set(fabric.sites):
        return False
    nve = path[-2] if path[-1] in fabric.sites else path[-1]
    bound = world.nodes["manager"].disk.get(BindingCache.key(vm))
    if nve in fabric.sites or bound is None or bound["ending"]:
        return nve not in fabric.sites
    told = {p["nve"] for p in bound["previous"] if p["acknowledged"] < bound["epoch"]}
    return nve in {bound["nve"]["nve"], *told}


def _by_fabric(world: World, vm: VmKey, path: list[str]) -> str | None:
    """The next node of a packet that the fabric leads; "": it ends here; None: an NVE decides."""
    fabric, name = world.fabric, path[-1]
    if fabric is None:
        return None
    if name in fabric.sites:
        return fabric.next_hop(name, vm) or ""
    kernel = world.nodes[name].kernel
    state = kernel.held.get(vm)
    router = fabric.router_of(name)
    if router is None or not (state is None or state.forwarding is Forwarding.NONE):
        return None
    # What comes to the home's NVE by its covering prefix goes no further, nor does what comes to a
    # machine that has lost all.
    came = len(path) > 1
    return "" if came and (name == home(world, vm) or vm in kernel.lost) else router


def _accepts(world: World, vm: VmKey, name: str, sender: str) -> bool:
    """Whether the node takes the VM's packets out of a tunnel from that sender."""
    state = world.nodes[name].kernel.held.get(vm)
    return state is not None and sender in {n.nve_id for n in state.accept_from}


def local_end(world: World, vm: VmKey, name: str) -> str:
    """What becomes of a packet that the node leads to the VM's taps."""
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
