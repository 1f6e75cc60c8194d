"""Keys turned over under traffic: in the documented order no message is lost, in another they heal.

The traffic: the manager checks all bindings without a pause, VMs are attached and stopped at the
NVE, and the registrations are refreshed.  A repetition tells of a loss.
"""

from __future__ import annotations

import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.contract.namespaces import Namespace, wait_for
from tests.daemon.live_fabric import VM, LiveFabric, ShortTimers, live_fabric
from tests.daemon.one_host import Host
from vmmobility.errors import ApiError
from vmmobility.lab.daemons import to_toml
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.netns]

NVE = "nve-a"
ENDS = ("manager", NVE)
LOSSES = ("unknown-key", "bad-digest", "repeated-request", "unauthenticated", "unproven")
PATIENCE_S = 15.0
RETRANSMIT_S = 2.5
ROUNDS = 5  # exchanges of each kind between two steps of a rotation


class PatientTimers(ShortTimers):
    """Repetitions so late that only a loss makes one, and no busy machine."""

    def configure(self) -> None:
        super().configure()
        for node in self.nodes:
            path = self.home(node.name) / "config.toml"
            tables = tomllib.loads(path.read_text())
            tables["timers"] = {**tables.get("timers", {}), "retransmit_s": RETRANSMIT_S}
            path.write_text(to_toml(tables))


class Traffic:
    """Exchanges in both directions, and how many were done."""

    def __init__(self, fabric: LiveFabric, guests: list[Namespace]) -> None:
        self._fabric = fabric
        self._stop = threading.Event()
        self.refused: list[str] = []
        self.done = {"checks": 0, "attaches": 0}
        self._threads = [threading.Thread(target=self._check)]
        self._threads += [
            threading.Thread(target=self._attach, args=(number, guest))
            for number, guest in enumerate(guests)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _check(self) -> None:
        with self._fabric.manager() as client:
            while not self._stop.is_set():
                try:
                    unanswered = client.check(PATIENCE_S)["unanswered"]
                except ApiError as error:
                    unanswered = [str(error)]
                self.refused += unanswered
                self.done["checks"] += 1

    def _attach(self, number: int, guest: Namespace) -> None:
        vm = VmKey(0, f"guest{number}")
        interface = {
            "mac": f"02:00:00:00:01:{number:02x}",
            "addresses": [f"10.1.0.{100 + number}/32", f"fd01::{100 + number}/128"],
        }
        definition = {
            "vm_id": vm.vm_id,
            "kind": "netns",
            "machine": {"namespace": guest.name},
            "interface": [interface],
        }
        with self._fabric.nve(NVE) as client:
            while not self._stop.is_set():
                try:
                    client.start_vm(definition)
                    client.stop_vm(vm)
                except ApiError as error:
                    self.refused.append(str(error))
                self.done["attaches"] += 1

    def flows(self) -> None:
        """Wait until so many more exchanges have been made, of each kind."""
        goal = {"checks": self.done["checks"] + ROUNDS}
        if len(self._threads) > 1:
            goal["attaches"] = self.done["attaches"] + ROUNDS
        wait_for(
            lambda: all(self.done[kind] >= goal[kind] for kind in goal),
            "exchanges", 4 * PATIENCE_S,
        )  # fmt: skip


@pytest.fixture(scope="module")
def fabric() -> Iterator[LiveFabric]:
    with live_fabric(PatientTimers) as live:
        yield live


@pytest.fixture(scope="module")
def guests() -> Iterator[list[Namespace]]:
    with ExitStack() as stack:
        made = [Namespace(f"g{number}") for number in range(2)]
        for space in made:
            stack.callback(space.close)
        yield made


def losses(fabric: LiveFabric) -> dict[str, int]:
    """What was lost or said twice."""
    return {f"{node} {reason}": fabric.drops(node, reason) for node in ENDS for reason in LOSSES}


def key_file(fabric: LiveFabric, node: str) -> Path:
    return fabric.daemons.home(node) / "keys" / f"manager--{NVE}.toml"


def turn(fabric: LiveFabric, step: str) -> None:
    """`vmmob key STEP` at the manager's file alone."""
    done = fabric.vmmob("key", step, str(key_file(fabric, "manager")))
    assert done.returncode == 0, done.stderr


def copy(fabric: LiveFabric) -> None:
    shutil.copy2(key_file(fabric, "manager"), key_file(fabric, NVE))


def binding(fabric: LiveFabric) -> tuple[str, int]:
    with fabric.manager() as client:
        row = client.binding(VmKey(0, VM))
    return str(row["nve"]), int(row["epoch"])


@contextmanager
def undisturbed(fabric: LiveFabric) -> Iterator[tuple[str, int]]:
    before = binding(fabric)
    yield before
    fabric.echoes()
    assert binding(fabric) == before


@pytest.mark.lab
@pytest.mark.parametrize("busy", [False, True], ids=["checks", "attaches"])
@pytest.mark.parametrize("first", ENDS)
def test_no_message_is_lost_in_the_documented_order(
    fabric: LiveFabric, guests: list[Namespace], first: str, busy: bool
):
    with undisturbed(fabric), Traffic(fabric, guests if busy else []) as traffic:
        traffic.flows()
        baseline = losses(fabric)
        traffic.flows()
        assert losses(fabric) == baseline, "the traffic loses something by itself"
        for step in ("rotate", "activate", "retire"):
            turn(fabric, step)
            copy(fabric)
            for node in (first, *(end for end in ENDS if end != first)):
                fabric.hang_up(node)
                traffic.flows()
        assert losses(fabric) == baseline
    assert traffic.refused == []


@pytest.mark.lab
@pytest.mark.parametrize("too_early", ["activate", "retire"])
def test_the_wrong_order_is_counted_and_heals(
    fabric: LiveFabric, guests: list[Namespace], too_early: str
):
    """The manager goes a step ahead, and the NVE hears of the new key later."""
    with undisturbed(fabric), Traffic(fabric, guests) as traffic:
        traffic.flows()
        baseline = losses(fabric)
        turn(fabric, "rotate")
        if too_early == "retire":
            copy(fabric)
            fabric.hang_up(NVE)
        turn(fabric, "activate")
        if too_early == "retire":
            # The NVE knows the new key, yet signs with the old one still.
            turn(fabric, "retire")
        deaf = NVE if too_early == "activate" else "manager"
        fabric.hang_up("manager")
        reason = f"{deaf} unknown-key"
        fabric.eventually(lambda: losses(fabric)[reason] > baseline[reason], "it is counted")
        copy(fabric)
        fabric.hang_up(NVE)
        traffic.flows()
        healed = losses(fabric)
        traffic.flows()
        assert losses(fabric) == healed
        if too_early == "activate":
            turn(fabric, "retire")
            copy(fabric)
            for node in ENDS:
                fabric.hang_up(node)
            traffic.flows()
            assert losses(fabric) == healed
        assert [name for name in healed if "bad-digest" in name and healed[name]] == []


def test_a_manager_whose_key_says_that_it_is_an_nve_is_refused():
    host = Host()
    try:
        folder = host.folder / "wrong"
        made = host.vmmob("key", "new", "manager:nve", "nve-a:nve", "--dir", folder)
        assert made.code == 0, made.err
        error, remedy = host.run("nve-a", host.configure("nve-a", keys_dir=str(folder))).refused()
        assert "manager's key says role nve" in error
        assert "new key" in remedy
        assert "vmmob-" not in host.space.ip("link")
    finally:
        host.close()
