"""`vmmob events --follow`: what people are told when the manager is not there, or goes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.cli.command_line import Vmmob
from tests.unit.cli.conftest import served
from tests.unit.fake_services import FakeManager
from vmmobility.api.manager_api import manager_api
from vmmobility.cli import events


def test_following_nobody_fails_at_once(
    vmmob: Vmmob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slept: list[float] = []
    monkeypatch.setattr("vmmobility.cli.events.time.sleep", slept.append)
    ran = vmmob("events", "--follow", "--socket", tmp_path / "none.sock")
    assert (ran.code, slept) == (1, [])
    assert "no such socket" in ran.err


def test_people_are_told_that_the_manager_is_asked_again(
    vmmob: Vmmob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ends, comes back, and ends for good."""
    monkeypatch.setattr(events, "AGAIN_S", 0.05)
    monkeypatch.setattr(events, "MOST_IN_VAIN", 100)
    place = tmp_path / "manager.sock"
    ran: list[Any] = []
    with served(manager_api(first := FakeManager()), place):
        thread = threading.Thread(
            target=lambda: ran.append(vmmob("events", "--follow", "--socket", place))
        )
        thread.start()
        wait_for(lambda: first.feed._readers, "it follows")
    with served(manager_api(second := FakeManager()), place):
        wait_for(lambda: second.feed._readers, "it follows again")
    monkeypatch.setattr(events, "MOST_IN_VAIN", 1)
    thread.join(20)
    [end] = ran
    assert end.code == 1
    notes = [line for line in end.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert "asked again for" in notes[0]
    assert notes[1] == "note: they come again"
    assert "asked again for" in notes[2]
