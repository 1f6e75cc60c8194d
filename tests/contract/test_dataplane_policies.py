"""Redirect policies where packets are seen: a host route that would come back is never used.

Not here: policies as a contract without packets (test_dataplane_contract.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.contract.dataplane_fabric import LOCAL, OWN, B, Fabric, receives, send
from tests.contract.frames import Guest, payload_of
from vmmobility.engine.dataplane import Forwarding, RedirectPolicy

pytestmark = pytest.mark.netns

BY_HOST_ROUTE = replace(
    LOCAL, forwarding=Forwarding.REDIRECT, target=B, policy=RedirectPolicy.HOST_ROUTE
)
SENT_WITH, ROUTERS = 64, 2  # r1, and a itself


def hops_left(guest: Guest, payload: bytes) -> int:
    """The hop limit with which the payload arrived."""

    def wanted(frame: bytes) -> bytes | None:
        if payload_of(frame) != payload:
            return None
        return frame[22:23] if frame[12:14] == b"\x08\x00" else frame[21:22]

    found = guest.find(wanted)
    assert found is not None, f"{payload!r} did not arrive"
    return found[0]


@pytest.mark.parametrize("version", [4, 6])
def test_a_host_route_that_would_come_back_is_refused(fabric: Fabric, version: int) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    try:
        failures = fabric.a.space.await_(fabric.a.driver.apply([BY_HOST_ROUTE]))
        assert [f.item for f in failures] == ["route 10.77.0.5/32", "route fd77::5/128"]
        assert all("its router would send packets back" in f.reason for f in failures)
        send(fabric, version, b"straight")
        assert hops_left(guest, b"straight") == SENT_WITH - ROUTERS
        # What was refused, made by hand: the router leads the VM's home to a.
        gateway = {4: "10.0.1.1", 6: "fd00:1::1"}[version]
        fabric.a.space.ip(f"-{version}", "route", "add", OWN[version], "via", gateway,
                          "metric", "1")  # fmt: skip
        send(fabric, version, b"round and round")
        assert not receives(guest, b"round and round", 0.3)
    finally:
        guest.close()
        fabric.a.space.run("ip", f"-{version}", "route", "flush", OWN[version], "metric", "1")
