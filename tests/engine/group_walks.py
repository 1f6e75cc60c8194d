"""Packets for the address of a load-shared group, walked through all that the kernels hold.

Several members have the address, so a router may have several next hops; every one is followed, for
some flow is hashed to it.  A packet may end at any member that runs, at no other place, and meets
no node twice.  An NVE has a part of one member only, or its kernel could not tell whose packet it
is.  Not here: VMs that are alone (safety.py), to which this belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.engine import safety
from vmmobility.engine.binding_cache import BindingCache
from vmmobility.engine.dataplane import Forwarding, Outside, VmDataPlane
from vmmobility.wire.registry import GuestState
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from tests.engine.network import World

Path = tuple[str, ...]


def walks(world: World, vm: VmKey) -> list[safety.Walk]:
    """A packet from each NVE and router, and from outside, by every way that it may take.  Raises
    Violation for a loop that outlasts the fabric's turn."""
    found = []
    fabric = world.fabric
    for name, outside in safety.starts_of(world):
        for path, end in _ways(world, vm, (name,), "", frozenset(), outside=outside):
            end = "dropped" if end == "loop" and _bounces(world, vm, path) else end
            walk = safety.Walk(path, end, outside)
            if end == "loop" and fabric is not None and fabric.turns(vm):
                fabric.micro_loops += 1
            elif end == "loop":
                words = f"{world.now:.3f} {vm}: {safety.describe(walk)}"
                raise safety.Violation("loop", words)
            found.append(walk)
    return found


def standing(world: World, vm: VmKey, name: str) -> VmDataPlane | None:
    """What the node's kernel does with a packet for the group's address.  Raises Violation if it
    has more than one member's routes."""
    held = world.nodes[name].kernel.held
    states = [held[mate] for mate in world.groups[vm] if mate in held]
    states = [state for state in states if state.forwarding is not Forwarding.NONE]
    if len(states) > 1:
        both = " and ".join(f"{s.vm} ({s.forwarding.value})" for s in states)
        raise safety.Violation("two members at an NVE", f"{world.now:.3f} {name} holds {both}")
    return states[0] if states else None


def _ways(
    world: World,
    vm: VmKey,
    path: Path,
    came_from: str,
    seen: frozenset[tuple[str, str]],
    *,
    outside: bool,
) -> Iterator[tuple[Path, str]]:
    hops = _by_fabric(world, vm, path)
    if hops is not None and not came_from:
        if not hops:
            yield path, "dropped"
        for hop in sorted(hops):
            if hop in path:
                back = hop == path[0] and _by_fabric(world, vm, (*path, hop)) == set()
                yield (*path, hop), "dropped" if back else "loop"
            else:
                yield from _ways(world, vm, (*path, hop), "", seen, outside=outside)
        return
    state = standing(world, vm, path[-1])
    if came_from and (state is None or came_from not in {n.nve_id for n in state.accept_from}):
        yield path, "dropped"
        return
    if state is None:
        covering = safety.home(world, vm)
        if covering is None or covering == path[-1] or came_from:
            yield path, "dropped"
            return
        following, tunnelled = covering, ""
    elif state.forwarding is Forwarding.LOCAL:
        yield path, safety.local_end(world, state.vm, path[-1])
        return
    elif outside:
        queued = state.outside is Outside.QUEUE
        yield path, safety.local_end(world, state.vm, path[-1]) if queued else "dropped"
        return
    else:
        assert state.target is not None
        following, tunnelled = state.target.nve_id, path[-1]
        if following == came_from:
            yield path, "dropped"
            return
    lost = world.nodes[following].kernel.lost
    if following in path and not lost.intersection(world.groups[vm]):
        there = standing(world, vm, following)
        accepted = there is not None and tunnelled in {n.nve_id for n in there.accept_from}
        yield (*path, following), "dropped" if tunnelled and not accepted else "loop"
    elif (following, tunnelled) in seen:
        yield (*path, following), "loop"
    else:
        seen |= {(following, tunnelled)}
        yield from _ways(world, vm, (*path, following), tunnelled, seen, outside=outside)


def _by_fabric(world: World, vm: VmKey, path: Path) -> set[str] | None:
    """The next nodes by the fabric; none: it ends here; None: an NVE decides."""
    fabric, name = world.fabric, path[-1]
    if fabric is None:
        return None
    if name in fabric.sites:
        return fabric.next_hops(name, vm)
    router = fabric.router_of(name)
    if router is None or standing(world, vm, name) is not None:
        return None
    came = len(path) > 1
    lost = world.nodes[name].kernel.lost.intersection(world.groups[vm])
    return set() if came and (name == safety.home(world, vm) or lost) else {router}


def _bounces(world: World, vm: VmKey, path: Path) -> bool:
    """As for a VM that is alone (safety.py), by any member: the NVE to which a packet came holds
    nothing yet, or any more."""
    fabric = world.fabric
    if fabric is None or not {path[-1], path[-2]} & set(fabric.sites):
        return False
    nve = path[-2] if path[-1] in fabric.sites else path[-1]
    disk = world.nodes["manager"].disk
    for mate in world.groups[vm]:
        bound = disk.get(BindingCache.key(mate))
        if bound is None or bound["ending"]:
            entry = world.nodes[nve].disk.get(f"vm/{mate.vni}/{mate.vm_id}")
            if entry is not None and nve not in fabric.sites:
                return True
            continue
        told = {p["nve"] for p in bound["previous"] if p["acknowledged"] < bound["epoch"]}
        if nve in {bound["nve"]["nve"], *told}:
            return True
    return False


def is_held(world: World, vm: VmKey, walk: safety.Walk) -> bool:
    """Whether it ends at the taps of a member that people have stopped there: what begins at that
    NVE does and, where no router is, all that the covering prefix leads there."""
    bindings = world.manager.cache.bindings
    stopped = {
        b.nve.nve_id
        for mate in world.groups[vm]
        if (b := bindings.get(mate)) is not None and b.guest is not GuestState.RUNNING
    }
    near = len(walk.path) == 1 or world.fabric is None
    return walk.end == "stale" and near and walk.path[-1] in stopped


def check_routes(world: World, vm: VmKey, at: str) -> None:
    """Where nothing is under way: routers of members announce them, no others hold anything, and
    packets meet no NVE but that where they begin and a serving one.  Raises Violation."""
    fabric, manager = world.fabric, world.manager
    assert fabric is not None
    serving = {b.nve.nve_id for m in world.groups[vm] if (b := manager.cache.bindings.get(m))}
    group = manager.group_of(vm)
    out = group.out if group else {}
    for name, site in fabric.sites.items():
        held = fabric.held[name].get(vm)
        if held is not None and at not in site.serves:
            raise safety.Violation("a stale route", f"{name} {held.state.value}s {vm}")
        if at in site.serves and fabric.announces(name, vm) is (vm in out):
            does = "announces" if vm in out else "does not announce"
            raise safety.Violation("a stale route", f"{name} {does} {vm}")
    if fabric.barred:
        return
    for walk in walks(world, vm):
        detour = [n for n in walk.path[1:] if n not in fabric.sites and n not in serving]
        if detour and fabric.router_of(at):
            raise safety.Violation("a detour", f"{vm}: {safety.describe(walk)}")
