"""congestion_marks.py: RFC 6040's table."""

from __future__ import annotations

import pytest

from tests.contract.frames import checksum, udp
from vmmobility.drivers.linux.congestion_marks import behind_tunnel, marks_of

OWN = {4: "10.77.0.5", 6: "fd77::5"}
SENDERS = {4: ("10.0.9.1", "255.255.255.254", "1.0.0.255"), 6: ("fd00:9::1",)}
CASES = [(v, sender) for v in (4, 6) for sender in SENDERS[v]]


def marked(version: int, sender: str, marks: int, dscp: int = 0) -> bytes:
    made = bytearray(udp(sender, OWN[version], b"payload"))
    if version == 6:
        made[0] |= dscp >> 2
        made[1] |= (dscp & 3) << 6 | marks << 4
        return bytes(made)
    made[1] = dscp << 2 | marks
    made[10:12] = bytes(2)
    made[10:12] = checksum(bytes(made[:20])).to_bytes(2, "big")
    return bytes(made)


# RFC 6040 figure 4, by inner marks, and in each row by outer ones; None: dropped.
BEHIND = {
    0: (0, 0, 0, None),
    1: (1, 1, 1, 3),
    2: (2, 1, 2, 3),
    3: (3, 3, 3, 3),
}


@pytest.mark.parametrize(("version", "sender"), CASES)
@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("dscp", [0, 46, 63])
def test_what_goes_on_behind_a_tunnel(
    version: int, sender: str, inner: int, outer: int, dscp: int
) -> None:
    packet = marked(version, sender, inner, dscp)
    assert marks_of(packet, version) == inner
    goes_on = BEHIND[inner][outer]
    found = behind_tunnel(packet, version, outer)
    assert found == (None if goes_on is None else marked(version, sender, goes_on, dscp))
    assert version == 6 or found is None or checksum(bytes(found[:20])) == 0
