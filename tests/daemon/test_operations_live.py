"""What operators type, against live daemons: comparisons, fencing, giving up, strict mode."""

from __future__ import annotations

import json
import signal
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.daemon.live_fabric import ADDRESSES, VM, LiveFabric, live_fabric
from vmmobility.cli import main as cli
from vmmobility.lab.daemons import to_toml
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.netns, pytest.mark.lab]


@pytest.fixture(scope="module")
def fabric() -> Iterator[LiveFabric]:
    with live_fabric() as live:
        yield live


@pytest.fixture(autouse=True)
def served(fabric: LiveFabric) -> Iterator[None]:
    """Each test leaves every daemon running and the VM served, as it found them."""
    yield
    fabric.start_ended()
    fabric.eventually(lambda: state(fabric) == "serving", "the VM is served")
    fabric.echoes()


def state(fabric: LiveFabric) -> str:
    with fabric.manager() as client:
        return str(client.vms()[0]["state"])


def checked(fabric: LiveFabric, *words: str) -> tuple[int, dict[str, Any]]:
    ran = fabric.vmmob(*words, "--json")
    assert ran.stderr == "", ran
    return ran.returncode, json.loads(ran.stdout)


def nve_check(fabric: LiveFabric, nve: str) -> tuple[int, dict[str, Any]]:
    return checked(fabric, "nve", "check", "--socket", str(fabric.daemons.socket(nve)))


def alarms(fabric: LiveFabric) -> list[str]:
    with fabric.manager() as client:
        return [row["alarm"] for row in client.alarms()]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_route_that_other_hands_removed_is_found_and_put_back(fabric: LiveFabric, address: str):
    serving = fabric.where()
    assert nve_check(fabric, serving)[0] == 0
    kernel = fabric.kernel(serving)
    family = "-6" if ":" in address else "-4"
    fabric.ip(serving, family, "route", "del", address, "proto", "77")
    code, found = nve_check(fabric, serving)
    assert code == 1
    assert [(row["vm"], row["what"], row["repaired"]) for row in found["drift"]] == [
        (VM, "kernel", True)
    ]
    assert address in found["drift"][0]["found"]
    assert sorted(fabric.kernel(serving).split()) == sorted(kernel.split())
    assert nve_check(fabric, serving)[0] == 0
    assert fabric.status(serving)["counts"]["drift.kernel"] >= 1


def test_the_manager_hears_of_what_differs_and_of_who_is_silent(fabric: LiveFabric):
    serving = fabric.where()
    fabric.move("nve-c" if serving != "nve-c" else "nve-b")
    assert checked(fabric, "check") == (
        0,
        {"checked": 2, "drift": [], "unanswered": [], "repaired": 0},
    )
    fabric.ip(serving, "route", "del", ADDRESSES[0], "proto", "77")
    code, found = checked(fabric, "check")
    assert code == 1
    assert [(row["nve"], row["repaired"]) for row in found["drift"]] == [(serving, True)]
    fabric.kill(serving, signal.SIGKILL)
    ran = fabric.vmmob("check")
    assert ran.returncode == 1
    last = ran.stdout.splitlines()[-1]
    assert last.startswith("2 bindings and redirects compared, 0 differences (0 repaired), 1 NVEs")
    assert last.endswith(f"did not answer: {serving}")
    assert "asking the NVEs … 1 s" in ran.stderr
    fabric.start(serving)
    fabric.eventually(lambda: fabric.vmmob("check").returncode == 0, "nothing differs any more")


