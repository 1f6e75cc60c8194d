"""The data plane worker: newest state wins, batches, failures item by item, counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from vmmobility.daemon import data_plane_worker as module
from vmmobility.daemon.data_plane_worker import DataPlaneWorker
from vmmobility.drivers.dataplane import Drift, Failure, Traffic
from vmmobility.drivers.fake_dataplane import FakeDataPlane
from vmmobility.engine.dataplane import Forwarding, VmDataPlane
from vmmobility.engine.outputs import Audit, CountTraffic, SetDataPlane
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import Interface, VmKey

VM, OTHER = VmKey(0, "vm1"), VmKey(0, "vm2")


def state(vm: VmKey, tag: int, plugged: bool = True) -> SetDataPlane:
    host = 5 if vm is VM else 6
    interface = Interface(bytes([2, 0, 0, 0, 0, host]), (ip_network(f"10.1.0.{host}/32"),))
    forwarding = Forwarding.LOCAL if plugged else Forwarding.NONE
    return SetDataPlane(VmDataPlane(vm, (interface,), plugged, forwarding), tag)


class GatedDataPlane(FakeDataPlane):
    """apply() waits for `gate`; `broken` makes calls fail as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.batches: list[list[VmKey]] = []
        self.broken: Exception | None = None
        self.drifts: list[Drift] = []
        self.audited: list[list[VmKey] | None] = []
        self.looking = asyncio.Event()
        self.look_gate = asyncio.Event()
        self.look_gate.set()

    async def audit(self, vms: Collection[VmKey] | None = None) -> Sequence[Drift]:
        self.audited.append(None if vms is None else list(vms))
        self.looking.set()
        await self.look_gate.wait()
        if self.broken:
            raise self.broken
        return self.drifts

    async def apply(self, desired: Sequence[VmDataPlane]) -> Sequence[Failure]:
        self.batches.append([one.vm for one in desired])
        self.begun.set()
        await self.gate.wait()
        if self.broken:
            raise self.broken
        return await super().apply(desired)

    async def traffic(self) -> Mapping[VmKey, Traffic]:
        if self.broken:
            raise self.broken
        return await super().traffic()


class Rig:
    """A worker, and every answer of it as (name, …)."""

    def __init__(self, check_s: float = 60.0) -> None:
        self.plane = GatedDataPlane()
        self.answers: list[tuple[Any, ...]] = []
        self.wants = False
        self._changed = asyncio.Event()
        self.worker = DataPlaneWorker(
            self.plane,
            lambda *a: self._note("applied", *a),
            lambda *a: self._note("counted", *a),
            lambda *a: self._note("polled", *a),
            lambda *a: self._note("audited", *a),
            lambda *a: self._note("drifted", *a),
            lambda: self.wants,
            lambda *a: self._note("trouble", *a),
            check_s,
        )

    def _note(self, *what: Any) -> None:
        self.answers.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)


def play(part: Callable[[Rig], Any], check_s: float = 60.0) -> None:
    async def whole() -> None:
        rig = Rig(check_s)
        await rig.plane.start()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(rig.worker.run())
            await part(rig)
            assert not task.done()
            task.cancel()

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_states_are_applied_in_one_batch_and_answered_each():
    async def part(rig: Rig) -> None:
        rig.worker.set(state(VM, 1))
        rig.worker.set(state(OTHER, 2))
        await rig.until(lambda: len(rig.answers) == 2)
        assert rig.plane.batches == [[VM, OTHER]]
        assert rig.answers == [("applied", VM, 1, []), ("applied", OTHER, 2, [])]

    play(part)


def test_a_newer_state_takes_the_place_of_one_that_has_not_begun():
    async def part(rig: Rig) -> None:
        rig.plane.gate.clear()
        rig.worker.set(state(VM, 1))
        await asyncio.wait_for(rig.plane.begun.wait(), 5)
        rig.worker.set(state(VM, 2))
        rig.worker.set(state(VM, 3, plugged=False))
        rig.plane.gate.set()
        await rig.until(lambda: len(rig.answers) == 2)
        assert rig.answers == [("applied", VM, 1, []), ("applied", VM, 3, [])]
        assert VM not in rig.plane.held

    play(part)


def test_a_failure_is_its_own_vms():
    async def part(rig: Rig) -> None:
        rig.plane.fail_next(vm=VM, item="route", reason="no buffer space")
        rig.worker.set(state(VM, 1))
        rig.worker.set(state(OTHER, 2))
        await rig.until(lambda: len(rig.answers) == 2)
        (_, vm, _, failures), other = rig.answers
        assert (vm, other) == (VM, ("applied", OTHER, 2, []))
        assert failures == ["route 10.1.0.5/32: no buffer space"]

    play(part)


