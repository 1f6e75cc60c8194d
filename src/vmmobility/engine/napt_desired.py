"""What a NAPT box's data plane should hold of its mappings.

Not here: the value itself (napt_plane.py), the mappings (napt_mappings.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_mappings import Mappings
from vmmobility.engine.napt_plane import Detour, NaptState, StaticMapping


def desired(mappings: Mappings, detours: Mapping[str, IPv4Address | None]) -> NaptState:
    """detours: other boxes' own addresses, by name."""
    settings = mappings.settings
    living = [m for m in mappings.vms.values() if not m.ended]
    static = [StaticMapping(m.private, m.public) for m in mappings.locators.values()]
    static += [StaticMapping(m.private, m.public) for m in living if m.is_translated]
    # What was handed over is routed to another box.  What its VM sends by this one all the same (a
    # detour, until that box has it; a VM that is coming home) leaves with its own address.
    own = [m for m in living if m.owner == settings.box_id]
    away = [StaticMapping(m.private, m.public) for m in own if not m.is_translated]
    return NaptState(
        settings.inside,
        settings.exempt,
        _sorted(static),
        settings.ports,
        settings.ports_pool,
        tuple(_detours(living, detours)),
        settings.pool_ports,
        _without(settings.pool, [m.public for m in away]),
        _sorted(away),
        tuple(sorted(m.public for m in living if m.forgetting)),
    )


def _sorted(mappings: Iterable[StaticMapping]) -> tuple[StaticMapping, ...]:
    return tuple(sorted(mappings, key=lambda m: (m.private, m.public)))


def _without(pool: tuple[IPv4Network, ...], away: Iterable[IPv4Address]) -> tuple[IPv4Network, ...]:
    """The pool's prefixes, but for these addresses."""
    for address in map(IPv4Network, away):
        pool = tuple(
            part
            for network in pool
            for part in (
                network.address_exclude(address) if address.subnet_of(network) else (network,)
            )
        )
    return tuple(sorted(pool))


def _detours(
    living: Iterable[VmMapping], boxes: Mapping[str, IPv4Address | None]
) -> Iterator[Detour]:
    for mapping in sorted(living, key=lambda m: m.private):
        box = boxes.get(mapping.owner)
        # Also before the VM has registered here: its first packet comes before that.
        away = mapping.here or mapping.moving
        if away and not mapping.is_translated and box is not None:
            yield Detour(mapping.private, box)
