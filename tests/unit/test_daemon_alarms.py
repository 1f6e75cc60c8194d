"""Alarms: there while the engine's state says so, gone with it."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from typing import Any

import pytest

from vmmobility.daemon.alarms import manager_alarms, nve_alarms
from vmmobility.daemon.manager_service import binding_view
from vmmobility.engine.binding_cache import DUPLICATE_S, Binding
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.capacity import ServerRoom
from vmmobility.engine.channel import Peer
from vmmobility.engine.group_record import Group
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_liveness import Pulse, ServerSeen
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.outputs import Endpoint, Order
from vmmobility.engine.protection_record import Guarded
from vmmobility.wire import options as protocol
from vmmobility.wire.registry import Phase, Role
from vmmobility.wire.values import Nve, VmKey

VM = VmKey(0, "vm1")
A, B = Nve("nve-a", IPv4Address("10.0.0.1"), None), Nve("nve-b", IPv4Address("10.0.0.2"), None)


def manager(**binding: Any) -> ManagerEngine:
    engine = ManagerEngine(ManagerSettings("manager"), [], {}, 1, random.Random(1), 0.0)
    bound = Binding(VM, (), b"", A, boot=1, attach_id=1, epoch=1, expires_at=100.0, **binding)
    engine.cache.put(bound)
    return engine


def names(rows: list[dict[str, Any]]) -> list[str]:
    assert all(row["what"] and row["remedy"] for row in rows)
    return [row["alarm"] for row in rows]


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("frozen", "`vmmob vm release vm1`"),
        ("expired", "`vmmob vm release vm1 --fenced nve-a`"),
        ("lost", "vmmob nve start"),
        ("departed", "vmmob nve expect"),
    ],
)
def test_a_bindings_state_is_an_alarm(state: str, remedy: str):
    engine = manager(**{state: True})
    (row,) = manager_alarms(engine, 130.0)
    assert (row["alarm"], row["vm"], row["nve"]) == (f"binding.{state}", "vm1", "nve-a")
    assert remedy in row["remedy"]
    assert row["for_s"] == (30.0 if state == "expired" else None)
    setattr(engine.cache.bindings[VM], state, False)
    assert manager_alarms(engine, 130.0) == []


def test_a_dead_nve_is_one_alarm_whatever_it_served():
    engine = manager()
    engine.pulses["nve-a"] = Pulse(boot=5, interval_s=1.0, heard=100.0, dead=True)
    engine.pulses["nve-b"] = Pulse(boot=5, interval_s=1.0, heard=100.0)
    engine.cache.bindings[VM].expires_at = 300.0
    (row,) = manager_alarms(engine, 112.5)
    assert (row["alarm"], row["vm"], row["nve"]) == ("nve.silent", None, "nve-a")
    assert row["for_s"] == 12.5
    assert "VM vm1 has its binding there" in row["what"]
    assert "--fenced nve-a" in row["remedy"]


@pytest.mark.parametrize(
    ("state", "nve"), [(MoveState.ENDING_GUEST, "nve-b"), (MoveState.TURNING_BACK, "nve-a")]
)
def test_a_move_that_only_an_answer_ends_is_an_alarm_after_a_step(state: MoveState, nve: str):
    engine = manager()
    move = Move("m1", VM, A, B, b"", 2, state, phases=[("x", 2000.0)], began=10.0)
    engine.moves[move.move_id] = move
    step_s = engine.settings.step_s
    assert manager_alarms(engine, 12.0 + step_s - 0.1) == []
    (row,) = manager_alarms(engine, 12.0 + step_s + 1)
    assert row["alarm"] == f"move.waiting-{state.value}"
    assert (row["nve"], row["for_s"]) == (nve, step_s + 1)
    assert f"--fenced {nve}" in row["remedy"]
    move.state = MoveState.ABORTED
    assert manager_alarms(engine, 100.0) == []


def test_a_duplicate_is_an_alarm_as_long_as_its_nve_asks_for_it():
    engine = manager()
    engine.cache.bindings[VM].duplicates["nve-b"] = 6.0
    (row,) = manager_alarms(engine, 10.0)
    assert (row["alarm"], row["nve"], row["for_s"]) == ("vm.duplicate", "nve-a", None)
    assert "nve-b" in row["what"]
    assert manager_alarms(engine, 6.0 + DUPLICATE_S) == []


def nve(entry: Entry) -> NveEngine:
    peer = Peer("manager", Role.MANAGER, (Endpoint(IPv4Address("10.0.0.9"), 8747),), {1: b"x"}, 1)
    engine = NveEngine(NveSettings(A, redirect_alarm_s=50.0), [peer], {}, 1, random.Random(1))
    engine.entries[VM] = entry
    return engine


def test_a_member_that_is_out_of_service_is_an_alarm():
    engine = manager()
    group = Group("web", 0, {VM: 1, VmKey(0, "vm2"): 2}, out={VM: "nve-a is silent"})
    engine.groups["web"] = group
    (row,) = manager_alarms(engine, 1.0)
    assert (row["alarm"], row["vm"], row["nve"]) == ("group.member-out", "vm1", "nve-a")
    assert row["what"] == "member 1 of group web is announced no more: nve-a is silent"
    group.out = {}
    assert manager_alarms(engine, 1.0) == []


def test_an_old_redirect_is_an_alarm():
    engine = nve(Entry(VM, phase=Phase.REDIRECTING, target=B, redirecting_since=100.0))
    assert nve_alarms(engine, 149.0) == []
    (row,) = nve_alarms(engine, 151.0)
    assert (row["alarm"], row["nve"], row["for_s"]) == ("redirect.old", "nve-a", 51.0)
    assert "nve-b" in row["what"]


def test_a_lease_that_nobody_guards_is_an_alarm():
    engine = nve(Entry(VM, phase=Phase.SERVING))
    door = protocol.Endpoint(IPv4Address("10.0.0.2"), 49152)
    guarded = Guarded(VM, B, door, protocol.Protection(True, 1000, 10_000, "t"), 1)
    engine.guarded[VM] = guarded
    assert nve_alarms(engine, 0.0) == []
    engine.order_done(VM, Order.ARM, {}, "its guard has ended by itself", 0.0)
    (row,) = nve_alarms(engine, 0.0)
    assert (row["alarm"], row["nve"]) == ("protection.unguarded", "nve-a")
    assert "its guard has ended by itself" in row["what"]
    # The manager, and `vmmob show protected`, hear it with the next refresh.
    told = engine._lease_options(engine.entries[VM], 0.0)
    assert protocol.Reason("its guard has ended by itself") in told
    engine.order_done(VM, Order.ARM, {}, "", 0.0)
    assert nve_alarms(engine, 0.0) == []


def test_guests_that_are_refused_or_have_left_are_alarms():
    refused = Entry(VM, phase=Phase.ATTACHING, paused=True)
    assert names(nve_alarms(nve(refused), 0.0)) == ["guest.refused"]
    refused.paused = False
    assert nve_alarms(nve(refused), 0.0) == []
    assert names(nve_alarms(nve(Entry(VM, phase=Phase.DEPARTED)), 0.0)) == ["guest.departed"]
    assert nve_alarms(nve(Entry(VM, phase=Phase.SERVING)), 0.0) == []


def test_a_dead_server_is_an_alarm_of_the_manager_s() -> None:
    engine = manager(server="server-1")
    room = ServerRoom("server-1", answers=False)
    pulse = engine.pulses["nve-a"] = Pulse(1, 1.0, 130.0)
    seen = pulse.servers["server-1"] = ServerSeen(room, silent=120.0)
    assert manager_alarms(engine, 130.0) == [], "an agent may be restarted"
    seen.dead = True
    (row,) = manager_alarms(engine, 130.0)
    assert (row["alarm"], row["nve"], row["for_s"]) == ("server.silent", "nve-a", 10.0)
    assert "server-1 does not answer nve-a any more; 1 VMs are there" in row["what"]
    binding = engine.cache.bindings[VM]
    assert binding_view(binding, 130.0, "alive", "dead")["state"] == "server-dead"
    assert binding_view(binding, 130.0, "dead", "dead")["state"] == "nve-dead"
    assert binding_view(binding, 130.0, "alive", "silent")["state"] == "serving"
