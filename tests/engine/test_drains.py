"""Drains: an NVE is emptied, so many VMs at once; what cannot go is named; a restart goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, Node, World
from tests.engine.test_restarts import crash_at, settle
from vmmobility.engine.manager_drain import (
    ENDED,
    STAGES,
    Drain,
    DrainRefused,
    DrainState,
    Stage,
    Turn,
    drain_to_json,
    drained_to_json,
    drains_from,
)
from vmmobility.engine.manager_drain import (
    vm_key as record_key,
)
from vmmobility.engine.manager_drains import KEPT_DRAINS, MOST_ATTEMPTS
from vmmobility.engine.manager_move import MoveRefused
from vmmobility.engine.outputs import Event, Order
from vmmobility.wire.values import VmKey

NAMES = [f"vm{number}" for number in range(1, 7)]
VMS = [vm_key(name) for name in NAMES]


class Hall:
    """A world with six VMs at a, and what was told of drains and moves."""

    def __init__(self, count: int = 6, **options: Any) -> None:
        self.world = World(**options)
        self.told: list[Event] = []
        self.most_at_once = 0
        self.world.observe = self._observe
        for vm in VMS[:count]:
            self.world.start_vm(vm, "a", interfaces_of(vm.vm_id, 1, 1))
        self.world.run(5)

    def _observe(self, node: Node, what: str, value: object) -> None:
        if isinstance(value, Event) and value.name.startswith(("drain.", "nve.")):
            self.told.append(value)
        if node.node_id == MANAGER and node.manager is not None:
            self.most_at_once = max(self.most_at_once, len(node.manager._current))

    def drain(
        self, nve: str = "a", to: tuple[str, ...] = (), parallel: int = 4, uncordon: bool = False
    ) -> Drain:
        made = self._command(lambda m: m.drain(nve, to, parallel, uncordon, self.world.now))
        assert isinstance(made, Drain)
        return made

    def command(self, name: str, *values: Any) -> Any:
        return self._command(lambda m: getattr(m, name)(*values, self.world.now))

    def _command(self, feed: Any) -> Any:
        try:
            return feed(self.world.manager)
        finally:
            self.world._pump(self.world.nodes[MANAGER])

    def ended(self, drain_id: str, limit_s: float = 300.0) -> Drain:
        """Once it has, whatever manager it has then."""
        end = self.world.now + limit_s
        while self.now(drain_id).state not in ENDED:
            assert self.world.now < end, self.now(drain_id)
            self.world.run(0.2)
        settle(self.world)
        safety.check_settled(self.world)
        return self.now(drain_id)

    def now(self, drain_id: str) -> Drain:
        return self.world.manager.drains[drain_id]

    def places(self) -> list[str]:
        return self.places_of(VMS)

    def places_of(self, vms: list[VmKey]) -> list[str]:
        return [self.world.manager.cache.bindings[vm].nve.nve_id for vm in vms]

    def names(self) -> list[str]:
        return [event.name for event in self.told]


def fails(hall: Hall, name: str) -> None:
    """Every move to that NVE."""
    hypervisor = hall.world.nodes[name].hypervisor
    assert hypervisor is not None
    hypervisor.fail_next[Order.PREPARE_INCOMING] = ["no memory"] * 99


def moves_begun(hall: Hall) -> int:
    return len(hall.world.manager.moves)


def test_an_nve_is_emptied_evenly_and_no_faster_than_asked():
    hall = Hall()
    drain = hall.ended(hall.drain(parallel=2).drain_id)
    assert drain.state is DrainState.DONE
    assert drain.ok is True
    assert sorted(hall.places()) == ["b"] * 3 + ["c"] * 3
    assert hall.most_at_once == 2
    assert {each.stage for each in drain.vms.values()} == {Stage.MOVED}
    assert hall.names()[:2] == ["nve.cordoned", "drain.started"]
    assert hall.names()[-1] == "drain.done"
    assert hall.told[-1].detail["moved"] == 6


def test_it_stays_cordoned_until_that_is_lifted():
    hall = Hall(1)
    hall.ended(hall.drain(to=("b",)).drain_id)
    with pytest.raises(MoveRefused, match="a is cordoned"):
        hall.world.move(VMS[0], "a")
    number = hall.world.start_vm(VMS[5], "a", interfaces_of("vm6", 1, 1))
    settle(hall.world)
    assert "cordoned" in hall.world.results[number].error
    hall.command("uncordon", "a")
    hall.world.move(VMS[0], "a")
    settle(hall.world)
    assert safety.running(hall.world, VMS[0]) == ["a"]


def test_it_takes_vms_again_where_that_was_asked():
    hall = Hall(1)
    hall.ended(hall.drain(uncordon=True).drain_id)
    assert hall.world.manager.cordons == {}


@pytest.mark.parametrize("after_s", [0.002, 0.01, 0.2, 0.6, 1.5])
def test_a_restarted_manager_goes_on(after_s: float):
    hall = Hall()
    drain_id = hall.drain(parallel=2).drain_id
    hall.world.run(after_s)
    hall.world.crash(MANAGER)
    hall.world.run(3)
    hall.world.restart(MANAGER)
    drain = hall.ended(drain_id)
    assert drain.state is DrainState.DONE
    assert "a" not in hall.places()
    assert "a" in hall.world.manager.cordons
    assert all(len(safety.running(hall.world, vm)) == 1 for vm in VMS)


def test_a_manager_may_crash_before_any_output_of_a_drain():
    count, more = 0, True
    while more:
        hall = Hall(2)
        drain_id = hall.drain(parallel=1).drain_id
        hall.world.run(0.002)  # it is durable
        crash_at(hall.world, MANAGER, count, 1.0)
        hall.world.run(20)
        drain = hall.ended(drain_id)
        more = hall.world.nodes[MANAGER].life > 0
        assert drain.state is DrainState.DONE, (count, drain)
        assert [len(safety.running(hall.world, vm)) for vm in VMS[:2]] == [1, 1], count
        assert "a" not in hall.places_of(VMS[:2]), count
        count += 5


def test_a_drain_that_is_asked_for_again_is_the_same():
    hall = Hall()
    first = hall.drain(parallel=1).drain_id
    hall.world.run(0.5)
    again = hall.drain(to=("b",), parallel=6)
    assert again.drain_id == first
    assert (again.parallel, again.to) == (6, ("b",))
    hall.ended(first)
    assert moves_begun(hall) == 6
    empty = hall.ended(hall.drain().drain_id)
    assert (empty.state, len(empty.vms), empty.drain_id == first) == (DrainState.DONE, 0, False)


def test_only_where_it_may_go():
    hall = Hall(2)
    for vm, nves in ((VMS[0], ["a", "c"]), (VMS[1], ["a"])):
        hall.command("onboard", vm, interfaces_of(vm.vm_id, 1, 1), nves)
    drain = hall.ended(hall.drain().drain_id)
    assert drain.state is DrainState.INCOMPLETE
    assert (drain.vms[VMS[0]].stage, drain.vms[VMS[0]].to) == (Stage.MOVED, "c")
    left = drain.vms[VMS[1]]
    assert (left.stage, left.attempts) == (Stage.FAILED, 0)
    assert "b is not on its record; c is not on its record" in left.reason
    assert safety.running(hall.world, VMS[1]) == ["a"]


def test_a_cordoned_nve_takes_none():
    hall = Hall()
    hall.command("cordon", "b")
    assert hall.command("cordon", "b").nve_id == "b"
    hall.ended(hall.drain().drain_id)
    assert set(hall.places()) == {"c"}
    with pytest.raises(DrainRefused, match="b is cordoned"):
        hall.drain("c", to=("b",))


def test_what_fails_is_tried_elsewhere():
    hall = Hall(2)
    fails(hall, "b")
    drain = hall.ended(hall.drain().drain_id)
    assert drain.state is DrainState.DONE, drain
    assert {each.to for each in drain.vms.values()} == {"c"}


def test_what_fails_everywhere_is_named():
    hall = Hall(1)
    for name in "bc":
        fails(hall, name)
    drain = hall.ended(hall.drain().drain_id)
    [left] = drain.vms.values()
    assert drain.state is DrainState.INCOMPLETE
    assert drain.ok is False
    assert (left.stage, left.attempts) == (Stage.FAILED, MOST_ATTEMPTS)
    assert left.reason.startswith("move ")
    assert set(left.tried) == {"b", "c"}
    assert safety.running(hall.world, VMS[0]) == ["a"]
    assert "a" in hall.world.manager.cordons  # people look at it before it takes others


def test_a_move_of_an_operator_is_waited_for():
    hall = Hall(2)
    move_id = hall.world.move(VMS[0], "b")
    drain = hall.ended(hall.drain(to=("c",)).drain_id)
    assert drain.vms[VMS[0]].move_id == move_id
    assert drain.vms[VMS[0]].attempts == 0
    assert (drain.vms[VMS[0]].to, drain.vms[VMS[1]].to) == ("b", "c")


def test_a_move_that_had_begun_to_it_is_followed():
    hall = Hall(1)
    hall.ended(hall.drain().drain_id)
    hall.command("uncordon", "a")
    at = safety.running(hall.world, VMS[0])
    hall.world.move(VMS[0], "a")
    drain = hall.ended(hall.drain().drain_id)
    assert at != ["a"]
    assert safety.running(hall.world, VMS[0]) != ["a"]
    assert drain.state is DrainState.DONE


def test_a_vm_that_leaves_meanwhile():
    hall = Hall(2)
    drain_id = hall.drain(parallel=1).drain_id
    hall.world.run(0.1)
    waiting = next(v for v, e in hall.now(drain_id).vms.items() if e.stage is Stage.WAITING)
    hall.world.stop_vm(waiting, "a")
    drain = hall.ended(drain_id)
    assert drain.vms[waiting].stage in (Stage.LEFT, Stage.MOVED)
    assert drain.state is DrainState.DONE


def test_a_drain_is_given_up():
    hall = Hall()
    drain_id = hall.drain(parallel=1).drain_id
    hall.world.run(0.3)
    hall.command("abort_drain", drain_id)
    drain = hall.ended(drain_id)
    assert drain.state is DrainState.ABORTED
    assert 1 <= moves_begun(hall) < 6
    assert hall.world.manager.cordons == {}  # it was this drain's
    with pytest.raises(DrainRefused, match="is aborted"):
        hall.command("abort_drain", drain_id)


def test_one_that_begins_while_another_ends_keeps_the_cordon():
    """Given up and asked for again: nobody comes between, and the second's end is the cordon's."""
    hall = Hall()
    first = hall.drain(parallel=2, uncordon=True).drain_id
    hall.world.run(0.2)
    hall.command("abort_drain", first)
    second = hall.drain(parallel=1).drain_id
    assert second != first
    assert hall.drain(parallel=1).drain_id == second
    while hall.now(first).state not in ENDED:
        hall.world.run(0.05)
    assert hall.now(second).state is DrainState.RUNNING
    assert list(hall.world.manager.cordons) == ["a"]
    hall.world.restart(MANAGER)
    assert hall.world.manager.cordons["a"].drain == second
    hall.command("abort_drain", second)
    assert hall.ended(second).state is DrainState.ABORTED
    assert hall.world.manager.cordons == {}


def slow(hall: Hall, what: Order, vm: VmKey, after_s: float) -> None:
    """a's hypervisor takes so long for that."""
    hypervisor = hall.world.nodes["a"].hypervisor
    assert hypervisor is not None
    at_once = hypervisor.order

    def order(asked: Any) -> None:
        if (asked.order, asked.vm) == (what, vm):
            hall.world.later(after_s, lambda: at_once(asked))
        else:
            at_once(asked)

    hypervisor.order = order  # type: ignore[assignment, method-assign]


