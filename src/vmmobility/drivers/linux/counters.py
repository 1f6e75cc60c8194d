"""Counters that only grow: raw numbers of many sources, added up per VM and kind.

A raw number restarts when its source does (a relay, a tap, a flushed ruleset): what it had
reached is kept.  Pure; not here: where numbers come from (traffic_sources.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmmobility.drivers.dataplane import Traffic
from vmmobility.wire.values import VmKey

KINDS = ("delivered", "consumed", "redirected", "dropped", "outside")


@dataclass(slots=True)
class _Source:
    base: int = 0
    last: int = 0


class Ledger:
    """Traffic of every VM that has an entry."""

    def __init__(self) -> None:
        self._sources: dict[VmKey, dict[tuple[str, str], _Source]] = {}

    def vms(self) -> Iterable[VmKey]:
        """The VMs that have an entry."""
        return self._sources.keys()

    def open(self, vm: VmKey) -> None:
        """Begin a VM's entry, if it has none."""
        self._sources.setdefault(vm, {})

    def close(self, vm: VmKey) -> None:
        """End a VM's entry and forget its numbers."""
        self._sources.pop(vm, None)

    def note(self, vm: VmKey, kind: str, source: str, raw: int) -> None:
        """Take a source's present number; VMs without an entry are left out."""
        sources = self._sources.get(vm)
        if sources is None:
            return
        known = sources.setdefault((kind, source), _Source())
        if raw < known.last:
            known.base += known.last
        known.last = raw

    def restart(self, vm: VmKey, source: str) -> None:
        """A source begins again at zero."""
        for (_, name), known in self._sources.get(vm, {}).items():
            if name == source:
                known.base, known.last = known.base + known.last, 0

    def totals(self, vm: VmKey) -> Traffic:
        """The VM's traffic."""
        sums = dict.fromkeys(KINDS, 0)
        for (kind, _), known in self._sources.get(vm, {}).items():
            sums[kind] += known.base + known.last
        return Traffic(**sums)
