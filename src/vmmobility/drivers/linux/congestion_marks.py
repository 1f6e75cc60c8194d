"""Congestion marks (ECN) of a packet in a tunnel: which go outside, and what comes back inside.

Pure.  As the kernel's tunnels do: what a router on the way marks outside is not lost where the
tunnel ends (RFC 6040 section 4.2).  The rest of the octet, DSCP, is the underlay's: it is neither
copied outward nor inward.  Not here: sockets (relay.py, relay_sender.py).
"""

from __future__ import annotations

Packet = bytes | bytearray | memoryview

_ECT1, _ECT0, _CE = 1, 2, 3
"""The ends understand marks (both); Congestion Experienced.  0: they do not understand them."""
_MARKS = 3


def marks_of(packet: Packet, version: int) -> int:
    """A packet's own marks, 0 to 3: the low bits of the traffic class."""
    return packet[1] & _MARKS if version == 4 else packet[1] >> 4 & _MARKS


def behind_tunnel(packet: Packet, version: int, outer: int) -> Packet | None:
    """An inner packet as it goes on behind its tunnel, where the outer one had these marks.

    RFC 6040 section 4.2.  None: it met congestion, and its ends would not understand; it is
    dropped, as a router without marks would have done.
    """
    inner = marks_of(packet, version)
    if outer == _CE and inner == 0:
        return None
    if outer == _CE or (outer == _ECT1 and inner == _ECT0):
        return packet if inner == outer else _marked(packet, version, outer)
    return packet


def _marked(packet: Packet, version: int, marks: int) -> bytes:
    changed = bytearray(packet)
    if version == 6:
        changed[1] = changed[1] & ~(_MARKS << 4) | marks << 4
        return bytes(changed)
    changed[1] = changed[1] & ~_MARKS | marks
    # RFC 1624 equation 3: HC' = ~(~HC + ~m + m'), of the header's first word.
    old, new = (int.from_bytes(one[:2], "big") for one in (packet, changed))
    total = (~int.from_bytes(packet[10:12], "big") & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    changed[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(changed)
