"""Moves whose redirects are tunnels, with each back end; redirect policies between data centres.

The kernel's back end runs where the kernel has it: in the kernel guest (tests/kernel_guest).
"""

from __future__ import annotations

import pytest

from tests.contract.conftest import BACK_ENDS, EMULATED, need
from tests.lab.lab_command import Lab

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(900)]

PACE = ("--set", "probe_every_ms=100", "--set", "step_s=60") if EMULATED else ()


def test_a_few_moves_by_the_kernels_tunnels_lose_nothing(lab: Lab) -> None:
    need("kernel")
    report = lab.run("light-chain", "--set", "tunnel=kernel", "--set", "redirect=tunnel", *PACE)
    assert set(report["tunnels"].values()) == {"kernel"}
    total = report["summary"]
    assert (total["moves_ok"], total["lost"], total["streams"]["lost"]) == (3, 0, 0)
    assert total["relayed"] > 0


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_ten_moves_by_tunnels_lose_nothing(lab: Lab, back_end: str) -> None:
    need(back_end)
    report = lab.run("tunnel-move", "--set", f"tunnel={back_end}", *PACE)
    assert report["tunnels"] == dict.fromkeys(("nve-a", "nve-b", "nve-c"), back_end)
    assert f"tunnels: the {back_end}" in (lab.out / "output.txt").read_text()
    total = report["summary"]
    assert (total["moves_ok"], total["lost"], total["streams"]["lost"]) == (10, 0, 0)
    assert total["relayed"] > 0
    families = {p["family"] for move in report["moves"] for p in move["probes"] if p["sent"]}
    assert families == {"ipv4", "ipv6"}
    vias = {route["via"] for move in report["moves"] for route in move["routes"]}
    assert vias <= {"local", "tunnel"}


def test_auto_lets_go_of_tunnels_and_host_routes_never_come_back(lab: Lab) -> None:
    report = lab.run("auto-redirect")
    assert report["summary"]["streams"]["lost"] == 0
    assert [move["ok"] for move in report["moves"]] == [True, True, False, True, True, True]
    refused = report["moves"][2]
    for locator in ("10.0.1.2", "fd00:0:1::2"):
        assert f"no host route to {locator}: it is not adjacent" in refused["reason"]
    vias = [{(r["node"], r["via"]) for r in move["routes"]} for move in report["moves"]]
    assert ("nve-1a", "host-route") in vias[0]
    assert ("nve-1a", "tunnel") not in vias[0]
    assert ("nve-1c", "tunnel") in vias[1]
    assert ("nve-1c", "host-route") not in vias[1]
    assert not any(via in ("tunnel", "host-route") and node == "nve-2a" for node, via in vias[2])
    assert report["host_routes_left"] == []
