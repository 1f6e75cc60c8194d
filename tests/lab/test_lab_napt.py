"""VMs move between data centres behind NAPT boxes while the outside talks to them and they to it.

The real data plane at both border routers, told directly what an engine would tell it: whether the
public address is kept at the first box or handed to the second, no probe is lost and no TCP
connection breaks, in both families and both directions.  Then the scenarios, with boxes' daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.contract.namespaces import wait_for
from tests.lab.lab_command import Lab
from vmmobility.drivers.frr.check import missing_tools
from vmmobility.drivers.linux.napt_driver import LinuxNaptPlane
from vmmobility.engine.napt_plane import Detour, NaptState, StaticMapping
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import laboratory
from vmmobility.lab.correspondents import Correspondents, Pair
from vmmobility.lab.counting import echo_ns
from vmmobility.lab.fabric_values import PROBE_EVERY_MS
from vmmobility.lab.inside import python, python_environment, set_namespace

pytestmark = [
    pytest.mark.netns,
    pytest.mark.lab,
    pytest.mark.timeout(240),
]
needs_frr = pytest.mark.skipif(missing_tools() != "", reason=f"{missing_tools()}: run make setup")

T = TypeVar("T")
_PATIENCE_S = 30.0
PRIVATE1, PRIVATE2 = IPv4Address("10.11.0.5"), IPv4Address("10.12.0.6")
PUBLIC, POOL, FAR_POOL = (IPv4Address(a) for a in ("192.0.2.5", "192.0.2.9", "203.0.113.9"))
HOMES = {1: ("10.11.0.0/24", "10.12.0.0/24"), 2: ("10.21.0.0/24", "10.22.0.0/24")}
PUBLICS = {1: "192.0.2.0/24", 2: "203.0.113.0/24"}
OUTSIDE = ["198.51.100.2", "2001:db8:64::2"]


class Box:
    """A NAPT plane in a router's namespace, with a thread and a loop of its own."""

    def __init__(self, namespace: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, args=(namespace,), daemon=True)
        self._thread.start()
        self.plane = self.wait(self._make())

    def _live(self, namespace: str) -> None:
        set_namespace(namespace)
        self.loop.run_forever()
        self.loop.close()

    async def _make(self) -> LinuxNaptPlane:
        plane = LinuxNaptPlane()
        await plane.start()
        return plane

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_PATIENCE_S)

    def apply(self, state: NaptState) -> None:
        assert self.wait(self.plane.apply(state)) == []

    def close(self) -> None:
        self.wait(self.plane.remove_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_PATIENCE_S)


def state(number: int, pool: IPv4Address, *items: StaticMapping | Detour) -> NaptState:
    return NaptState(
        inside=tuple(map(IPv4Network, HOMES[number])),
        exempt=(IPv4Network("10.0.0.0/8"),),
        static=tuple(i for i in items if isinstance(i, StaticMapping)),
        pool=(pool,),
        detours=tuple(i for i in items if isinstance(i, Detour)),
        publics=(IPv4Network(PUBLICS[number]),),
    )


class Boxed:
    """The lab with its two boxes, and the probes."""

    def __init__(self, lab: laboratory.Laboratory, folder: Path) -> None:
        self.lab = lab
        self.one, self.two = (Box(lab.spaces.name(box.at)) for box in lab.fabric.boxes)
        self.probes = Correspondents(folder, PROBE_EVERY_MS)
        end = lab.fabric.end_towards("border-1", "border-2")
        self.box1 = IPv4Address(str(end.address(4)))

    def talk(self) -> None:
        space = self.lab.spaces.name
        names = ("outside", "vm1", "vm2")
        self.probes.start(
            [Pair("outside", "vm1"), Pair("vm1", "outside"), Pair("vm2", "outside")],
            {name: space(name) for name in names},
            {"vm1": [str(PUBLIC), "fd0b::5"], "outside": OUTSIDE},
        )

    def move(self, vm: str, to: str) -> None:
        ask, manager = self.lab.daemons.ask, self.lab.daemons.manager
        made = ask(manager, "POST", "/v1/moves", {"vm": vm, "vni": 0, "to": to})
        deadline = time.monotonic() + _PATIENCE_S
        while (answer := ask(manager, "GET", f"/v1/moves/{made['id']}?wait=5"))["ok"] is None:
            assert time.monotonic() < deadline, answer
        assert answer["ok"], answer

    def echoes_go_on(self) -> None:
        """Every stream has an echo of a probe that was sent from now on."""
        now_ns = time.time_ns()

        def echoed(pair: Pair, version: int) -> bool:
            heard = self.probes.udp(pair, version)
            late = [n for n, at in heard.sent.items() if at > now_ns]
            return any(echo_ns(heard, n) is not None for n in late)

        for pair in self.probes.pairs:
            for version in (4, 6):
                wait_for(partial(echoed, pair, version), f"an echo: {pair}", _PATIENCE_S)

    def lead_public(self, box: str) -> None:
        """The internet's route of the public address leads to that box now."""
        at = self.lab.fabric.box(box).at
        gateway = self.lab.fabric.end_towards(at, "internet").address(4)
        space = self.lab.spaces.name("internet")
        subprocess.run(["ip", "-n", space, "route", "replace", f"{PUBLIC}/32", "via",
                        str(gateway)], check=True)  # fmt: skip

    def assert_all_alive(self) -> None:
        """Nothing lost, nothing broken, in any stream of any pair."""

        def many_sent(pair: Pair, version: int) -> bool:
            return len(self.probes.udp(pair, version).sent) > 200

        for pair in self.probes.pairs:
            for version in (4, 6):
                wait_for(partial(many_sent, pair, version), f"200 probes: {pair}", _PATIENCE_S)
        self.probes.stop()
        for pair in self.probes.pairs:
            for version in (4, 6):
                heard, tcp = self.probes.udp(pair, version), self.probes.tcp(pair, version)
                lost = [n for n in heard.sent if echo_ns(heard, n) is None]
                assert (pair, version, lost) == (pair, version, [])
                assert len(heard.sent) > 200
                assert (pair, version, len(tcp.opened), tcp.broken) == (pair, version, 1, [])
                assert tcp.echoes

    def close(self) -> None:
        self.probes.stop()
        self.one.close()
        self.two.close()


