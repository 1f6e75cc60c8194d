"""What nftables holds of ours, and the scripts that bring it to what is wanted.

Not here: the texts themselves (filter.py), or when a tap is opened (driver.py).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from vmmobility.drivers.linux import filter, outside
from vmmobility.drivers.linux.filter import BASE_CHAINS, KINDS, ONWARD, TO_TAP, TOO_BIG
from vmmobility.drivers.linux.filter_listing import GUARDING, ChainName, Shown, View
from vmmobility.drivers.linux.plan import Plan, Port
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Prefix, VmKey

_MANY = 100
_BASE: dict[ChainName, int] = {("inet", name): rules for name, rules in BASE_CHAINS.items()}


class Filters:
    """Counters by VM and source filters by tap; the kernel's side is read once, then followed."""

    def __init__(self, dc_prefixes: Sequence[Prefix] = ()) -> None:
        self._dc_prefixes = dc_prefixes
        self._kinds = KINDS if dc_prefixes else (TO_TAP, ONWARD, TOO_BIG)
        rules = outside.guard_rules(dc_prefixes)
        self._guard = f"{filter.digest_of(rules)}/{len(rules)}"
        self.counted: dict[VmKey, list[Prefix]] = {}
        self._users: Counter[Prefix] = Counter()
        self._view = View()
        self._held = Shown()
        self._prints: dict[ChainName, str] = {}
        self._unlearnt: set[str] = set()
        self._refused: set[VmKey] = set()

    async def read(self) -> None:
        """Take what nft lists, after making what is missing of our tables."""
        self._held = await self._view.show()
        if self.base_fault(self._held):
            guard = outside.guard_script(self._dc_prefixes, self._guard)
            await filter.run_nft(filter.base_script() + guard)
            self._held = await self._view.show()
            for chain in (*_BASE, GUARDING):
                self._prints.pop(chain, None)
        for chain in {*_BASE, GUARDING} & self._held.prints.keys():
            self._prints.setdefault(chain, self._held.prints[chain])
        self._learn(self._held)
        for chain in self._held.digests:
            if self._held.prints[chain] != self._prints.get(chain):
                self._held.digests[chain] = ""

    def base_fault(self, shown: Shown) -> str:
        """What is wrong with the tables and their own chains, in words; "" if nothing is."""
        for family in ("inet", "netdev"):
            if family not in shown.tables:
                return f"lacks its {family} table"
        for chain, rules in _BASE.items():
            if chain not in shown.prints:
                return f"lacks the chain {chain[1]}"
            if self._changed(chain, shown) or shown.rules[chain] != rules:
                return f"has other rules in the chain {chain[1]}"
        if GUARDING not in shown.prints:
            return "lacks the chain that guards the tunnels"
        wrong = shown.digests[GUARDING] != self._guard or self._changed(GUARDING, shown)
        return "guards the tunnels by other rules" if wrong else ""

    def _changed(self, chain: ChainName, shown: Shown) -> bool:
        return self._prints.get(chain, shown.prints[chain]) != shown.prints[chain]

    def fault(self, port: Port, shown: Shown) -> str:
        """What is wrong with a tap's filter, in words; "" if nothing is."""
        chain = ("netdev", port.name)
        if chain not in shown.prints:
            return "is gone"
        right = shown.digests[chain] == self._digest(port)[0]
        return "" if right and not self._changed(chain, shown) else "has other rules"

    def strays(self, shown: Shown, taps: Collection[str]) -> list[ChainName]:
        """Chains in our tables that are not ours."""
        ours = {*_BASE, GUARDING, *(("netdev", tap) for tap in taps)}
        return [chain for chain in shown.prints if chain not in ours]

    def uncounted(self, vm: VmKey, shown: Shown) -> list[Prefix]:
        """The prefixes of a VM that should be counted, and are not in every way."""
        wanted = self.counted.get(vm, [])
        return [p for p in wanted if not self._all(p) <= shown.counted]

    def _all(self, prefix: Prefix) -> set[tuple[str, Prefix]]:
        return {(kind, prefix) for kind in self._kinds}

    def surplus(self, shown: Shown) -> list[Prefix]:
        """The prefixes that are counted and that nobody wants counted."""
        return sorted({p for _, p in shown.counted if self._users[p] <= 0}, key=str)

    def _learn(self, shown: Shown) -> None:
        """Learn how the filters look that are as we wrote them; known ones stay as they are."""
        for chain, digest in shown.digests.items():
            # Another digest than ours: listed before it was written anew, or changed.
            if digest and self._held.digests.get(chain) == digest:
                self._prints.setdefault(chain, shown.prints[chain])

    async def learn(self) -> None:
        """Learn how nft shows the filters that were written since the last time.

        Where there are many, listing one takes nft longer than writing it: then they are learnt
        with the next whole listing.
        """
        taps, self._unlearnt = self._unlearnt, set()
        if not taps or len(self._held.digests) > _MANY:
            return
        # What cannot be listed now is learnt with the next whole listing, too.
        with contextlib.suppress(DataPlaneError, OSError):
            self._learn(await self._view.show_filters(taps))

    async def look(self) -> Shown:
        """What nft lists now, for a comparison; what is right and new is learnt."""
        shown = await self._view.show()
        self._learn(shown)
        return shown

    def forget_wishes(self) -> None:
        """Begin anew with what VMs want counted; what the kernel holds stays known."""
        self.counted, self._users = {}, Counter()

    def count_script(self, made: Plan) -> str:
        """The script that counts a VM's prefixes, "" where they are counted."""
        if self.counted.get(made.vm) == made.counted:
            return ""
        held = self._held.counted
        missing = [p for p in made.counted if not self._all(p) <= held]
        return filter.count_script(missing, self._kinds)

    def filter_script(self, port: Port, anew: bool) -> str:
        """The script that installs a tap's filter, "" where it stands right."""
        digest, rules = self._digest(port)
        chain = ("netdev", port.name)
        if not anew and self._held.digests.get(chain) == digest:
            return ""
        self._held.digests[chain] = digest
        self._prints.pop(chain, None)
        self._unlearnt.add(port.name)
        return filter.filter_script(port.name, rules)

    @staticmethod
    def _digest(port: Port) -> tuple[str, list[str]]:
        rules = filter.filter_rules(port.mac.hex(":"), port.prefixes)
        return f"{filter.digest_of(rules)}/{len(rules)}", rules

    def unfilter_script(self, tap: str) -> str:
        """The script that removes a tap's filter."""
        self._forget(("netdev", tap))
        return filter.removal_of_chain("netdev", tap)

    def _forget(self, chain: ChainName) -> None:
        self._held.digests.pop(chain, None)
        self._held.prints.pop(chain, None)
        self._prints.pop(chain, None)
        self._unlearnt.discard(chain[1])

    def failed(self, made_for: VmKey, ports: Iterable[Port]) -> None:
        """A VM's script was refused: its filters are not as wanted, nor its counters."""
        self._refused.add(made_for)
        for port in ports:
            self._forget(("netdev", port.name))

    def settle(self, made: Plan) -> str:
        """Note what a VM has counted now; the script that stops counting what nobody wants."""
        before = self.counted.get(made.vm, [])
        if made.vm in self._refused:
            # What it counted until now may still be counted; the next apply tries again.
            self._refused.discard(made.vm)
            return ""
        if before == made.counted:
            return ""
        self._users.update(made.counted)
        self._users.subtract(before)
        if made.counted:
            self.counted[made.vm] = made.counted
        else:
            self.counted.pop(made.vm, None)
        for prefix in made.counted:
            self._held.counted |= self._all(prefix)
        return self._uncount([p for p in before if self._users[p] <= 0])

    def leftovers_script(self, taps: Collection[str]) -> str:
        """The script that removes chains that are not ours and counters that nobody wants."""
        strays = self.strays(self._held, taps)
        for chain in strays:
            self._forget(chain)
        removal = "".join(filter.removal_of_chain(family, name) for family, name in strays)
        return removal + self._uncount(self.surplus(self._held))

    def _uncount(self, prefixes: list[Prefix]) -> str:
        for prefix in prefixes:
            del self._users[prefix]
            self._held.counted -= {(kind, prefix) for kind in KINDS}
        return filter.uncount_script(prefixes)


async def run_scripts(scripts: Mapping[VmKey, str]) -> dict[VmKey, str]:
    """Run all scripts as one transaction; if that fails, each alone: whose failed, and why."""
    failed: dict[VmKey, str] = {}
    if not scripts:
        return failed
    try:
        await filter.run_nft("".join(scripts.values()))
    except (DataPlaneError, OSError):
        for vm, script in scripts.items():
            try:
                await filter.run_nft(script)
            except (DataPlaneError, OSError) as error:
                failed[vm] = str(error)
    return failed
