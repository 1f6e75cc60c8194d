"""[[napt]] and `via` of a daemon's TOML file: NAPT boxes, and who is reached by them.

    [[napt]]
    id = "napt-1"
    addresses = ["192.0.2.1"]        # where this node speaks to it; none if another box is between
    pool = ["198.51.100.0/28"]       # its public addresses: what it may put into messages

Not here: the box's own file (napt_config.py).  Rests on toml_table.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import combinations

from vmmobility.daemon.keys import MAX_NODE_NAME
from vmmobility.daemon.toml_table import Table
from vmmobility.wire.values import Address


@dataclass(frozen=True, slots=True)
class Napt:
    """A NAPT box.  addresses: () if this node does not speak to it itself."""

    id: str
    addresses: tuple[Address, ...]
    pool: tuple[IPv4Network, ...]


def napts_of(top: Table, own: str) -> tuple[Napt, ...]:
    """All [[napt]] tables.  Raises ConfigError."""
    found: dict[str, Napt] = {}
    for table in top.tables("napt") if "napt" in top else ():
        name = table.name("id", MAX_NODE_NAME)
        if name in found or name == own:
            what = "stands here twice" if name in found else "is this node's own id"
            raise table.wrong("id", f"{name!r} {what}", "every node has an id of its own")
        there = "addresses" in table
        addresses = table.addresses("addresses", loopback=True) if there else ()
        found[name] = Napt(name, addresses, ipv4_of(table, "pool"))
        table.finish()
        wrong = overlap([(napt.id, napt.pool) for napt in found.values()])
        if wrong:
            raise table.wrong("pool", wrong, "each public address is of one box")
    return tuple(found.values())


def overlap(pools: Sequence[tuple[str, tuple[IPv4Network, ...]]]) -> str:
    """What overlaps, in words, of boxes' pools by the box's name; "" if nothing does."""
    every = [(box, network) for box, pool in pools for network in pool]
    for (one, first), (other, second) in combinations(every, 2):
        if one != other and first.overlaps(second):
            return f"{first} of {one} overlaps {second} of {other}"
    return ""


def ipv4_of(table: Table, key: str) -> tuple[IPv4Network, ...]:
    """IPv4 prefixes: NAPT knows no others.  Raises ConfigError."""
    prefixes = table.prefixes(key)
    wrong = next((p for p in prefixes if not isinstance(p, IPv4Network)), None)
    if wrong is not None:
        raise table.wrong(key, f"{wrong} is IPv6, which is never translated", "remove it")
    return tuple(p for p in prefixes if isinstance(p, IPv4Network))


def check_via(top: Table, vias: Iterable[tuple[str, str]], napts: Iterable[Napt]) -> None:
    """(peer, via) of all peers.  Raises ConfigError where `via` names no box that has addresses."""
    near = {napt.id: napt.addresses for napt in napts}
    for peer, via in vias:
        if via and via not in near:
            raise top.wrong(
                "napt",
                f"{peer} is reached via {via!r}, which stands nowhere",
                f"add [[napt]] with id = {via!r}, addresses and pool",
            )
        if via and not near[via]:
            raise top.wrong(
                "napt", f"{via!r}, via which {peer} is reached, has no addresses", "add them"
            )
