"""Who may send into which circuit of this NVE: nftables text, and what it holds.

A circuit is a pair (server's address, VXLAN number); frames come only from the servers that a VM
may be at.  Whatever else comes to the circuits' port is dropped and counted: of other servers, of
the underlay, of guests.  Guests reach no address of a server by this node either: an agent, and a
guest's memory, are heard there.

Not here: when it is changed (driver.py).  Rests on filter.py to run nft (1.0.6 is enough).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from vmmobility.drivers.linux import filter
from vmmobility.drivers.linux.ownership import NFT_CIRCUIT_TABLE, TAP_PREFIX
from vmmobility.wire.server_frames import CIRCUIT_PORT
from vmmobility.wire.values import FAMILIES, Address

Source = tuple[Address, int]
"""A server's address, and the number of a circuit that frames may come into from there."""

_TABLE = f"inet {NFT_CIRCUIT_TABLE}"
_WORD = {4: "ip", 6: "ip6"}
_NUMBER = "@th,96,24"  # behind the UDP header and VXLAN's flags
_HOOKS = {
    "arriving": "type filter hook input priority -160; policy accept;",
    "passing": "type filter hook forward priority -160; policy accept;",
}


def base_script(servers: Iterable[Address]) -> str:
    """The table with its chains, made anew; sources that it holds are kept."""
    lines = [f"add table {_TABLE}"]
    for version in FAMILIES:
        key = f"{_WORD[version]} saddr . {_NUMBER}"
        lines.append(f"add set {_TABLE} sources{version} {{ typeof {key}; }}")
    for name, hook in _HOOKS.items():
        chain = f"{_TABLE} {name}"
        lines += [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
        lines.append(f"add chain {chain} {{ {hook} }}")
    rules = list(_rules(servers))
    digest = filter.digest_of([" ".join(rule) for rule in rules])
    lines.append(f'add rule {_TABLE} arriving counter comment "{digest}"')
    lines += [f"add rule {_TABLE} {chain} {rule}" for chain, rule in rules]
    return "\n".join(lines) + "\n"


def _rules(servers: Iterable[Address]) -> Iterator[tuple[str, str]]:
    # codespell:ignore-begin iifname
    yield "arriving", f'iifname "{TAP_PREFIX}*" udp dport {CIRCUIT_PORT} counter drop'
    for version in FAMILIES:
        key = f"{_WORD[version]} saddr . {_NUMBER}"
        yield "arriving", f"udp dport {CIRCUIT_PORT} {key} @sources{version} accept"
    yield "arriving", f"udp dport {CIRCUIT_PORT} counter drop"
    for server in sorted(servers, key=lambda one: (one.version, int(one))):
        yield "passing", f'iifname "{TAP_PREFIX}*" {_WORD[server.version]} daddr {server} drop'
    # codespell:ignore-end


def removal_script() -> str:
    """Remove the table, whether it exists or not."""
    return f"add table {_TABLE}\ndelete table {_TABLE}\n"


def _elements(verb: str, sources: Iterable[Source]) -> Iterator[str]:
    for address, circuit in sources:
        element = f"{{ {address} . {circuit:#x} }}"
        yield f"{verb} element {_TABLE} sources{address.version} {element}\n"


class CircuitGuard:
    """What the guard holds and should.  servers: all of this NVE, empty: there is no guard."""

    def __init__(self, servers: Iterable[Address]) -> None:
        self._servers = tuple(servers)
        self._held: set[Source] = set()
        self._print: tuple[str, ...] = ()

    async def read(self) -> None:
        """Take what nft lists, after making what is missing.  Raises DataPlaneError."""
        if not self._servers:
            return
        there, sources = await self._look()
        if not there or there != self._print:
            await filter.run_nft(base_script(self._servers))
            self._print, sources = await self._look()
        self._held = sources

    async def _look(self) -> tuple[tuple[str, ...], set[Source]]:
        """Its rules as nft shows them, () where it is not there; and the sources."""
        listed = await filter.list_json("table", "inet", NFT_CIRCUIT_TABLE)
        if listed is None:
            return (), set()
        sources: set[Source] = set()
        for item in listed:
            for element in item.get("set", {}).get("elem", ()):
                address, circuit = element["concat"]
                sources.add((ip_address(address), int(circuit)))
        return await _text_of_rules(), sources

    async def fault(self, wanted: Iterable[Source]) -> str:
        """What is wrong with it, in words; "" if nothing is."""
        if not self._servers:
            return ""
        there, sources = await self._look()
        if there != self._print:
            return "has other rules" if there else "is gone"
        return "" if sources == set(wanted) else "lets in other servers than it should"

    async def admit(self, sources: Iterable[Source]) -> None:
        """Let these in, too.  Raises DataPlaneError."""
        news = set(sources) - self._held
        if news:
            await filter.run_nft("".join(_elements("add", news)))
            self._held |= news

    async def settle(self, sources: Iterable[Source]) -> None:
        """Let in none but these.  Raises DataPlaneError."""
        old = self._held - set(sources)
        if old:
            # Each may have been removed by hands.
            await filter.run_nft("".join((*_elements("add", old), *_elements("delete", old))))
            self._held -= old


async def _text_of_rules() -> tuple[str, ...]:
    """The chains as nft shows them, without counters and sets."""
    text = await filter.list_table(NFT_CIRCUIT_TABLE)
    lines, inside = [], False
    for line in text.splitlines():
        inside = line.strip().startswith("chain") or (inside and line.strip() != "}")
        if inside:
            lines.append(line.strip())
    return tuple(lines)


async def remove_guard() -> None:
    """Remove the table if it is there.  Raises DataPlaneError."""
    if await filter.list_json("table", "inet", NFT_CIRCUIT_TABLE) is not None:
        await filter.run_nft(removal_script())
