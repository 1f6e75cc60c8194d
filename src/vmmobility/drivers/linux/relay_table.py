"""What the relay does with a packet: the table, the look-up, the guards and the counters.

Pure: packets and orders in, verdicts out.  Not here: devices, sockets and the control protocol
(relay.py).  The guards keep invariant 3 (no loop): a packet that came from a peer never goes
back to it, spends one hop when it is sent on, and once decapsulated meets only taps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any

from vmmobility.drivers.linux.congestion_marks import behind_tunnel
from vmmobility.drivers.linux.inside import Inside

Packet = bytes | bytearray | memoryview


class Verdict(Enum):
    """What to do with a packet."""

    SEND = "send"  # encapsulated, to the peer named beside
    DELIVER = "deliver"  # into the TUN device, from where it can only reach a tap
    DROP = "drop"


@dataclass(slots=True, eq=False)
class Entry:
    """One VM: where its packets go, who may tunnel to it, and what was counted.

    sent_to: every target that it has had: errors about packets on their way come later
    """

    vm: str
    mode: str
    prefixes: tuple[tuple[int, int, int], ...]  # (version, network as a number, length)
    targets: Mapping[int, str]
    accept: frozenset[str]
    counters: Counter[str] = field(default_factory=Counter)
    sent_to: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.sent_to = set(self.targets.values())

    def inherit(self, old: Entry) -> None:
        """Go on as the same VM's entry before."""
        self.counters = old.counters
        self.sent_to |= old.sent_to


Decision = tuple[Verdict, str, Packet, Entry | None]
"""Verdict; peer or drop reason; the packet as it shall go; its VM's entry, if it is known."""

_BITS = {4: 32, 6: 128}
_SOURCE = {4: slice(12, 16), 6: slice(8, 24)}
_DESTINATION = {4: slice(16, 20), 6: slice(24, 40)}
_HEADER_LENGTH = {4: 20, 6: 40}


def read_entry(order: Mapping[str, Any]) -> Entry:
    """An entry from its JSON order.  Raises ValueError or KeyError for a wrong one."""
    networks = [ip_network(text) for text in order["prefixes"]]
    mode = str(order["mode"])
    if mode not in ("local", "redirect", "none"):
        raise ValueError(f"mode {mode!r} is none of local, redirect, none")
    targets = [ip_address(text) for text in order.get("targets", ())]
    return Entry(
        vm=str(order["vm"]),
        mode=mode,
        prefixes=tuple((n.version, int(n.network_address), n.prefixlen) for n in networks),
        targets={address.version: str(address) for address in targets},
        accept=frozenset(str(ip_address(text)) for text in order.get("accept", ())),
    )


