"""Translated flows of a NAPT box: read, handed over to another box, forgotten.

A Flow (engine/napt_plane.py) says what both boxes must agree on; an entry (napt_conntrack.py) is
how the kernel keeps it.  Every call blocks, for the kernel's own work only.

Not here: rules for new flows (napt_rules.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from vmmobility.drivers.linux import napt_conntrack as conntrack
from vmmobility.drivers.linux.napt_conntrack import DNAT, ICMP, SNAT, Entry, Way
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.napt_plane import NaptFailure
from vmmobility.drivers.napt_state import flow_item
from vmmobility.engine.napt_plane import Flow
from vmmobility.errors import DataPlaneError

_ECHO_REQUEST = 8
_ENOENT = 2


def flow_of(entry: Entry, *, outgoing: bool) -> Flow:
    """An entry as the private side's flow: begun by it, or by the outside.

    What the remote end is called is what the private side calls it: where both sides are
    translated (hairpin) it is the other one's public address.
    """
    original, reply = entry.original, entry.reply
    protocol = original.protocol
    if outgoing:
        private = (original.source, original.source_port)
        public = (reply.destination, reply.destination_port)
        remote = (original.destination, original.destination_port)
        if protocol == ICMP:
            remote = (original.destination, reply.destination_port)
    else:
        private = (reply.source, reply.source_port)
        public = (original.destination, original.destination_port)
        remote = (reply.destination, reply.destination_port)
    return Flow(protocol, private, public, remote, outgoing, entry.timeout_s, entry.tcp_state)


def entry_of(flow: Flow) -> Entry:
    """The entry that continues a flow here.  Raises ValueError for one that cannot be."""
    numbers = (flow.private[1], flow.public[1], flow.remote[1])
    if not all(0 <= number < 65536 for number in numbers) or not 0 < flow.protocol < 256:
        raise ValueError("protocol and ports are out of range")
    if flow.tcp_state and flow.tcp_state not in conntrack.TCP_STATES:
        raise ValueError(f"{flow.tcp_state} is no state of TCP's")
    if not 0 < flow.timeout_s < 1 << 31:
        raise ValueError(f"a time-out of {flow.timeout_s} s")
    (private, inner), (public, outer), (remote, far) = flow.private, flow.public, flow.remote
    kind = _ECHO_REQUEST if flow.protocol == ICMP else 0
    if flow.outgoing:
        there = inner if flow.protocol == ICMP else far
        original = Way(flow.protocol, private, remote, inner, there, kind)
        plain = Way(flow.protocol, public, remote, outer, outer if kind else far, kind)
        reply, nat = plain.inverse(), SNAT
    else:
        original = Way(flow.protocol, remote, public, far, outer, kind)
        inside = Way(flow.protocol, remote, private, far, inner, kind)
        reply, nat = inside.inverse(), DNAT
    status = nat | conntrack.answered(flow.protocol, flow.tcp_state)
    return Entry(original, reply, status, flow.timeout_s, flow.tcp_state)


def translated(netlink: Netlink, private: IPv4Address) -> Iterator[tuple[Entry, Flow]]:
    """The translated entries of a private address, from both sides."""
    for entry in conntrack.entries_from(netlink, private, reply=False):
        if entry.status & SNAT and entry.original.source == private:
            yield entry, flow_of(entry, outgoing=True)
    for entry in conntrack.entries_from(netlink, private, reply=True):
        if entry.status & DNAT and entry.reply.source == private:
            yield entry, flow_of(entry, outgoing=False)


def all_translated(netlink: Netlink) -> Iterator[tuple[Entry, Flow]]:
    """Every translated entry, as the flow of whoever of the two sides is ours."""
    for entry in conntrack.entries(netlink):
        if entry.status & SNAT:
            yield entry, flow_of(entry, outgoing=True)
        if entry.status & DNAT:
            yield entry, flow_of(entry, outgoing=False)


def export(netlink: Netlink, private: IPv4Address) -> tuple[Flow, ...]:
    """See NaptPlane.export_flows."""
    flows = [flow for _, flow in translated(netlink, private) if flow.timeout_s > 0]
    return tuple(sorted(flows, key=_order))


def _order(flow: Flow) -> tuple[object, ...]:
    return (flow.protocol, flow.outgoing, flow.private, flow.public, flow.remote)


def bring_in(netlink: Netlink, flows: Sequence[Flow]) -> list[NaptFailure]:
    """See NaptPlane.import_flows."""
    failed: list[NaptFailure] = []
    if not flows:
        return failed
    standing: dict[Way, Entry] = {}
    for entry in conntrack.entries(netlink):
        standing[entry.original] = standing[entry.reply] = entry
    for flow in flows:
        reason = _bring_in(netlink, flow, standing)
        if reason:
            failed.append(NaptFailure(flow_item(flow), reason))
    return failed


def _bring_in(netlink: Netlink, flow: Flow, standing: dict[Way, Entry]) -> str:
    try:
        wanted = entry_of(flow)
    except ValueError as error:
        return str(error)
    ways = (wanted.original, wanted.reply)
    there = {id(e): e for way in ways if (e := standing.get(way)) is not None}
    for entry in there.values():
        if (entry.original, entry.reply) == ways:
            return ""
        if entry.translated and flow.private[0] not in _privates(entry):
            words = " and ".join(str(p) for p in _privates(entry))
            return f"{flow.public[0]} port {flow.public[1]} is in use for {words} here"
    for entry in there.values():
        remove(netlink, [entry])
        standing.pop(entry.original, None)
        standing.pop(entry.reply, None)
    (outcome,) = netlink.batch([conntrack.create(wanted)])
    if outcome is not None:
        return f"the kernel does not enter it: {outcome}"
    standing[wanted.original] = standing[wanted.reply] = wanted
    return ""


def _privates(entry: Entry) -> list[IPv4Address]:
    """Whose flow it is: who is behind a public address."""
    found = [entry.original.source] if entry.status & SNAT else []
    return found + ([entry.reply.source] if entry.status & DNAT else [])


def remove(netlink: Netlink, entries: Iterable[Entry]) -> int:
    """Forget entries; how many there were.  One that has just ended is no error."""
    gone = 0
    for outcome in netlink.batch([conntrack.delete(entry) for entry in entries]):
        if isinstance(outcome, Refusal) and outcome.number != _ENOENT:
            raise DataPlaneError(f"a flow cannot be forgotten: {outcome}")
        gone += outcome is None
    return gone


def drop(netlink: Netlink, private: IPv4Address, public: IPv4Address | None = None) -> int:
    """See NaptPlane.drop_flows."""
    found = {
        entry.ident: entry
        for entry, flow in translated(netlink, private)
        if public in (None, flow.public[0])
    }
    return remove(netlink, found.values())