@pytest.mark.parametrize("error", [DataPlaneError("nft: refused"), OSError(24, "too many files")])
def test_a_driver_that_fails_as_a_whole_is_an_answer_and_not_the_end(error: Exception):
    async def part(rig: Rig) -> None:
        rig.plane.broken = error
        rig.worker.set(state(VM, 1))
        await rig.until(lambda: len(rig.answers) == 1)
        assert rig.answers == [("applied", VM, 1, [str(error)])]
        rig.worker.count(CountTraffic(VM, "delivering"))
        await rig.until(lambda: len(rig.answers) == 2)
        assert rig.answers[1] == ("trouble", f"traffic cannot be counted: {error}")
        rig.wants = True
        await rig.until(lambda: len(rig.answers) == 3)
        assert rig.answers[2][0] == "trouble"
        rig.plane.broken = None
        await rig.until(lambda: rig.answers[-1][0] == "polled")

    play(part)


def test_counts_come_after_the_states_before_them():
    async def part(rig: Rig) -> None:
        rig.worker.set(state(VM, 1))
        rig.worker.count(CountTraffic(VM, "resumed"))
        rig.worker.count(CountTraffic(OTHER, "resumed"))
        await rig.until(lambda: len(rig.answers) == 3)
        assert [answer[0] for answer in rig.answers] == ["applied", "counted", "counted"]
        assert rig.answers[1:] == [
            ("counted", VM, "resumed", Traffic()),
            ("counted", OTHER, "resumed", Traffic()),
        ]

    play(part)


def test_redirected_traffic_is_polled_only_while_wanted():
    async def part(rig: Rig) -> None:
        rig.worker.set(state(VM, 1))
        await rig.until(lambda: len(rig.answers) == 1)
        rig.wants = True
        await rig.until(lambda: len(rig.answers) == 3)
        assert rig.answers[1:] == [("polled", {VM: Traffic()})] * 2

    play(part)


def test_an_audit_follows_the_states_given_before_it_and_is_answered_in_words():
    async def part(rig: Rig) -> None:
        stray = Drift(None, "route 10.1.0.9/32", "stands, and nobody asked for it")
        rig.plane.drifts = [
            Drift(VM, "tap vmt0.0", "is missing"),
            stray,
            Drift(VM, "route 10.1.0.5/32", "is missing", repaired=False),
        ]
        rig.worker.audit(Audit(VM))
        rig.worker.audit(Audit(OTHER))
        rig.worker.audit(Audit(VM))
        rig.worker.set(state(VM, 1))
        await rig.until(lambda: len(rig.answers) == 4)
        assert rig.plane.audited == [[VM, OTHER]]
        words = ["tap vmt0.0: is missing", "route 10.1.0.5/32: is missing (still so)"]
        assert rig.answers == [
            ("applied", VM, 1, []),
            ("drifted", stray),
            ("audited", VM, words),
            ("audited", OTHER, []),
        ]

    play(part)


def test_a_change_beneath_the_routes_has_everything_compared_at_once():
    async def part(rig: Rig) -> None:
        rig.plane.drifts = [Drift(None, "route 10.1.0.9/32", "is gone")]
        rig.worker.look()
        rig.worker.look()
        await rig.until(lambda: len(rig.answers) == 1)
        rig.worker.audit(Audit(VM))
        await rig.until(lambda: len(rig.answers) == 3)
        assert rig.plane.audited == [None, [VM]]

    play(part)


def test_an_audit_that_cannot_be_made_is_answered_and_told():
    async def part(rig: Rig) -> None:
        rig.plane.broken = DataPlaneError("netlink is away")
        rig.worker.audit(Audit(VM))
        await rig.until(lambda: len(rig.answers) == 2)
        assert rig.answers == [
            ("trouble", "the kernel cannot be compared: netlink is away"),
            ("audited", VM, ["cannot be read: netlink is away"]),
        ]

    play(part)


def test_no_state_waits_for_an_audit_and_requests_gather_meanwhile():
    async def part(rig: Rig) -> None:
        rig.plane.look_gate.clear()
        rig.worker.audit(Audit(VM))
        await asyncio.wait_for(rig.plane.looking.wait(), 5)
        rig.worker.set(state(VM, 1))
        await rig.until(lambda: rig.answers == [("applied", VM, 1, [])])
        for vm in (OTHER, VM, OTHER):
            rig.worker.audit(Audit(vm))
        rig.plane.look_gate.set()
        await rig.until(lambda: len(rig.answers) == 4)
        assert rig.plane.audited == [[VM], [OTHER, VM]]
        assert [answer[:2] for answer in rig.answers[1:]] == [
            ("audited", VM),
            ("audited", OTHER),
            ("audited", VM),
        ]

    play(part)


def test_everything_is_compared_at_intervals():
    async def part(rig: Rig) -> None:
        mine, stray = Drift(VM, "tap vmt0.0", "is down"), Drift(None, "rule IPv4", "is gone")
        rig.plane.drifts = [mine, stray]
        await rig.until(lambda: len(rig.answers) >= 4)
        assert rig.answers[:4] == [("drifted", mine), ("drifted", stray)] * 2
        assert set(rig.plane.audited) == {None}
        rig.plane.broken = DataPlaneError("netlink is away")
        await rig.until(lambda: rig.answers[-1][0] == "trouble")
        rig.plane.broken = None
        await rig.until(lambda: rig.answers[-1][0] == "drifted")

    play(part, check_s=0.02)
