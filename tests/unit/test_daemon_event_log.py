"""The event log: JSON lines, subscribers, few lines of drops, rotation, a disk that is full."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from vmmobility.daemon.event_log import DROPS_A_SECOND, EventLog
from vmmobility.engine.outputs import Event
from vmmobility.errors import ConfigError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_a_line_and_every_subscriber_hears_it(tmp_path: Path):
    file, heard = tmp_path / "deep" / "log.json", list[str]()
    log = EventLog("nve-a", file)
    log.subscribe(lambda event: heard.append(event.name))
    log.write(Event("guest.started", {"vm": "vm1", "event": "not the name", "at": Path("/x")}))
    log.note("stopped")
    log.close()
    first, second = lines(file)
    assert (first["node"], first["event"], first["vm"]) == ("nve-a", "guest.started", "vm1")
    assert first["at"] == "/x"
    assert isinstance(first["ts_ns"], int)
    assert second["event"] == "stopped"
    assert heard == ["guest.started", "stopped"]


def test_without_a_file_it_is_standard_error(capsys: pytest.CaptureFixture[str]):
    log = EventLog("nve-a", None)
    log.note("started")
    log.reopen()
    log.note("stopped")
    log.close()
    err = capsys.readouterr().err
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["started", "stopped"]


def test_drops_are_limited_in_rate_but_all_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    second, heard = [100.0], list[Event]()
    monkeypatch.setattr(time, "monotonic", lambda: second[0])
    log = EventLog("n", tmp_path / "log")
    log.subscribe(heard.append)
    for _ in range(3 * DROPS_A_SECOND):
        log.write(Event("drop", {"reason": "replayed"}))
    log.note("started")
    second[0] += 1
    log.write(Event("drop", {"reason": "replayed"}))
    log.close()
    assert len(heard) == 3 * DROPS_A_SECOND + 2
    names = [line["event"] for line in lines(tmp_path / "log")]
    assert names == ["drop"] * DROPS_A_SECOND + ["started", "drop"]


def test_rotation_goes_on_in_the_new_file(tmp_path: Path):
    log = EventLog("n", tmp_path / "log")
    log.note("one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.note("two")
    log.reopen()
    log.note("three")
    log.close()
    assert [line["event"] for line in lines(tmp_path / "log.1")] == ["one", "two"]
    assert [line["event"] for line in lines(tmp_path / "log")] == ["three"]


def test_a_file_that_cannot_be_opened(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        EventLog("n", tmp_path / "file" / "log")
    assert "log_file" in refused.value.remedy


def test_a_full_disk_costs_lines_and_nothing_else():
    heard = list[str]()
    log = EventLog("n", Path("/dev/full"))
    log.subscribe(lambda event: heard.append(event.name))
    log.note("one")
    log.note("two")
    log.close()
    assert heard == ["one", "two"]
    assert log.lost == 2
