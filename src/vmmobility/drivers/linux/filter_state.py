"""What nftables holds of ours, and the scripts that bring it to what is wanted.

Not here: the texts themselves (filter.py), or when a tap is opened (driver.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from vmmobility.drivers.linux import filter
from vmmobility.drivers.linux.filter import ONWARD, TO_TAP, NftState
from vmmobility.drivers.linux.plan import Plan, Port
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Prefix, VmKey


class Filters:
    """Counters by VM and source filters by tap; the kernel's side is read once, then followed."""

    def __init__(self) -> None:
        self.counted: dict[VmKey, list[Prefix]] = {}
        self._users: Counter[Prefix] = Counter()
        self._held = NftState()
        self._refused: set[VmKey] = set()

    async def read(self) -> None:
        """Take what nft lists, after making what is missing of our tables."""
        self._held = await filter.read_state()
        if not self._held.complete:
            await filter.run_nft(filter.base_script())
            self._held = await filter.read_state()

    def forget_wishes(self) -> None:
        """Begin anew with what VMs want counted; what the kernel holds stays known."""
        self.counted, self._users = {}, Counter()

    def count_script(self, made: Plan) -> str:
        """The script that counts a VM's prefixes, "" where they are counted."""
        if self.counted.get(made.vm) == made.counted:
            return ""
        held = self._held.counted
        return filter.count_script(
            [p for p in made.counted if (TO_TAP, p) not in held or (ONWARD, p) not in held]
        )

    def filter_script(self, port: Port, anew: bool) -> str:
        """The script that installs a tap's filter, "" where it stands right."""
        rules = filter.filter_rules(port.mac.hex(":"), port.prefixes)
        digest = f"{filter.digest_of(rules)}/{len(rules)}"
        if not anew and self._held.digests.get(port.name) == digest:
            return ""
        self._held.digests[port.name] = digest
        return filter.filter_script(port.name, rules)

    def unfilter_script(self, tap: str) -> str:
        """The script that removes a tap's filter."""
        self._held.digests.pop(tap, None)
        return filter.unfilter_script(tap)

    def failed(self, made_for: VmKey, ports: Iterable[Port]) -> None:
        """A VM's script was refused: its filters are not as wanted, nor its counters."""
        self._refused.add(made_for)
        for port in ports:
            self._held.digests.pop(port.name, None)

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
            self._held.counted.setdefault((TO_TAP, prefix), 0)
            self._held.counted.setdefault((ONWARD, prefix), 0)
        return self._uncount([p for p in before if self._users[p] <= 0])

    def leftovers_script(self, taps: Mapping[str, object]) -> str:
        """The script that removes filters of taps that are gone and counters nobody wants."""
        stale = [tap for tap in self._held.digests if tap not in taps]
        unknown = sorted({p for _, p in self._held.counted if self._users[p] <= 0}, key=str)
        return "".join(map(self.unfilter_script, stale)) + self._uncount(unknown)

    def _uncount(self, prefixes: list[Prefix]) -> str:
        for prefix in prefixes:
            del self._users[prefix]
            self._held.counted.pop((TO_TAP, prefix), None)
            self._held.counted.pop((ONWARD, prefix), None)
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