def test_a_vm_that_shuts_down_is_waited_for():
    hall = Hall(2)
    slow(hall, Order.STOP, VMS[0], 40.0)
    hall.world.order_guest(VMS[0], "stop")
    hall.world.run(0.5)
    drain_id = hall.drain().drain_id
    hall.world.run(30.0)
    each = hall.now(drain_id).vms[VMS[0]]
    assert (each.stage, each.refused) == (Stage.WAITING, 0)
    assert each.reason == "VM vm1 is to be stopped, which is not done yet"
    assert hall.ended(drain_id).state is DrainState.DONE
    assert "a" not in hall.places_of(VMS[:2])


def test_a_vm_whose_nve_is_silent_is_not_waited_for():
    hall = Hall(1, nve_settings={"heartbeat_s": 1.0})
    slow(hall, Order.STOP, VMS[0], 600.0)
    hall.world.order_guest(VMS[0], "stop")
    hall.world.power_cut("a")
    hall.world.run(10.0)
    drain_id = hall.drain().drain_id
    hall.world.run(60.0)
    assert hall.now(drain_id).state is DrainState.INCOMPLETE


def test_a_cordon_of_its_own_outlives_a_drain_that_is_given_up():
    hall = Hall()
    hall.command("cordon", "a")
    drain_id = hall.drain().drain_id
    with pytest.raises(DrainRefused, match="being drained"):
        hall.command("uncordon", "a")
    hall.command("abort_drain", drain_id)
    hall.ended(drain_id)
    assert list(hall.world.manager.cordons) == ["a"]


