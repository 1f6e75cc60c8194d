"""Our nftables tables as nft shows them: what an audit compares.

A chain's digest (filter.py) tells what we meant; its print tells what stands there.  Other hands
can change a rule and leave the digest and the number of rules alone, so a print is learnt from a
chain that was just made or found right, and compared from then on.  What nft shows is not what it
was given, hence learnt and not computed.

Not here: counters' values (filter.py reads them as JSON), repair (filter_state.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from vmmobility.drivers.linux import outside
from vmmobility.drivers.linux.filter import list_text
from vmmobility.drivers.linux.netlink import Netlink, Refusal, parse_attributes
from vmmobility.wire.values import Prefix

COUNTING = ("inet", "counting")
"""The chain that counts; a tap's is ("netdev", TAP)."""

GUARDING = ("inet", outside.GUARD)
"""The chain that keeps senders outside the data centres from tunnels."""

ChainName = tuple[str, str]

_CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)
_SET = re.compile(r"^\tset (\S+) \{\n(.*?)^\t\}", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)
_DIGEST = re.compile(r'comment "([0-9a-f]+)/(\d+)"')


@dataclass(slots=True)
class Shown:
    """What nft lists of ours.

    tables:  the families whose table is there
    prints:  of each chain
    rules:   the number of rules of each chain
    digests: of each chain; "" without one, or where the number of rules is not what it says
    counted: the elements of the counting sets
    """

    tables: set[str] = field(default_factory=set)
    prints: dict[ChainName, str] = field(default_factory=dict)
    rules: dict[ChainName, int] = field(default_factory=dict)
    digests: dict[ChainName, str] = field(default_factory=dict)
    counted: set[tuple[str, Prefix]] = field(default_factory=set)


_FAMILIES = ("inet", "netdev")
_FEW = 4
"""So many chains are listed one by one; for more the whole table is one call."""

_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16
_GENERATION_ID = 1


def generation() -> int | None:
    """The number of changes that nftables has seen here, whoever made them; None if unknown."""
    with Netlink(_NETLINK_NETFILTER) as netlink:
        answer = netlink.get(_GET_GENERATION, bytes(4))
    if isinstance(answer, Refusal):
        return None
    return int.from_bytes(parse_attributes(answer[4:]).get(_GENERATION_ID, b""), "big")


class View:
    """What nft lists, listed again only where something was changed since.

    A listing of a thousand filters takes nft some seconds; to ask for the generation takes
    microseconds.
    """

    def __init__(self) -> None:
        self._generation: int | None = None
        self._shown = Shown()

    async def show(self) -> Shown:
        """Both tables; one that is not there shows nothing.  Raises DataPlaneError."""
        now = generation()
        if now is None or now != self._generation:
            shown = Shown()
            texts = await asyncio.gather(*(list_text(family) for family in _FAMILIES))
            for family, text in zip(_FAMILIES, texts, strict=True):
                _take(shown, family, text)
            # As it was before the listing: a change underway is a reason to list again.
            self._generation, self._shown = now, shown
        return Shown(
            set(self._shown.tables),
            dict(self._shown.prints),
            dict(self._shown.rules),
            dict(self._shown.digests),
            set(self._shown.counted),
        )

    async def show_filters(self, taps: Collection[str]) -> Shown:
        """The chains of these taps, and perhaps others.  Raises DataPlaneError."""
        if len(taps) > _FEW:
            return await self.show()
        shown = Shown()
        for text in await asyncio.gather(*(list_text("netdev", tap) for tap in taps)):
            _take(shown, "netdev", text)
        return shown


def _take(shown: Shown, family: str, text: str) -> None:
    if text:
        shown.tables.add(family)
    for name, body in _CHAIN.findall(text):
        chain = (family, name)
        shown.prints[chain] = hashlib.sha256(body.encode()).hexdigest()
        shown.rules[chain] = sum("hook " not in line for line in body.splitlines())
        shown.digests[chain] = _digest(body, shown.rules[chain])
    for name, body in _SET.findall(text):
        shown.counted.update((name[:-1], prefix) for prefix in _elements(body))


def _digest(body: str, rules: int) -> str:
    found = _DIGEST.search(body)
    # One rule more than the filter's own: the digest's.
    if found is None or int(found[2]) != rules - 1:
        return ""
    return f"{found[1]}/{found[2]}"


def _elements(body: str) -> Iterator[Prefix]:
    for element in ",".join(_ELEMENTS.findall(body)).split(","):
        words = element.split()
        # A range that is no prefix was not put there by us; it shows as a surplus of none.
        if words and "-" not in words[0]:
            yield ip_network(words[0])
