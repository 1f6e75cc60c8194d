"""Moves in fabrics with FRR and router agents: scenarios judge themselves, reports are judged here.

Not here: FRR in the lab without moves, fabrics with static routes (test_lab_daemons.py).
"""

from __future__ import annotations

import pytest

from tests.lab.lab_command import Lab

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(180)]

FAMILIES = {"ipv4", "ipv6"}


def check_settled(report, correspondents):
    """After each move every correspondent's way is direct; in the end nothing is left at home."""
    paths = report["settled_path"]
    assert {path["move"] for path in paths} == {move["number"] for move in report["moves"]}
    for move in report["moves"]:
        mine = [path for path in paths if path["move"] == move["number"]]
        seen = {(path["correspondent"], path["family"]) for path in mine}
        assert seen == {(name, family) for name in correspondents for family in FAMILIES}
        for path in mine:
            assert (path["direct"], path["detours"]) == (True, [])
            assert path["hops"][0] == path["correspondent"]
            assert path["hops"][-2:] == [move["to"], "vm1"]
    assert report["host_routes_left"] == []


def test_a_move_inside_a_data_centre_is_optimised_without_loss(lab: Lab) -> None:
    report = lab.run("intra-dc-optimised-light")
    assert report["summary"]["lost"] == 0
    check_settled(report, ["near", "side", "far", "outside"])
    away, home = report["routes"]
    assert 0 < away["announced_inside_ms"] <= away["announced_ms"] <= away["converged_ms"]
    assert away["withdrawn_ms"] is None  # at home nothing was announced
    assert 0 < home["withdrawn_inside_ms"] <= home["withdrawn_ms"]
    assert "settled path" in (lab.out / "r.html").read_text()
    assert "fabric follows" in (lab.out / "output.txt").read_text()


def test_moves_between_data_centres_are_optimised_without_loss(lab: Lab) -> None:
    report = lab.run("inter-dc-light")
    assert report["summary"]["lost"] == 0
    check_settled(report, ["near", "side", "far", "outside"])
    assert len(report["routes"]) == 4


@pytest.mark.slow
def test_a_gate_that_stays_shut_leaves_the_vm_where_it_is(lab: Lab) -> None:
    report = lab.run("gate-timeout")
    assert report["summary"]["streams"]["lost"] == 0
    assert report["host_routes_left"] == []
    assert [move["ok"] for move in report["moves"]] == [False, False, True, True]


@pytest.mark.slow
def test_no_tunnel_carries_a_packet_of_a_host_outside(lab: Lab) -> None:
    report = lab.run("external-not-tunnelled")
    assert len(report["tunnelled"]) == 4
    assert report["summary"]["fabric"]["tunnelled_outside"] == 0
    assert report["summary"]["fabric"]["tunnelled_inside"] > 0
    assert all(count["missed"] == count["unseen"] == 0 for count in report["tunnelled"])
    senders = {probe["correspondent"] for move in report["moves"] for probe in move["probes"]}
    assert "outside" in senders
    assert report["summary"]["streams"]["lost"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "inter-dc-external",
        "three-dc-chain-light",
        "router-restart",
        "isis-light",
    ],
)
def test_nothing_is_lost(lab: Lab, name: str) -> None:
    assert lab.run(name)["summary"]["streams"]["lost"] == 0


@pytest.mark.slow
def test_a_move_that_a_router_does_not_follow_loses_outside_packets_alone(lab: Lab) -> None:
    report = lab.run("gate-timeout-proceed")
    lost = {s["correspondent"] for s in report["streams"] if s["lost"]}
    assert lost <= {"outside"}
    assert report["summary"]["fabric"]["tunnelled_outside"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frr-crash", "dc-partition", "fat-tree"])
def test_traffic_heals_and_nothing_stale_stays(lab: Lab, name: str) -> None:
    report = lab.run(name)
    assert report["host_routes_left"] == []
    assert all(stream["tcp_survived"] for stream in report["streams"])


@pytest.mark.qemu
@pytest.mark.slow
def test_a_guest_that_hands_move_to_another_data_centre_is_followed(lab: Lab) -> None:
    report = lab.run("unmanaged-inter-dc")
    assert len(report["by_hand"]) == 3
    assert report["host_routes_left"] == []
    assert all(stream["tcp_survived"] for stream in report["streams"])


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["intra-dc-optimised", "inter-dc"])
def test_real_guests_move_across_the_fabric_without_loss(lab: Lab, name: str) -> None:
    report = lab.run(name)
    assert report["summary"]["lost"] == 0
    assert report["summary"]["sound"] == len(report["moves"])
    check_settled(report, ["near", "side", "far", "outside"])


@pytest.mark.slow
def test_two_vms_with_one_address_share_the_load(lab: Lab) -> None:
    flows = lab.run("load-shared")["flows"]
    assert {one["family"] for one in flows} == {"ipv4", "ipv6"}
    at_rest = [one for one in flows if one["phase"] == "at rest"]
    assert at_rest
    assert all(one["changes"] == 0 for one in at_rest)
    dark = [one for one in flows if one["phase"] == "nve-1a dark"]
    assert all(set(one["after"]) == {"web2"} for one in dark)
    assert all(one["turned"] == one["before"].get("web1", 0) for one in dark)
