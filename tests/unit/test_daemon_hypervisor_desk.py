"""The hypervisor desk: a VM's orders in turn, VMs side by side, failures as answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from tests.contract.waiting import until_true
from vmmobility.daemon.hypervisor_desk import HypervisorDesk
from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.fake import FakeHypervisor
from vmmobility.drivers.hypervisor.fake_external import FakeExternalHypervisor, FakeHands
from vmmobility.drivers.hypervisor.interface import GuestReport, Hypervisor, VmDefinition
from vmmobility.engine.dataplane import port_name
from vmmobility.engine.outputs import HypervisorOrder, Order
from vmmobility.errors import HypervisorError
from vmmobility.wire.values import Interface, VmKey

VM, OTHER = VmKey(0, "vm1"), VmKey(0, "vm2")
Answer = tuple[VmKey, Order, Mapping[str, Any], str]


def definition(vm: VmKey, kind: str = "qemu") -> VmDefinition:
    machine = {"qemu": {"kernel": "/boot/k"}, "external": {"qmp": "/run/q"}}.get(kind, {})
    interface = Interface(b"\x02\0\0\0\0\1", (ip_network("10.1.0.5/32"),))
    return VmDefinition(vm, kind, (interface,), machine=machine)


def start(vm: VmKey, of: VmKey | None = None, kind: str = "qemu") -> HypervisorOrder:
    data = definitions.encode(definition(of or vm, kind))
    return HypervisorOrder(Order.START, vm, {"definition": data})


class SlowHypervisor(FakeHypervisor):
    """Notes when orders begin and end; start() waits for `gate`, other methods do not."""

    def __init__(self) -> None:
        super().__init__(lambda report: None)
        self.gate = asyncio.Event()
        self.notes: list[str] = []
        self.ports: list[str] = []

    async def start(
        self, definition: VmDefinition, ports: Sequence[str], *, held: bool = False
    ) -> None:
        self.notes.append(f"begin start {definition.vm.vm_id}")
        self.ports = list(ports)
        await self.gate.wait()
        await super().start(definition, ports)
        self.notes.append(f"end start {definition.vm.vm_id}")

    async def pause(self, vm: VmKey) -> None:
        await super().pause(vm)
        self.notes.append(f"pause {vm.vm_id}")

    async def resume(self, vm: VmKey) -> None:
        raise OSError(28, "No space left on device")


class Rig:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.hypervisor = SlowHypervisor()
        self.answers: list[Answer] = []
        self.hands = FakeHands()
        self.reports: list[GuestReport] = []
        self.external = FakeExternalHypervisor(self.reports.append, self.hands)
        kinds: dict[str, Hypervisor] = {"qemu": self.hypervisor, "external": self.external}
        self.desk = HypervisorDesk(kinds, group, self._done, self._note)
        self.noted: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def _done(self, vm: VmKey, order: Order, result: Mapping[str, Any], error: str) -> None:
        self.answers.append((vm, order, result, error))
        self._changed.set()

    def _note(self, name: str, **detail: Any) -> None:
        self.noted.append({"event": name, **detail})

    async def ask(self, *orders: HypervisorOrder) -> list[Answer]:
        """The answers to these orders, in the order of their ends."""
        before = len(self.answers)
        for order in orders:
            self.desk.take(order)
        return (await self.answered(before + len(orders)))[before:]

    async def answered(self, count: int) -> list[Answer]:
        async with asyncio.timeout(5):
            while len(self.answers) < count:
                await self._changed.wait()
                self._changed.clear()
        return self.answers


def play(part: Callable[[Rig], Any]) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as group:
            await part(Rig(group))
        # The group has ended by itself: no worker outlives its orders.

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_a_vms_orders_are_carried_out_in_turn_vms_side_by_side():
    async def part(rig: Rig) -> None:
        for order in (start(VM), HypervisorOrder(Order.PAUSE, VM), start(OTHER)):
            rig.desk.take(order)
        await until_true(lambda: len(rig.hypervisor.notes) >= 2)
        assert rig.hypervisor.notes == ["begin start vm1", "begin start vm2"]
        rig.hypervisor.gate.set()
        await rig.answered(3)
        notes = rig.hypervisor.notes
        assert notes.index("end start vm1") < notes.index("pause vm1")
        assert {(vm, order, error) for vm, order, _, error in rig.answers} == {
            (VM, Order.START, ""),
            (VM, Order.PAUSE, ""),
            (OTHER, Order.START, ""),
        }
        assert rig.hypervisor.ports == [port_name(OTHER, 0)]

    play(part)


def test_an_incoming_guest_is_answered_with_its_place():
    async def part(rig: Rig) -> None:
        data = definitions.encode(definition(VM))
        arguments = {"definition": data, "address": "10.0.1.2"}
        rig.desk.take(HypervisorOrder(Order.PREPARE_INCOMING, VM, arguments))
        [(_, _, result, error)] = await rig.answered(1)
        assert error == ""
        assert result == {"address": "10.0.1.2", "port": 49152}

    play(part)


def test_every_failure_is_the_orders_answer_and_the_next_is_carried_out():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        rig.hypervisor.fail_next["start"] = "no room"
        orders = [
            start(VM),
            start(VM),
            HypervisorOrder(Order.RESUME, VM),
            HypervisorOrder(Order.PROCEED, VM),
            HypervisorOrder(Order.START, VM, {"definition": b"{"}),
            start(VM, of=OTHER),
            HypervisorOrder(Order.STOP, VM),
        ]
        for order in orders:
            rig.desk.take(order)
        errors = [error for _, _, _, error in await rig.answered(len(orders))]
        assert "no room" in errors[0]
        assert errors[1] == ""
        assert "No space left" in errors[2]
        assert "not about to stop" in errors[3]
        assert "not JSON" in errors[4]
        assert "its definition is of VM" in errors[5]
        assert errors[6] == ""

    play(part)


def test_what_may_not_be_brought_up_is_not():
    async def part(rig: Rig) -> None:
        def refuse(wanted: VmDefinition, place: str | None) -> None:
            if wanted.vm == VM and place is None:
                raise HypervisorError("vm1: disk a.img is VM vm2's")

        rig.desk._refuse = refuse
        rig.hypervisor.gate.set()
        data = {"definition": definitions.encode(definition(VM)), "address": "10.0.1.2"}
        errors = [error for *_, error in await rig.ask(
            start(VM), HypervisorOrder(Order.PREPARE_INCOMING, VM, data), start(OTHER),
            HypervisorOrder(Order.RECEIVE, VM, data), HypervisorOrder(Order.ACTIVATE, VM, data),
        )]  # fmt: skip
        assert sorted(errors) == ["", *["vm1: disk a.img is VM vm2's"] * 4]
        assert rig.hypervisor.notes == ["begin start vm2", "end start vm2"]

    play(part)


def test_what_nobody_has_foreseen_is_the_orders_answer_too_and_stands_in_the_log():
    async def part(rig: Rig) -> None:
        def breaks(*args: Any, **more: Any) -> None:
            raise ValueError("half a pair: \ud800")

        rig.hypervisor.gate.set()
        await rig.ask(start(VM))
        for method in ("announce", "arm", "query", "adopt"):
            setattr(rig.hypervisor, method, breaks)
        arm = HypervisorOrder(Order.ARM, VM, {"until": 1.0})
        await rig.ask(HypervisorOrder(Order.ANNOUNCE, VM), arm, query(VM))
        answers = {order: (result, error) for _, order, result, error in rig.answers}
        for order in (Order.ANNOUNCE, Order.ARM):
            assert answers[order][1].startswith("a defect of this daemon, see its log: ValueError")
            answers[order][1].encode()
        assert answers[Order.QUERY][0]["life"] == "held"
        assert await rig.desk.adopt({VM: definitions.encode(definition(VM))}) == {VM: False}
        shown = [note for note in rig.noted if note["event"] == "order.defect"]
        assert [note.get("order") for note in shown] == ["arm", "announce", None, None]
        assert all("in breaks" in note["traceback"] for note in shown)
        # The worker lives on.
        del rig.hypervisor.announce
        assert (await rig.ask(HypervisorOrder(Order.ANNOUNCE, VM)))[-1][3] == ""

    play(part)


@pytest.mark.parametrize("order", [Order.STOP, Order.CANCEL])
def test_ending_what_was_never_here_is_no_failure(order: Order):
    async def part(rig: Rig) -> None:
        rig.desk.take(HypervisorOrder(order, VM))
        assert await rig.answered(1) == [(VM, order, {}, "")]

    play(part)


def test_an_order_of_a_kind_that_is_not_here():
    async def part(rig: Rig) -> None:
        rig.desk.take(start(VM, kind="netns"))
        rig.desk.take(HypervisorOrder(Order.ANNOUNCE, OTHER))
        errors = [error for _, _, _, error in await rig.answered(2)]
        assert "no hypervisor for kind 'netns' here (have: qemu, external; a lab" in errors[0]
        assert "no hypervisor for kind ''" in errors[1]

    play(part)


def test_guests_are_found_again():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        rig.desk.take(start(VM))
        await rig.answered(1)
        known = {
            VM: definitions.encode(definition(VM)),
            OTHER: definitions.encode(definition(OTHER)),
            VmKey(0, "redirected"): b"",
        }
        assert await rig.desk.adopt(known) == {VM: True}
        assert rig.noted == []

    play(part)


def test_a_guest_that_cannot_be_asked_is_held_and_keeps_no_other_from_being_found():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        rig.desk.take(start(OTHER))
        await rig.answered(1)
        hung, broken, strange = VM, VmKey(7, "broken"), VmKey(0, "strange")
        rig.hypervisor.fail_next["adopt"] = "QEMU hangs"  # for the first of them
        known = {
            hung: definitions.encode(definition(hung)),
            broken: b"{",
            strange: definitions.encode(definition(strange, "netns")),
            OTHER: definitions.encode(definition(OTHER)),
        }
        held = {hung: False, broken: False, strange: False}
        assert await rig.desk.adopt(known) == {**held, OTHER: True}
        told = {note["vm"]: (note["event"], note["reason"]) for note in rig.noted}
        assert told == {
            "vm1": ("guest.unclear", "all: QEMU hangs"),
            "broken": ("guest.unclear", told["broken"][1]),
            "strange": ("guest.unclear", "strange: no hypervisor for kind 'netns' here"),
        }
        assert "not JSON" in told["broken"][1]
        assert all(note["remedy"] for note in rig.noted)
        # Nothing is claimed to have ended unless it has; an operator can still end it.
        rig.desk.take(HypervisorOrder(Order.CANCEL, broken))
        rig.desk.take(HypervisorOrder(Order.STOP, broken))
        errors = [error for _, _, _, error in (await rig.answered(3))[1:]]
        assert "no hypervisor" in errors[0]
        assert errors[1] == ""

    play(part)


# -- questions, watched guests, orphans --------------------------------------------------------


def query(vm: VmKey) -> HypervisorOrder:
    return HypervisorOrder(Order.QUERY, vm)


def watch(vm: VmKey, of: VmKey | None = None, kind: str = "external") -> HypervisorOrder:
    data = definitions.encode(definition(of or vm, kind))
    return HypervisorOrder(Order.WATCH, vm, {"definition": data})


def test_a_question_is_answered_with_the_guests_life():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        orders = [query(VM), start(VM), query(VM), HypervisorOrder(Order.PAUSE, VM), query(VM)]
        answers = await rig.ask(*orders, HypervisorOrder(Order.STOP, VM), query(VM))
        lives = [(result, error) for _, order, result, error in answers if order is Order.QUERY]
        assert lives == [({"life": life}, "") for life in ("none", "running", "held", "none")]
        assert rig.noted == []

    play(part)


def test_a_guest_that_cannot_be_asked_is_held_to_be_here():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        await rig.ask(start(VM))
        rig.hypervisor.fail_next["query"] = "QEMU hangs"
        await rig.desk.adopt({OTHER: b"{"})
        rig.noted.clear()
        answers = {
            vm: (result, error) for vm, _, result, error in await rig.ask(query(VM), query(OTHER))
        }
        assert answers[VM] == ({"life": "held", "note": "vm1: QEMU hangs"}, "")
        assert answers[OTHER][0]["life"] == "held"
        assert "no hypervisor for kind ''" in answers[OTHER][0]["note"]
        assert {(note["event"], note["vm"]) for note in rig.noted} == {
            ("guest.unclear", "vm1"),
            ("guest.unclear", "vm2"),
        }
        assert (await rig.ask(query(VM)))[0][2] == {"life": "running"}

    play(part)


def test_a_watched_guest_is_told_of_until_it_is_watched_no_more():
    async def part(rig: Rig) -> None:
        assert await rig.ask(watch(VM)) == [(VM, Order.WATCH, {"ports": [port_name(VM, 0)]}, "")]
        rig.hands.boot(VM)
        assert (await rig.ask(query(VM)))[0][2] == {"life": "running"}
        assert [report.event.value for report in rig.reports] == ["arrived"]
        pause, resume = HypervisorOrder(Order.PAUSE, VM), HypervisorOrder(Order.RESUME, VM)
        lives = [answer[2] for answer in await rig.ask(pause, query(VM), resume, query(VM))]
        assert lives == [{}, {"life": "held"}, {}, {"life": "running"}]
        unwatch = HypervisorOrder(Order.UNWATCH, VM)
        answers = await rig.ask(unwatch, unwatch, query(VM))
        assert [answer[2:] for answer in answers] == [({}, ""), ({}, ""), ({"life": "none"}, "")]
        rig.hands.kill(VM)
        await rig.ask(query(VM))  # whatever was on its way before is here by then
        assert len(rig.reports) == 1

    play(part)


def test_orders_that_do_not_suit_the_guests_kind():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        orders = [
            HypervisorOrder(Order.UNWATCH, VM),  # never watched: nothing to do
            watch(VM, kind="qemu"),
            watch(VM, of=OTHER),
            HypervisorOrder(Order.WATCH, VM, {"definition": b"{"}),
            start(VM, kind="external"),
            start(VM),
            watch(VM),
            HypervisorOrder(Order.UNWATCH, VM),
            HypervisorOrder(Order.STOP, VM),
            watch(VM),
        ]
        errors = [error for _, _, _, error in await rig.ask(*orders)]
        assert errors[0] == ""
        assert "start it with `vmmob nve start`" in errors[1]
        assert "its definition is of VM" in errors[2]
        assert "not JSON" in errors[3]
        assert "run by others" in errors[4]
        assert errors[5] == ""
        assert "it lives here already, of kind 'qemu'" in errors[6], "it would be lost from sight"
        assert "start it with" in errors[7]
        assert errors[8:] == ["", ""]

    play(part)


def test_watched_guests_are_found_again():
    async def part(rig: Rig) -> None:
        rig.hands.boot(VM)
        known = {vm: definitions.encode(definition(vm, "external")) for vm in (VM, OTHER)}
        assert await rig.desk.adopt(known) == {VM: True}
        await until_true(lambda: rig.reports)
        assert [report.event.value for report in rig.reports] == ["arrived"]
        assert (await rig.ask(query(OTHER)))[0][2] == {"life": "none"}

    play(part)


@pytest.mark.parametrize("spare", [False, True])
def test_orphans_are_ended_unless_the_records_may_lack_them(spare: bool):
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        rig.hands.boot(VmKey(0, "others"))
        for vm in (VM, OTHER):
            await rig.hypervisor.start(definition(vm), ["tap"])
        known = {VM: definitions.encode(definition(VM))}
        assert await rig.desk.adopt(known) == {VM: True}
        await rig.desk.sweep(known, spare=spare)
        assert rig.noted == [
            {"event": "guest.orphan", "vni": 0, "vm": "vm2", "kind": "qemu", "ended": not spare}
        ]
        assert await rig.hypervisor.orphans(()) == ([VM, OTHER] if spare else [VM])
        assert (await rig.ask(query(OTHER)))[0][2] == {"life": "running" if spare else "none"}
        assert rig.hands.guests, "those of others are no prey"

    play(part)


def test_an_orphan_that_cannot_be_ended_keeps_no_other_from_it():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        for vm in (VM, OTHER):
            await rig.hypervisor.start(definition(vm), ["tap"])
        rig.hypervisor.fail_next["stop"] = "it hangs"
        await rig.desk.sweep((), spare=False)
        assert [note["event"] for note in rig.noted] == ["guest.unclear", "guest.orphan"]
        assert await rig.hypervisor.orphans(()) == [VM]

    play(part)


class Stubborn(SlowHypervisor):
    """Its guests do not listen to the power button."""

    async def shut_down(self, vm: VmKey) -> None:
        self.notes.append(f"button {vm.vm_id}")

    async def stop(self, vm: VmKey) -> None:
        await super().stop(vm)
        self.notes.append(f"stop {vm.vm_id}")


def shut_down(grace_s: float) -> HypervisorOrder:
    return HypervisorOrder(Order.STOP, VM, {"grace_s": grace_s})


def test_a_guest_that_shuts_itself_down_is_not_waited_for_longer():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        await rig.ask(start(VM))
        [(_, order, _, error)] = await rig.ask(shut_down(3600))
        assert (order, error) == (Order.STOP, "")

    play(part)


def test_a_guest_that_does_not_is_ended_and_whoever_is_in_a_hurry_need_not_wait():
    async def part(rig: Rig) -> None:
        rig.hypervisor = Stubborn()
        rig.desk._hypervisors = {"qemu": rig.hypervisor}
        rig.hypervisor.gate.set()
        await rig.ask(start(VM))
        await rig.ask(shut_down(0.01))
        assert rig.hypervisor.notes[-2:] == ["button vm1", "stop vm1"]
        await rig.ask(start(VM))
        rig.desk.take(shut_down(3600))
        await until_true(lambda: rig.hypervisor.notes[-1] == "button vm1")
        rig.desk.take(HypervisorOrder(Order.STOP, VM))
        await rig.answered(5)
        assert rig.hypervisor.notes[-2:] == ["stop vm1", "stop vm1"]

    play(part)


def test_a_guest_that_cannot_be_asked_to_is_ended():
    async def part(rig: Rig) -> None:
        rig.hypervisor.gate.set()
        await rig.ask(start(VM))
        rig.hypervisor.fail_next["shut_down"] = "no such button"
        [(_, _, _, error)] = await rig.ask(shut_down(3600))
        assert error == ""
        assert rig.noted[-1]["event"] == "guest.no-shutdown"

    play(part)
