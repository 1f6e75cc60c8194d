"""A NAPT box's pool: which public address is given out next.

First those that nobody has had yet, then those that have been free for longest: whoever knows an
address still by an earlier user sends there for a while.
Not here: who has which (napt_mappings.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any

from vmmobility.engine.napt_settings import NaptSettings
from vmmobility.engine.outputs import Outbox


class AddressPool:
    """Durable is the order in which addresses were given back ("used/ADDRESS" -> a number)."""

    def __init__(self, settings: NaptSettings, state: Mapping[str, Any], outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._used: dict[IPv4Address, int] = {}
        for key, number in state.items():
            kind, _, rest = key.partition("/")
            if kind == "used" and IPv4Address(rest) in self:
                self._used[IPv4Address(rest)] = number
            elif kind == "used":
                outbox.record(key, None)
        self._last = max(self._used.values(), default=0)

    def __contains__(self, address: IPv4Address) -> bool:
        return any(address in network for network in self._settings.pool)

    def __iter__(self) -> Iterator[IPv4Address]:
        for network in self._settings.pool:
            yield from network if network.prefixlen >= 31 else network.hosts()

    def choose(self, taken: Collection[IPv4Address]) -> IPv4Address | None:
        """An address that is not taken; None: there is none."""
        free = (address for address in self if address not in taken)
        return min(free, key=lambda address: self._used.get(address, 0), default=None)

    def give_back(self, address: IPv4Address) -> None:
        """Nobody has it any more."""
        if address in self:
            self._last += 1
            self._used[address] = self._last
            self._outbox.record(f"used/{address}", self._last)
