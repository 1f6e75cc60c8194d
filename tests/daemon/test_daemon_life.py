"""Live daemons: killed, ended, asked to reload, and told nonsense, while a VM is served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.daemon.live_fabric import LIFETIME_S, STEP_S, VM, LiveFabric, live_fabric
from vmmobility.daemon.keys import read_pair
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import VmId
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose
from vmmobility.wire.values import VmKey

pytestmark = [pytest.mark.netns, pytest.mark.lab]

END_S = 3.0


@pytest.fixture(scope="module")
def fabric() -> Iterator[LiveFabric]:
    with live_fabric() as live:
        yield live


@pytest.fixture(autouse=True)
def served(fabric: LiveFabric) -> Iterator[None]:
    """Each test leaves every daemon running and the VM served, as it found them."""
    yield
    fabric.start_ended()
    fabric.eventually(lambda: fabric.where(), "the manager has the binding")
    fabric.echoes()


def test_the_kill_of_a_manager_changes_nothing(fabric: LiveFabric):
    fabric.echoes()
    before = fabric.where(), fabric.kernel(fabric.where())
    fabric.kill("manager", signal.SIGKILL)
    fabric.echoes()
    fabric.start("manager")
    assert (fabric.where(), fabric.kernel(fabric.where())) == before
    fabric.move("nve-b")
    fabric.echoes()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_an_nve_leaves_guest_routes_and_relay(fabric: LiveFabric, sign: signal.Signals):
    serving = fabric.where()
    kernel, processes = fabric.kernel(serving), fabric.processes(serving)
    assert any("relay" in line for line in processes)
    begun = time.monotonic()
    code = fabric.kill(serving, sign)
    assert time.monotonic() - begun < END_S
    assert code == (-signal.SIGKILL if sign is signal.SIGKILL else 0)
    fabric.echoes()
    assert fabric.kernel(serving) == kernel
    assert fabric.processes(serving) == processes
    fabric.start(serving)
    assert fabric.processes(serving) == processes, "relay and guest are found again"
    fabric.echoes()
    fabric.move("nve-a" if serving == "nve-b" else "nve-b")
    fabric.echoes()


def test_sigterm_ends_the_manager_in_order(fabric: LiveFabric):
    begun = time.monotonic()
    assert fabric.kill("manager", signal.SIGTERM) == 0
    assert time.monotonic() - begun < END_S
    assert json.loads(fabric.events("manager")[-1])["event"] == "stopped"
    assert (fabric.daemons.home("manager") / "stderr.txt").read_text() == ""


def test_a_move_to_an_nve_that_does_not_answer(fabric: LiveFabric):
    serving = fabric.where()
    fabric.kill("nve-c", signal.SIGKILL)
    begun = time.monotonic()
    moved = fabric.vmmob("move", VM, "nve-c", "--wait")
    took_s = time.monotonic() - begun
    assert moved.returncode == 1
    assert moved.stderr.splitlines() == [
        f"error: the move of {VM} to nve-c failed: the destination does not answer",
        f"remedy: see `vmmob vm show {VM}` for where it runs; then move it again",
    ]
    # One step to prepare, one to tell the destination that the move is off.
    assert took_s < 2 * STEP_S + 2
    assert fabric.where() == serving
    fabric.echoes()
    fabric.start("nve-c")


def test_a_dead_relay_is_replaced_and_the_nve_lives_on(fabric: LiveFabric):
    serving = fabric.where()
    relays = [line.split()[0] for line in fabric.processes(serving) if "relay" in line]
    os.kill(int(relays[0]), signal.SIGKILL)
    fabric.eventually(lambda: fabric.status(serving)["relay_deaths"] > 0, "the death is counted")
    fabric.eventually(
        lambda: any("relay" in line for line in fabric.processes(serving)), "a relay runs"
    )
    fabric.echoes()


def test_keys_turn_over_while_registrations_go_on(fabric: LiveFabric):
    serving = fabric.where()
    ends = ("manager", serving)
    name = f"manager--{serving}.toml"
    keys = [fabric.daemons.home(node) / "keys" / name for node in ends]
    for step in ("rotate", "activate", "retire"):
        done = fabric.vmmob("key", step, str(keys[0]))
        assert done.returncode == 0, done.stderr
        shutil.copy2(keys[0], keys[1])
        for node in ends:
            fabric.hang_up(node)
        begun = time.monotonic()

        def refreshed(since: float = begun) -> bool:
            heard = fabric.last_heard_s(serving)
            return heard is not None and heard < time.monotonic() - since

        fabric.eventually(refreshed, f"{serving} refreshes after {step}", LIFETIME_S * 3)
    assert read_pair(keys[0]).signs == 2
    assert (fabric.drops("manager", "unknown-key"), fabric.drops(serving, "unknown-key")) == (0, 0)
    assert fabric.where() == serving


def test_a_key_that_is_gone_or_wrong_is_refused_and_the_old_one_stays(fabric: LiveFabric):
    key = fabric.daemons.home("manager") / "keys" / "manager--nve-c.toml"
    content = key.read_bytes()
    refused = fabric.count("manager", '"keys.refused"')
    for text in (None, content.replace(b'role = "nve"', b'role = "napt"'), b"signs = 1"):
        key.unlink()
        if text is not None:
            key.write_bytes(text)
            key.chmod(0o600)
        fabric.daemons.kill(["manager"], signal.SIGHUP)
        refused += 1
        fabric.eventually(partial(logged, fabric, "keys.refused", refused), "it says so")
        if text is None:
            key.touch(0o600)
    key.write_bytes(content)
    fabric.hang_up("manager")


def logged(fabric: LiveFabric, event: str, times: int) -> bool:
    return fabric.count("manager", f'"{event}"') == times


def counted(fabric: LiveFabric, reason: str, times: int) -> bool:
    return fabric.drops("manager", reason) == times


def deregister() -> bytes:
    message = Message(Kind.REQUEST, Purpose.DEREGISTER, 7, (VmId(VmKey(0, VM)),), 0)
    return encode_parts(message, MAX_DATAGRAM, TRAILER)[0]


class Impostor:
    """Whoever has nve-c's key: seals what nve-c would send to the manager, as a later boot."""

    def __init__(self, fabric: LiveFabric) -> None:
        pair = read_pair(fabric.daemons.home("manager") / "keys" / "manager--nve-c.toml")
        self._key = next(key for key in pair.keys if key.id == pair.signs)
        self._boot = time.time_ns()
        self._counter = 0

    def sealed(self, data: bytes, secret: bytes = b"") -> bytes:
        self._counter += 1
        mark = Seal("nve-c", self._key.id, self._boot, self._counter)
        return seal(data, mark, secret or self._key.secret)


def test_what_is_not_right_is_counted_and_changes_nothing(fabric: LiveFabric):
    with fabric.manager() as client:
        before = [{**row, "expires_in_s": 0} for row in client.bindings()]
    sealed = Impostor(fabric).sealed
    cases = {
        "unauthenticated": deregister() + b"\0" * TRAILER,
        "truncated": b"\x01\x02\x03",
        "too-long": b"\0" * (MAX_DATAGRAM + 1),
        "bad-digest": sealed(deregister(), b"\x55" * 32),
        "unproven": sealed(deregister()),  # the key is right, and still the boot is nobody's
    }
    for reason, data in cases.items():
        count = fabric.drops("manager", reason)
        fabric.datagram("nve-c", "manager", data)
        fabric.eventually(partial(counted, fabric, reason, count + 1), f"{reason} is counted")
    with fabric.manager() as client:
        assert [{**row, "expires_in_s": 0} for row in client.bindings()] == before
    assert fabric.status("manager")["log_lines_lost"] == 0
    # The real nve-c has answered the manager's challenge, and is heard as before.
    assert fabric.status("manager")["unproven"] == []