def test_an_operators_word_releases_what_has_expired(fabric: LiveFabric):
    serving = fabric.where()
    other = "nve-b" if serving != "nve-b" else "nve-c"
    live = fabric.vmmob("vm", "release", VM, "--fenced", serving)
    assert (live.returncode, "lives for another" in live.stderr) == (1, True), live
    fabric.kill(serving, signal.SIGKILL)
    fabric.eventually(lambda: state(fabric) == "expired", "the binding expires")
    assert sorted(alarms(fabric)) == ["binding.expired", "nve.silent"]
    plain = fabric.vmmob("vm", "release", VM)
    assert plain.returncode == 1
    assert f"--fenced {serving}" in plain.stderr
    wrong = fabric.vmmob("vm", "release", VM, "--fenced", other)
    assert wrong.returncode == 1
    assert f"at {serving}, not at {other}" in wrong.stderr
    released = fabric.vmmob("vm", "release", VM, "--fenced", serving)
    assert (released.returncode, state(fabric)) == (0, "released"), released
    assert alarms(fabric) == ["nve.silent"]
    # It was not fenced after all: it is heard again, and has the VM still.
    fabric.start(serving)
    fabric.eventually(lambda: state(fabric) == "serving", "the release is void")
    assert fabric.where() == serving


def test_a_move_to_a_silent_nve_is_given_up(
    fabric: LiveFabric, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The command runs in this process: a new one may take longer to begin than a dead destination
    takes to end the move by itself."""
    monkeypatch.setenv("VMMOB_SOCKET", str(fabric.daemons.socket("manager")))
    serving = fabric.where()
    silent = "nve-b" if serving != "nve-b" else "nve-c"
    fabric.kill(silent, signal.SIGKILL)
    with fabric.manager() as client:
        client.start_move(VmKey(0, VM), silent)
    with pytest.raises(SystemExit) as ended:
        cli.main(["move", "abort", VM, "--wait"])
    told = capsys.readouterr()
    assert ended.value.code == 0, told
    assert told.out.splitlines()[-1].split()[-1] == "aborted"
    assert fabric.where() == serving
    assert fabric.vmmob("move", "abort", VM).returncode == 1


def test_strict_mode_moves_only_what_is_on_record(fabric: LiveFabric):
    here = fabric.where()
    there, forbidden = (nve for nve in ("nve-a", "nve-b", "nve-c") if nve != here)
    with restarted_strict(fabric):
        refused = fabric.vmmob("move", VM, there)
        assert (refused.returncode, "is not onboarded" in refused.stderr) == (1, True), refused
        definition = fabric.daemons.home("manager") / "vm.json"
        with fabric.manager() as client:
            interfaces = client.vms()[0]["interfaces"]
        definition.write_text(json.dumps({"vm_id": VM, "interfaces": interfaces}))
        nves = [word for nve in (here, there) for word in ("--nve", nve)]
        onboarded = fabric.vmmob("vm", "onboard", str(definition), *nves)
        assert onboarded.returncode == 0, onboarded
        fabric.kill("manager", signal.SIGKILL)
        fabric.start("manager")
        assert fabric.vmmob("show", "onboarded").stdout.splitlines()[1].split()[0] == VM
        refused = fabric.vmmob("move", VM, forbidden)
        assert f"may not be at {forbidden}" in refused.stderr
        fabric.move(there)
        assert fabric.status("manager")["strict"] is True
    assert fabric.vmmob("vm", "offboard", VM).returncode == 0
    assert fabric.vmmob("show", "onboarded", "--json").stdout == "[]\n"


@contextmanager
def restarted_strict(fabric: LiveFabric) -> Iterator[None]:
    """The manager in strict mode while the body runs."""
    path = fabric.daemons.home("manager") / "config.toml"
    before = path.read_text()

    def restart(text: str) -> None:
        fabric.kill("manager", signal.SIGTERM)
        path.write_text(text)
        fabric.start("manager")

    restart(to_toml({**tomllib.loads(before), "manager": {"strict": True}}))
    try:
        yield
    finally:
        restart(before)


def test_every_nve_is_proven(fabric: LiveFabric):
    shown = fabric.vmmob("show", "nves", "--json")
    assert [row["proven"] for row in json.loads(shown.stdout)] == [True] * 3
    assert fabric.status("manager")["unproven"] == []
