"""`vmmob lab run` from end to end, with a stand-in for the daemons: the lab's own correctness."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.lab.stand_in_daemons import StandInDaemons
from vmmobility.cli.lab import lab as lab_command
from vmmobility.lab import laboratory, namespaces, workdir
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.runner import Options, run_scenario

pytestmark = [pytest.mark.netns, pytest.mark.lab]


@pytest.fixture
def short(monkeypatch):
    """A short runtime folder: a unix socket's path is at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vml") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setattr(laboratory, "Daemons", StandInDaemons)
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []


def test_adjacent_runs_twice_without_loss_and_leaves_nothing(short, tmp_path):
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    words = ["run", "adjacent", "--repeat", "2", "--raw", str(tmp_path / "raw"), *files]
    done = CliRunner().invoke(lab_command, words)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["ok"], data["runs"], data["leftovers"]) == (True, 2, [])
    assert [(m["run"], m["from"], m["to"]) for m in data["moves"]] == [
        (1, "nve-a", "nve-b"),
        (1, "nve-b", "nve-a"),
        (2, "nve-a", "nve-b"),
        (2, "nve-b", "nve-a"),
    ]
    assert "built anew" not in done.output
    for move in data["moves"]:
        assert len(move["probes"]) == 4
        assert move["tcp"]["survived"] == move["tcp"]["sessions"] == 4
        assert move["guest"]["sound"]
        assert move["guest"]["stop_to_resume_ms"] > 0
        assert move["control"]["redirect_to_stop_ms"] > 0
        assert {route["via"] for route in move["routes"]} >= {"local", "host-route"}
        for probe in move["probes"]:
            name = f"{move['number']}-{probe['correspondent']}-{probe['family']}.csv"
            with (tmp_path / "raw" / name).open() as file:
                rows = list(csv.DictReader(file))
            assert len(rows) - probe["duplicated"] == probe["sent"]
            assert sum(row["received_ns"] == "" for row in rows) == probe["lost"] == 0
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_a_failed_move_makes_the_report_not_ok_and_still_leaves_nothing(short, monkeypatch):
    monkeypatch.setattr(StandInDaemons, "sabotage", "break-move")
    scenario = scenarios.load_scenario(scenarios.find("adjacent"))
    told: list[str] = []
    report = run_scenario(scenario, Options(), told.append)
    assert not report.ok
    assert "sabotaged" in report.failures[0]
    assert report.leftovers == ()
    assert [move.ok for move in report.moves] == [False]


def test_an_abandoned_lab_is_swept(short):
    scenario = scenarios.load_scenario(scenarios.find("adjacent"))
    lab = laboratory.build(scenario.fabric, "left", owned=True, say=lambda line: None)
    old = workdir.LabInfo(lab.info.lab_id, "left", "x", 1, 1, lab.info.namespaces)
    old.save()
    empty = scenarios.Scenario("empty", "", scenario.fabric, (), ())
    told: list[str] = []
    report = run_scenario(empty, Options(), told.append)
    assert report.ok, report.failures
    assert any("swept" in line for line in told)
    assert namespaces.existing(lab.info.lab_id) == []
    lab.down()


@pytest.mark.qemu
def test_a_real_guest_moves_there_and_back(short, tmp_path):
    path = scenarios.built_in()["adjacent"]
    fabric = (path.parents[1] / "fabrics" / "one-segment.toml").read_text()
    (tmp_path / "f.toml").write_text(fabric.replace('kind = "netns"', 'kind = "guest"'))
    text = path.read_text().replace('"one-segment"', '"f.toml"')
    (tmp_path / "s.toml").write_text(text)
    told: list[str] = []
    report = run_scenario(scenarios.load_scenario(tmp_path / "s.toml"), Options(), told.append)
    assert report.leftovers == ()
    assert [(move.ok, move.guest.sound) for move in report.moves] == [(True, True)] * 2
    for move in report.moves:
        assert move.guest.memory_pages
        assert move.guest.downtime_ms
        assert move.guest.cpu is not None
        assert move.tcp.survived == 4
        assert all(probe.longest_gap_ms < 2000 for probe in move.probes)
