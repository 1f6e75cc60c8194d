"""What the guard of the kernel tunnels holds, and the scripts that bring it to what is wanted.

An accepted pair is taken away before the routes turn and given after: a packet from the peer that
is the redirect's new target never meets the route back to it.  Not here: nft's texts
(tunnel_guard.py), when routes turn (driver.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from vmmobility.drivers.dataplane import Failure
from vmmobility.drivers.linux import filter, tunnel_guard
from vmmobility.drivers.linux.filter_listing import generation
from vmmobility.drivers.linux.filter_state import run_scripts
from vmmobility.drivers.linux.plan import Plan, vm_name
from vmmobility.drivers.linux.tunnel_guard import Held, Pair
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Prefix, VmKey

T = TypeVar("T")
_NOBODY = VmKey(0, "")
_ITEM = "guard"


class Guard:
    """Pairs and counted prefixes by VM; the kernel's side is read once, then followed."""

    def __init__(self) -> None:
        self._pairs: dict[VmKey, frozenset[Pair]] = {}
        self._users: Counter[Pair] = Counter()
        self._counted: dict[VmKey, tuple[Prefix, ...]] = {}
        self._counters: Counter[Prefix] = Counter()
        self._held = Held()
        self._rules = ""  # as nft shows those that we wrote
        self._seen: tuple[int | None, Held] = (None, Held())

    async def ensure(self) -> None:
        """Have the table with our rules, and know what it holds.  Raises DataPlaneError."""
        self._held = await self._look()
        if self._rules and self._held.rules == self._rules:
            return
        try:
            await filter.run_nft(tunnel_guard.base_script())
        except DataPlaneError:
            # Sets of another shape than ours: nothing of that table can be kept.
            script = tunnel_guard.removal_script() + tunnel_guard.base_script()
            await filter.run_nft(script)
        self._held = await self._look()
        self._rules = self._held.rules

    async def _look(self) -> Held:
        """What nft lists, asked again only where something was changed since; not for counters."""
        now = generation()
        if now is None or now != self._seen[0]:
            self._seen = (now, await tunnel_guard.read_held())
        seen = self._seen[1]
        return Held(seen.there, seen.rules, set(seen.accepted), dict(seen.refused))

    def forget(self) -> None:
        """Begin anew with what VMs want; what the kernel holds stays known."""
        self._pairs, self._users = {}, Counter()
        self._counted, self._counters = {}, Counter()

    # -- before and after the routes ----------------------------------------------------------

    async def before(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        """Accept no longer what is no longer wanted, and count what comes."""
        gone: dict[VmKey, set[Pair]] = {}
        old = {made.vm: self._wish(made) for made in plans}
        for vm, pairs in old.items():
            gone[vm] = {p for p in pairs & self._held.accepted if self._users[p] <= 0}
        if everything:
            gone[_NOBODY] = {p for p in self._held.accepted if self._users[p] <= 0}
        new = {made.vm: [p for p in made.counted if p not in self._held.refused] for made in plans}
        scripts: dict[VmKey, str] = {}
        for vm, surplus in gone.items():
            script = tunnel_guard.unaccept_script(surplus)
            script += tunnel_guard.count_script(new.get(vm, ()))
            if script:
                scripts[vm] = script
        failed = await run_scripts(scripts)
        for vm, surplus in gone.items():
            if vm not in failed:
                self._held.accepted -= surplus
                self._held.refused |= dict.fromkeys(new.get(vm, ()), 0)
        return _failures(failed)

    def _wish(self, made: Plan) -> frozenset[Pair]:
        """Note what a VM wants now; answers what it wanted until now."""
        old = self._pairs.pop(made.vm, frozenset())
        _swap(self._users, old, made.accepted)
        if made.accepted:
            self._pairs[made.vm] = made.accepted
        return old

    async def after(self, plans: Sequence[Plan], everything: bool) -> list[Failure]:
        """Accept what is wanted, and count no longer what nobody wants counted."""
        new: dict[VmKey, frozenset[Pair]] = {}
        gone: dict[VmKey, list[Prefix]] = {}
        for made in plans:
            new[made.vm] = made.accepted - self._held.accepted
            gone[made.vm] = self._count(made)
        if everything:
            gone[_NOBODY] = [p for p in self._held.refused if self._counters[p] <= 0]
        scripts: dict[VmKey, str] = {}
        for vm, prefixes in gone.items():
            script = tunnel_guard.accept_script(new.get(vm, ()))
            script += tunnel_guard.uncount_script(prefixes)
            if script:
                scripts[vm] = script
        failed = await run_scripts(scripts)
        for vm, prefixes in gone.items():
            if vm not in failed:
                self._held.accepted |= new.get(vm, frozenset())
                for prefix in prefixes:
                    self._held.refused.pop(prefix, None)
        return _failures(failed)

    def _count(self, made: Plan) -> list[Prefix]:
        """Note what a VM has counted now; answers what nobody wants counted any more."""
        old = self._counted.pop(made.vm, ())
        _swap(self._counters, old, made.counted)
        if made.counted:
            self._counted[made.vm] = tuple(made.counted)
        return [prefix for prefix in old if self._counters[prefix] <= 0]

    # -- looking ------------------------------------------------------------------------------

    async def faults(self) -> list[tuple[str, str, str]]:
        """See Tunnels.faults."""
        shown = await self._look()
        if not shown.there:
            return [("", _ITEM, "is gone")]
        found = [] if shown.rules == self._rules else [("", _ITEM, "has other rules")]
        wanted: set[Pair] = set()
        for vm, pairs in self._pairs.items():
            wanted |= pairs
            missing = _words(pairs - shown.accepted)
            found += [(vm_name(vm), f"{_ITEM} {pair}", "is missing") for pair in missing]
        surplus = _words(shown.accepted - wanted)
        found += [("", f"{_ITEM} {pair}", "stands, and nobody asked for it") for pair in surplus]
        for vm, prefixes in self._counted.items():
            found += [
                (vm_name(vm), f"counter {prefix}", "of refused packets is gone")
                for prefix in prefixes
                if prefix not in shown.refused
            ]
        for prefix in shown.refused:
            if self._counters[prefix] <= 0:
                found.append(("", f"counter {prefix}", "stands, and nobody asked for it"))
        return found

    async def refused(self) -> Mapping[Prefix, int]:
        """Packets refused, by prefix; none where nft cannot be asked."""
        try:
            return (await tunnel_guard.read_held()).refused
        except (DataPlaneError, OSError):
            return {}


def _swap(users: Counter[T], old: Iterable[T], new: Iterable[T]) -> None:
    """One user less of each old thing, one more of each new one; none is kept at zero."""
    users.update(new)
    for thing in old:
        users[thing] -= 1
        if users[thing] <= 0:
            del users[thing]


def _words(pairs: Iterable[Pair]) -> list[str]:
    return sorted(f"{peer} to {prefix}" for peer, prefix in pairs)


def _failures(failed: Mapping[VmKey, str]) -> list[Failure]:
    return [Failure(vm, _ITEM, reason) for vm, reason in failed.items()]