@pytest.mark.parametrize(
    ("nve", "to", "what"),
    [
        ("nowhere", (), "no NVE nowhere"),
        ("a", ("nowhere",), "no NVE nowhere"),
        ("a", ("b", "a"), "a is to be emptied"),
    ],
)
def test_what_cannot_be_drained(nve: str, to: tuple[str, ...], what: str):
    hall = Hall(1)
    with pytest.raises(DrainRefused, match=what):
        hall.drain(nve, to)
    assert hall.world.manager.drains == {}
    assert hall.world.manager.cordons == {}
    with pytest.raises(DrainRefused):
        hall.command("abort_drain", "none")


def test_two_nves_are_emptied_at_once():
    hall = Hall(2, nves=("a", "b", "c", "d"))
    hall.world.move(VMS[1], "b")
    settle(hall.world)
    ids = [hall.drain(name).drain_id for name in "ab"]
    assert [hall.ended(each).state for each in ids] == [DrainState.DONE] * 2
    assert set(hall.places_of(VMS[:2])) <= {"c", "d"}


def test_old_drains_are_forgotten_records_and_all():
    hall = Hall(1)
    for _ in range(KEPT_DRAINS + 2):
        for name in ("a", "b", "c"):
            hall.command("uncordon", name)
        hall.ended(hall.drain(hall.places_of(VMS[:1])[0]).drain_id)
    assert len(hall.world.manager.drains) == KEPT_DRAINS
    disk = hall.world.nodes[MANAGER].disk
    kept = {key.split("/")[1] for key in disk if key.startswith(("drain/", "drain-vm/"))}
    assert kept == set(hall.world.manager.drains)


def test_the_table_says_something_of_every_stage_and_turn():
    assert {stage for stage, _ in STAGES} == set(Stage)
    assert {turn for _, turn in STAGES} == set(Turn)
    for (stage, turn), becomes in STAGES.items():
        assert becomes is not stage, (stage, turn)


def test_records_come_back_as_they_were():
    hall = Hall(2)
    drain = hall.ended(hall.drain(to=("b",), uncordon=True).drain_id)
    strange = VmKey(7, "a/b/c")
    state = {drain.key: drain_to_json(drain)}
    for vm, each in drain.vms.items():
        state[record_key(drain, vm)] = drained_to_json(each)
    state[record_key(drain, strange)] = drained_to_json(drain.vms[VMS[0]])
    [back] = drains_from(state).values()
    assert drain_to_json(back) == drain_to_json(drain)
    assert set(back.vms) == {*VMS[:2], strange}
    assert back.vms[VMS[0]].tried == drain.vms[VMS[0]].tried