class RelayTable:
    """Entries by VM, and by prefix with the longest match first."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._hosts: dict[bytes, Entry] = {}
        self._networks: dict[int, list[tuple[int, dict[int, Entry]]]] = {4: [], 6: []}
        self.strays: Counter[str] = Counter()
        self.inside = Inside()

    def replace_all(self, entries: Iterable[Entry]) -> None:
        """Hold exactly these entries; a VM that stays keeps its counters."""
        old, self._entries = self._entries, {}
        for entry in entries:
            if entry.vm in old:
                entry.inherit(old[entry.vm])
            self._entries[entry.vm] = entry
        self._index()

    def change(self, put: Iterable[Entry], gone: Sequence[str]) -> None:
        """Add or change some entries, then remove others."""
        moved = bool(gone)
        for entry in put:
            old = self._entries.get(entry.vm)
            if old is not None and old.prefixes == entry.prefixes:
                old.mode, old.targets, old.accept = entry.mode, entry.targets, entry.accept
                old.sent_to |= entry.sent_to
                continue
            if old is not None:
                entry.inherit(old)
            self._entries[entry.vm] = entry
            moved = True
        for vm in gone:
            self._entries.pop(vm, None)
        if moved:
            self._index()

    def _index(self) -> None:
        hosts: dict[bytes, Entry] = {}
        networks: dict[int, dict[int, dict[int, Entry]]] = {4: {}, 6: {}}
        for entry in self._entries.values():
            for version, network, length in entry.prefixes:
                bits = _BITS[version]
                if length == bits:
                    hosts[network.to_bytes(bits // 8, "big")] = entry
                else:
                    shift = bits - length
                    networks[version].setdefault(shift, {})[network >> shift] = entry
        self._hosts = hosts
        self._networks = {v: sorted(by_shift.items()) for v, by_shift in networks.items()}

    def look_up(self, version: int, destination: Packet) -> Entry | None:
        """The entry whose prefix matches the packed destination longest."""
        found = self._hosts.get(bytes(destination))
        if found is None and self._networks[version]:
            value = int.from_bytes(destination, "big")
            for shift, by_network in self._networks[version]:
                found = by_network.get(value >> shift)
                if found is not None:
                    return found
        return found

    def _find(self, packet: Packet, version: int) -> Entry | None:
        """The entry of the inner packet's destination; strays are counted."""
        if len(packet) < _HEADER_LENGTH[version] or packet[0] >> 4 != version:
            self.strays["malformed"] += 1
            return None
        entry = self.look_up(version, packet[_DESTINATION[version]])
        if entry is None:
            self.strays["unknown"] += 1
        return entry

    def entry_of(self, packet: Packet, version: int) -> Entry | None:
        """The VM that a packet is for, or that the beginning of one was; no stray is counted."""
        if len(packet) < _HEADER_LENGTH[version] or packet[0] >> 4 != version:
            return None
        return self.look_up(version, packet[_DESTINATION[version]])

    def from_kernel(self, packet: Packet) -> Decision:
        """A packet that this node's own routes led into the TUN device."""
        version = packet[0] >> 4 if packet else 0
        if version not in _BITS:
            self.strays["malformed"] += 1
            return Verdict.DROP, "malformed", packet, None
        entry = self._find(packet, version)
        if entry is None:
            return Verdict.DROP, "unknown", packet, None
        if entry.mode == "redirect":
            target = entry.targets.get(version)
            if target is None:
                return _drop(entry, "no_target", packet)
            # nftables has dropped it before, unless its ruleset has just been flushed.
            if not self.inside.holds(packet[_SOURCE[version]]):
                return _drop(entry, "outside", packet)
            entry.counters["encapsulated"] += 1
            return Verdict.SEND, target, packet, entry
        if entry.mode == "local":
            # It was on its way into the tunnel when the VM's route turned to its tap.
            entry.counters["returned"] += 1
            return Verdict.DELIVER, "", packet, entry
        return _drop(entry, "not_here", packet)

    def from_peer(self, packet: Packet, version: int, peer: str, marks: int = 0) -> Decision:
        """An inner packet of the given IP version that the peer's tunnel brought.

        marks: the outer packet's congestion marks
        """
        entry = self._find(packet, version)
        if entry is None:
            return Verdict.DROP, "unknown", packet, None
        if peer not in entry.accept:
            return _drop(entry, "not_accepted", packet)
        if not self.inside.holds(packet[_SOURCE[version]]):
            return _drop(entry, "outside", packet)
        if marks:
            marked = behind_tunnel(packet, version, marks)
            if marked is None:
                return _drop(entry, "congestion", packet)
            packet = marked
        if entry.mode == "local":
            entry.counters["decapsulated"] += 1
            return Verdict.DELIVER, "", packet, entry
        if entry.mode != "redirect":
            return _drop(entry, "not_here", packet)
        target = entry.targets.get(version)
        if target is None:
            return _drop(entry, "no_target", packet)
        if target == peer:
            return _drop(entry, "same_peer", packet)
        spent = spend_hop(packet, version)
        if spent is None:
            return _drop(entry, "hop_limit", packet)
        entry.counters["forwarded"] += 1
        return Verdict.SEND, target, spent, entry

    def counters(self) -> dict[str, dict[str, int]]:
        """Counters by VM; drops are named `drop_REASON`."""
        return {vm: dict(entry.counters) for vm, entry in self._entries.items()}


def _drop(entry: Entry, reason: str, packet: Packet) -> Decision:
    entry.counters[f"drop_{reason}"] += 1
    return Verdict.DROP, reason, packet, entry


def spend_hop(packet: Packet, version: int) -> bytes | None:
    """The packet with its hop limit lowered by one, or None where it is used up."""
    changed = bytearray(packet)
    place = 8 if version == 4 else 7
    if changed[place] <= 1:
        return None
    changed[place] -= 1
    if version == 4:
        # RFC 1624: the TTL is the high octet of its word, so the checksum grows by 0x0100.
        total = int.from_bytes(changed[10:12], "big") + 0x0100
        changed[10:12] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytes(changed)
