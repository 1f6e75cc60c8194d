"""CHECK to routers, and what the manager's ask_nodes hands over of their answers and of NVEs'."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest

from tests.engine.line import FIRST_S
from tests.engine.network import World
from tests.engine.router_pair import ETH0, PLACES, V4, V6, VM, Pair, row
from vmmobility.drivers.fake_router_plane import FakeRouterPlane
from vmmobility.engine.channel import Received
from vmmobility.engine.manager_trace import for_people, router_answer
from vmmobility.engine.router_checks import MOST_QUESTIONS, rows_to_json
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    InterfaceGroup,
    Measurements,
    Route,
    VmId,
)
from vmmobility.wire.registry import Kind, Purpose, Role, RouteState, Status
from vmmobility.wire.values import Address, VmKey

# ---- a router answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("address", [V4, V6])
def test_a_router_says_what_it_was_told_and_what_its_kernel_does(address: Address):
    pair = Pair()
    found = pair.ask(VM, address)["tor"]
    assert (found["epoch"], found["route"]) == (7, "announce")
    assert (found["direct"], found["covered"]) == (True, False)
    assert (found["refused"], found["reason"], found["more"]) == ("", "", False)
    (explain,) = pair.explains
    assert explain.addresses == (address,)
    assert explain.watched is not None
    assert explain.watched.vm == VM
    (shown,) = found["rows"]
    assert shown == {
        "priority": 78, "table": 7701, "prefix": "10.1.0.5/32", "metric": 7, "protocol": 77,
        "kind": "unicast", "ours": True, "leads": True,
        "next_hops": [{"interface": "eth0", "gateway": "10.0.2.2"}],
    }  # fmt: skip


def test_a_router_that_knows_nothing_of_the_vm_says_so():
    found = Pair(known=False).ask()["tor"]
    assert (found["epoch"], found["route"], found["direct"]) == (0, "none", None)
    assert found["rows"]


def test_an_address_of_nobody_is_explained_without_a_vm():
    pair = Pair()
    answers = pair.ask(None, ip_address("10.9.9.9"), "tor", "nve", "nobody")
    assert answers["tor"]["route"] == "none"
    assert answers["nve"] is answers["nobody"] is None
    assert pair.explains[0].watched is None


def test_without_an_address_those_of_the_vm_are_explained():
    pair = Pair()
    (reply,) = pair.request(VmId(VM))
    assert reply.need(Route).state is RouteState.ANNOUNCE
    assert pair.explains[0].addresses == (V4, V6)


def test_what_a_router_refuses():
    pair = Pair()
    (reply,) = pair.request(VmId(VmKey(7, "vm-1")))
    assert reply.status is Status.VNI_NOT_SUPPORTED
    (reply,) = pair.request()
    assert reply.status is Status.MALFORMED
    assert not pair.explains
    pair.error = "the table cannot be read"
    found = pair.ask()["tor"]
    assert (found["refused"], found["reason"]) == ("data-plane-failure", pair.error)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.MANAGER])
def test_only_a_manager_may_ask(role: Role):
    pair = Pair(asker=role)
    (reply,) = pair.request(VmId(VM), InterfaceGroup(ETH0))
    assert reply.status is Status.ADMINISTRATIVELY_PROHIBITED
    assert pair.router.channel.drops["wrong-role"] == 1
    assert not pair.explains


def test_a_router_may_not_ask_the_manager():
    pair = Pair()
    pair.router.channel.request(
        pair.router.manager, Purpose.CHECK, [VmId(VM)], pair.now, lambda reply, at: None
    )
    pair.settle()
    assert pair.manager.channel.drops["wrong-role"] == 1


def test_questions_that_wait_for_the_kernel_are_bounded():
    pair = Pair()
    peer_ = pair.router.channel.peers["manager"]
    for number in range(MOST_QUESTIONS + 3):
        message = Message(Kind.REQUEST, Purpose.CHECK, number, (VmId(VM),))
        received = Received(peer_, message, 1, PLACES["manager"], None)
        pair.router._check_requested(received, pair.now)
    assert len(pair.router._explaining) == MOST_QUESTIONS


def test_the_real_rows_of_a_plane_fit():
    plane = FakeRouterPlane({ip_network("10.1.0.0/24"): [(1, ip_address("10.0.1.2"))]})
    plane._started = True
    (shown,) = json.loads(rows_to_json(plane.explain(V4)))["rows"]
    assert (shown["prefix"], shown["leads"]) == ("10.1.0.0/24", True)


# ---- bounds --------------------------------------------------------------------------------------


def test_rows_are_cut_whole():
    rows = [row("fd01:1::5/128", table, hops=4) for table in range(20)]
    data = rows_to_json(rows)
    assert len(data) <= 1024
    found = json.loads(data)
    assert found["more"] is True
    assert 0 < len(found["rows"]) < 20
    assert [r["table"] for r in found["rows"]] == list(range(len(found["rows"])))


def test_a_route_of_many_next_hops_names_some_and_their_number():
    (shown,) = json.loads(rows_to_json([row("10.1.0.0/24", 254, hops=64)]))["rows"]
    assert (len(shown["next_hops"]), shown["hops"]) == (4, 64)


def test_rules_without_a_route_are_left_out_and_one_that_ends_is_not():
    none = {**row("x", 255), "prefix": None, "kind": None, "next_hops": []}
    blackhole = {**none, "table": None, "kind": "blackhole", "leads": True}
    found = json.loads(rows_to_json([none, blackhole]))
    assert [r["kind"] for r in found["rows"]] == ["blackhole"]
    assert "more" not in found


def test_a_row_that_cannot_fit_is_told_as_more():
    assert json.loads(rows_to_json([row("x" * 2000, 254)])) == {"rows": [], "more": True}


# ---- what the manager makes of it ----------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"no json", b"[1]", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\u001b[2J"}',
        b'{"a": "\\ud800"}', b'{"a": "\\n"}', b"[" * 1000, b"\xff\xfe", b'"text"',
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_nothing(data: bytes):
    reply = Message(Kind.REPLY, Purpose.CHECK, 1, (Measurements(data),))
    assert for_people(reply) == {}
    assert router_answer(reply)["rows"] == []


@pytest.mark.parametrize("data", [b'{"rows": 3}', b'{"rows": [1, "x", null]}', b"{}"])
def test_rows_that_are_none_are_no_rows(data: bytes):
    reply = Message(Kind.REPLY, Purpose.CHECK, 1, (Measurements(data),))
    assert router_answer(reply)["rows"] == []


def test_who_is_silent_is_told_as_such_in_time():
    pair = Pair()
    pair.cut = True
    pair.manager.ask_nodes(1, VM, V4, ["tor"], 2.0, pair.now)
    pair.settle()
    assert not pair.done
    assert pair.manager.next_timer() is not None
    pair.now = 2.0
    pair.manager.timer(pair.now)
    pair.settle()
    assert pair.done[1].result == {"answers": {"tor": None}}
    pair.cut = False
    pair.now += 20 * FIRST_S
    pair.manager.timer(pair.now)
    pair.settle()
    assert not pair.explains  # it is asked no more


def test_nobody_to_ask_is_answered_at_once():
    assert Pair().ask(VM, V4, "nobody") == {"nobody": None}
    pair = Pair()
    pair.manager.ask_nodes(1, VM, V4, [], 5.0, 0.0)
    pair.settle()
    assert pair.done[1].result == {"answers": {}}


def test_two_questions_at_once_do_not_supersede_each_other():
    pair = Pair()
    for command, address in ((1, V4), (2, V6)):
        pair.manager.ask_nodes(command, VM, address, ["tor"], 5.0, pair.now)
    pair.settle()
    assert [e.addresses for e in pair.explains] == [(V4,), (V6,)]
    assert all(pair.done[n].result["answers"]["tor"] for n in (1, 2))


def test_nves_say_what_their_kernels_do():
    world = World(nve_settings={"lifetime_s": 40.0, "drain_s": 500.0})
    number = world.start_vm(VM, "a", (ETH0,))
    world.run_until(lambda: number in world.results)
    world.move(VM, "b")
    world.run(20.0)
    node = world.nodes["manager"]
    manager = node.manager
    assert manager is not None
    world.feed(node, lambda: manager.ask_nodes(99, VM, V4, ["a", "b", "c"], 5.0, world.now))
    world.run(5.0)
    found = world.results[99].result["answers"]
    assert found["a"]["shown"]["forwarding"] == "redirect"
    assert found["a"]["target"] == found["a"]["shown"]["target"] == "b"
    assert (found["b"]["phase"], found["b"]["guest"]) == ("serving", "running")
    assert found["b"]["shown"]["forwarding"] == "local"
    assert found["b"]["shown"]["ports"]
    assert found["b"]["epoch"] == found["a"]["epoch"]
    assert found["c"]["phase"] == "none"
