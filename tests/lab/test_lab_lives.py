"""A VM's whole life as a user has it, and moves between servers, by the real daemons."""

from __future__ import annotations

import pytest

from tests.lab.lab_command import Lab

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.timeout(300)]

LIFE = [
    ("create", "offered"),
    ("await", "none"),
    ("create", "none"),
    ("create", "offered"),
    ("create", "offered"),
    ("confirm", "running"),
    ("suspend", "suspended"),
    ("resume", "running"),
    ("await", "running"),
    ("stop", "stopped"),
    ("start", "running"),
    ("delete", "none"),
    ("create", "offered"),
    ("delete", "none"),
]


def test_a_life_from_its_request_to_its_end(lab: Lab) -> None:
    report = lab.run("lifecycle-light")
    rows = report["lives"]
    assert [(row["order"], row["state"]) for row in rows] == LIFE
    assert [bool(row["refused"]) for row in rows].index(True) == 2
    assert "most free 512" in rows[2]["refused"]
    [move] = report["moves"]
    assert (move["from"], move["to"], move["ok"]) == ("nve-a", "nve-b", True)
    streams = report["summary"]["streams"]
    assert streams["lost"] == streams["lost_at_rest"] > 0, "none in the move, some while it was off"


def test_a_vm_goes_from_server_to_server_and_nothing_is_lost(lab: Lab) -> None:
    report = lab.run("servers-move-light")
    ends = [(move["from"], move["to"]) for move in report["moves"]]
    assert ends[:2] == [("nve-a", "nve-a")] * 2, "between two servers of one NVE"
    assert len(ends) == 5
    assert report["summary"]["streams"]["lost"] == 0
    assert all(move["ok"] and move["guest"]["sound"] for move in report["moves"])


@pytest.mark.slow
@pytest.mark.qemu
def test_a_real_guest_goes_from_server_to_server_and_nothing_is_lost(lab: Lab) -> None:
    report = lab.run("servers-move")
    assert len(report["moves"]) == 5
    assert report["summary"]["streams"]["lost"] == 0


@pytest.mark.slow
@pytest.mark.qemu
def test_a_real_guest_s_life(lab: Lab) -> None:
    report = lab.run("lifecycle")
    assert [(row["order"], row["state"]) for row in report["lives"]] == LIFE