@pytest.fixture
def short() -> Iterator[str]:
    """A folder whose path leaves room for the sockets' names; it must be empty afterwards."""
    with tempfile.TemporaryDirectory(prefix="vml") as folder:
        yield folder
        assert list(Path(folder).iterdir()) == []


@pytest.fixture
def boxed(short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boxed]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", short)
    fabric = fabrics.load_fabric(fabrics.find("napt-two-dc"))
    lab = laboratory.build(fabric, "napt", True, lambda line: None)
    server = None
    made = None
    try:
        command = python("vmmobility.lab.light_guest", namespace=lab.spaces.name("outside"))
        server = subprocess.Popen(command, env=python_environment())
        made = Boxed(lab, tmp_path / "probes")
        made.one.apply(state(1, POOL, StaticMapping(PRIVATE1, PUBLIC)))
        made.two.apply(state(2, FAR_POOL))
        made.talk()
        yield made
    finally:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: lab.down())
            if server is not None:
                stack.callback(server.wait)
                stack.callback(server.kill)
            if made is not None:
                stack.callback(made.close)


def kept(boxed: Boxed) -> NaptState:
    """What box 2 holds for VMs whose mapping box 1 keeps."""
    return state(2, FAR_POOL, Detour(PRIVATE1, boxed.box1), Detour(PRIVATE2, boxed.box1))


@needs_frr
def test_a_kept_mapping_serves_a_vm_in_another_data_centre(boxed: Boxed) -> None:
    boxed.two.apply(kept(boxed))
    boxed.move("vm1", "nve-2a")
    boxed.move("vm2", "nve-2b")
    boxed.echoes_go_on()
    boxed.assert_all_alive()
    publics = {f.public[0] for p in (PRIVATE1, PRIVATE2)
               for f in boxed.one.wait(boxed.one.plane.export_flows(p))}  # fmt: skip
    assert publics == {PUBLIC, POOL}
    for private in (PRIVATE1, PRIVATE2):
        assert boxed.two.wait(boxed.two.plane.export_flows(private)) == ()
    for box in (boxed.one, boxed.two):
        used = box.wait(box.plane.usage())
        assert (used.untranslated, used.unknown, used.exhausted) == (0, 0, 0)


@needs_frr
def test_a_mapping_is_handed_to_the_box_of_the_new_data_centre(boxed: Boxed) -> None:
    """Kept while the VM moves, then handed over; the pool's flows of the other VM stay kept."""
    one, two = boxed.one, boxed.two
    two.apply(kept(boxed))
    boxed.move("vm1", "nve-2a")
    boxed.move("vm2", "nve-2b")
    boxed.echoes_go_on()
    flows = one.wait(one.plane.export_flows(PRIVATE1))
    assert two.wait(two.plane.import_flows(flows)) == []
    two.apply(state(2, FAR_POOL, StaticMapping(PRIVATE1, PUBLIC), Detour(PRIVATE2, boxed.box1)))
    boxed.lead_public("napt-2")
    boxed.echoes_go_on()
    one.apply(state(1, POOL))
    assert one.wait(one.plane.drop_flows(PRIVATE1)) >= len(flows)
    boxed.echoes_go_on()
    boxed.assert_all_alive()
    assert one.wait(one.plane.export_flows(PRIVATE1)) == ()
    there = two.wait(two.plane.export_flows(PRIVATE1))
    ends = {(f.protocol, f.private, f.public, f.remote) for f in there}
    tcp = {(f.protocol, f.private, f.public, f.remote) for f in flows if f.protocol == 6}
    assert tcp
    assert tcp <= ends
    assert one.wait(one.plane.export_flows(PRIVATE2)) != ()


@pytest.mark.parametrize("scenario", ["napt-inter-dc", "napt-hand-over", "napt-restart"])
def test_a_vm_moves_behind_live_boxes(lab: Lab, scenario: str) -> None:
    report = lab.run(scenario)
    assert report["ok"], report
    assert [move["ok"] for move in report["moves"]] == [True, True]


def test_two_sites_with_the_same_private_addresses_do_not_meet(lab: Lab) -> None:
    report = lab.run("napt-overlap")
    [move] = report["moves"]
    assert move["ok"] is False
    assert "napt-2: 10.1.0.5 of VM vm1 is VM vm2's" in move["reason"]
