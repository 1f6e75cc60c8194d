"""One contract for every NaptPlane: the in-memory twin and the Linux driver in namespaces."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.contract.napt_planes import (
    BOX1,
    BOX2,
    ELSEWHERE,
    FAR_POOL,
    MAPPED,
    POOL,
    PUBLIC,
    SECOND,
    SISTER,
    TCP,
    UDP,
    WORLD,
    A,
    B,
    Box,
    C,
    detour,
    port,
    state,
    static,
)
from vmmobility.drivers.fake_napt_plane import FakeNaptPlane
from vmmobility.engine.napt_plane import Flow, NaptState
from vmmobility.errors import DataPlaneError, EnvironmentProblem

Boxes = tuple[Box, Box]


@pytest.fixture
def box(boxes: Boxes) -> Box:
    return boxes[0]


# -- mapping ----------------------------------------------------------------------------------


def test_a_static_address_is_translated_both_ways_with_its_ports(box: Box) -> None:
    assert box.apply(state(static(A, PUBLIC))) == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.incoming((WORLD, 8), (PUBLIC, 7001)) == (A, 7001)
    used = box.usage()
    assert (used.static_flows, used.port_flows, used.pool_flows) == (2, 0, 0)


def test_whoever_sends_to_a_static_address_passes(box: Box) -> None:
    """Endpoint-independent filtering (RFC 4787, 5)."""
    box.apply(state(static(A, PUBLIC)))
    for remote in (WORLD, ELSEWHERE):
        assert box.hands.incoming((remote, 9), (PUBLIC, 7000)) == (A, 7000)


def test_what_is_translated_outward_alone_leaves_so_and_is_not_reached(box: Box) -> None:
    """A public address that is routed to another box, though its owner leaves by this one."""
    assert box.apply(state(outward=[static(A, PUBLIC)])) == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.incoming((WORLD, 8), (PUBLIC, 7001)) is None
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    used = box.usage()
    assert (used.static_flows, used.pool_flows, used.unmapped) == (1, 1, 1)
    assert box.apply(state(static(A, PUBLIC))) == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000), "as it was begun"
    assert box.hands.incoming((WORLD, 9), (PUBLIC, 7000)) == (A, 7000)


def test_what_is_translated_outward_alone_contradicts_as_a_static_address_does(box: Box) -> None:
    desired = state(
        static(A, PUBLIC),
        detour(C, BOX2),
        pool=(POOL, SECOND),
        outward=[static(A, SECOND), static(B, PUBLIC), static(C, SECOND)],
    )
    assert {(f.item, f.reason) for f in box.apply(desired)} == {
        (f"outward {A}", f"{A} is {PUBLIC} already"),
        (f"outward {B}", f"{PUBLIC} is {A}'s already"),
        (f"detour {C}", f"{C} is {SECOND} at this box"),
        (f"pool {SECOND}", f"all ports of {SECOND} are {C}'s"),
    }
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (SECOND, 7000)
    assert box.hands.incoming((WORLD, 9), (PUBLIC, 7000)) == (A, 7000)
    assert box.audit() == []


def test_a_mapped_port_leads_inside_and_its_owner_leaves_by_it(box: Box) -> None:
    assert box.apply(state(port(UDP, B, 53, MAPPED, 5353))) == []
    assert box.hands.incoming((WORLD, 9), (MAPPED, 5353)) == (B, 53)
    assert box.hands.outgoing((B, 53), (ELSEWHERE, 9)) == (MAPPED, 5353)
    assert box.hands.incoming((WORLD, 9), (MAPPED, 5354)) is None
    used = box.usage()
    assert (used.static_flows, used.port_flows, used.unmapped) == (0, 2, 1)


def test_all_others_leave_by_the_pool_with_one_mapping_whomever_they_speak_to(box: Box) -> None:
    """Endpoint-independent mapping (RFC 4787, REQ-1), port preservation."""
    box.apply(state())
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    assert box.hands.outgoing((C, 7000), (ELSEWHERE, 9)) == (POOL, 7000)
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) != (POOL, 7000)
    used = box.usage()
    assert (used.pool_flows, used.pool[0].public, used.pool[0].ports) == (3, IPv4Address(POOL), 2)


def test_inside_hosts_are_paired_with_one_public_address(box: Box) -> None:
    """RFC 4787, REQ-2."""
    pool = [f"192.0.2.{n}" for n in range(32, 40)]
    box.apply(state(pool=pool))
    for host in (A, B, C):
        seen = {box.hands.outgoing((host, 7000 + n), (WORLD, 9)) for n in range(4)}
        assert len({end[0] for end in seen if end}) == 1
    used = box.usage()
    assert sum(row.flows for row in used.pool) == used.pool_flows == 12


def test_nobody_comes_in_by_the_pool_unasked(box: Box) -> None:
    box.apply(state())
    assert box.hands.incoming((WORLD, 9), (POOL, 7000)) is None
    assert box.usage().unmapped == 1


def test_what_answers_a_pool_flow_comes_in(box: Box) -> None:
    box.apply(state())
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    assert box.hands.incoming((WORLD, 9), (POOL, 7000)) == (C, 7000)


def test_exempt_destinations_see_private_addresses(box: Box) -> None:
    box.apply(state(static(A, PUBLIC)))
    assert box.hands.outgoing((A, 7000), (SISTER, 9)) == (A, 7000)
    assert box.hands.outgoing((C, 7000), (SISTER, 9)) == (C, 7000)
    assert box.export(A) == ()


def test_without_a_pool_the_others_are_dropped_and_counted(box: Box) -> None:
    box.apply(state(static(A, PUBLIC), pool=()))
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) is None
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.usage().no_pool == 1


def test_a_full_pool_drops_new_flows_counts_them_and_keeps_the_old(box: Box) -> None:
    box.apply(state(pool_ports=(40000, 40003)))
    taken = [box.hands.outgoing((C, 7000 + n), (WORLD, 9)) for n in range(4)]
    assert {end[1] for end in taken if end} == {40000, 40001, 40002, 40003}
    assert box.hands.outgoing((A, 7100), (WORLD, 9)) is None
    used = box.usage()
    assert (used.exhausted, used.pool[0].flows, used.pool[0].ports) == (1, 4, 4)
    assert box.hands.outgoing((C, 7002), (WORLD, 9)) == taken[2]
    assert box.hands.outgoing((A, 7100), (ELSEWHERE, 9)) is not None, "another remote"
    box.drop(C)
    assert box.hands.outgoing((A, 7100), (WORLD, 9)) is not None, "room again"


# -- desired state ----------------------------------------------------------------------------


def test_contradictions_fail_alone(box: Box) -> None:
    desired = state(
        static(A, PUBLIC),
        static(A, SECOND),
        static(B, PUBLIC),
        port(UDP, C, 53, PUBLIC, 53),
        port(UDP, C, 53, MAPPED, 53),
        port(UDP, B, 53, MAPPED, 53),
        port(47, B, 53, MAPPED, 54),
        port(TCP, B, 53, MAPPED, 70000),
        detour(A, BOX2),
        pool=(PUBLIC, POOL),
    )
    failures = {(f.item, f.reason) for f in box.apply(desired)}
    assert failures == {
        (f"static {A}", f"{A} is {PUBLIC} already"),
        (f"static {B}", f"{PUBLIC} is {A}'s already"),
        (f"port udp {PUBLIC}:53", f"all ports of {PUBLIC} are {A}'s"),
        (f"port udp {MAPPED}:53", f"it leads to {C}:53 already"),
        (f"port 47 {MAPPED}:54", "only TCP (6) and UDP (17) have ports"),
        (f"port tcp {MAPPED}:70000", "a port is a number from 1 to 65535"),
        (f"detour {A}", f"{A} is {PUBLIC} at this box"),
        (f"pool {PUBLIC}", f"all ports of {PUBLIC} are {A}'s"),
    }
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.incoming((WORLD, 9), (MAPPED, 53)) == (C, 53)
    assert box.audit() == [], "what contradicts itself is no drift"


def test_a_range_that_is_none_leaves_the_pool_out(box: Box) -> None:
    failures = box.apply(state(static(A, PUBLIC), pool_ports=(5, 4)))
    assert [f.item for f in failures] == [f"pool {POOL}"]
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)


def test_what_is_alive_keeps_its_mapping_until_it_is_dropped(box: Box) -> None:
    box.apply(state(static(A, PUBLIC)))
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.apply(state(static(A, SECOND))) == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.outgoing((A, 7001), (WORLD, 9)) == (SECOND, 7001)
    assert box.drop(A) == 2
    assert box.drop(A) == 0
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (SECOND, 7000)


def test_nothing_is_written_where_nothing_differs(box: Box) -> None:
    desired = state(static(A, PUBLIC), port(UDP, B, 53, MAPPED, 5353), detour(C, BOX2))
    assert box.apply(desired) == []
    before = box.hands.writes()
    assert box.apply(desired) == []
    assert box.resync(desired) == []
    assert box.audit() == []
    assert box.hands.writes() == before


def test_close_keeps_and_a_restart_finds(box: Box) -> None:
    desired = state(static(A, PUBLIC))
    box.apply(desired)
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    before = box.hands.writes()
    box.close()
    box.start()
    assert box.audit() == [], "before the first resync nothing is known to be desired"
    assert box.resync(desired) == []
    assert box.hands.writes() == before
    assert box.hands.incoming((WORLD, 9), (POOL, 7000)) == (C, 7000)
    assert box.resync(state()) == []
    assert box.hands.incoming((WORLD, 9), (PUBLIC, 7000)) is None


def test_remove_all_leaves_nothing(box: Box) -> None:
    box.apply(state(static(A, PUBLIC), detour(B, BOX2)))
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    box.remove_all()
    assert box.hands.clean()
    box.start()
    assert box.export(A) == ()


def test_a_detour_leaves_untranslated(box: Box) -> None:
    assert box.apply(state(static(A, PUBLIC))) == []
    assert box.apply(state(detour(A, "10.0.1.2"))) == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (A, 7000)
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    assert box.export(A) == ()


# -- other hands ------------------------------------------------------------------------------


def test_an_audit_mends_what_other_hands_took(box: Box) -> None:
    desired = state(static(A, PUBLIC), static(B, SECOND))
    box.apply(desired)
    box.hands.remove_static(A, PUBLIC)
    found = box.audit()
    assert found
    assert all(drift.repaired and drift.kind == "elements" for drift in found)
    assert box.audit() == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)


def test_an_audit_makes_the_table_anew(box: Box) -> None:
    box.apply(state(static(A, PUBLIC)))
    box.hands.remove_table()
    assert [drift.kind for drift in box.audit()] == ["table"]
    assert box.audit() == []
    assert box.hands.incoming((WORLD, 9), (PUBLIC, 7000)) == (A, 7000)


# -- hand-over --------------------------------------------------------------------------------


def test_flows_tell_both_sides(box: Box) -> None:
    box.apply(state(static(A, PUBLIC), port(UDP, A, 53, MAPPED, 5353)))
    box.hands.incoming((WORLD, 9), (PUBLIC, 7001))
    box.hands.outgoing((A, 7000), (ELSEWHERE, 8))
    box.hands.incoming((WORLD, 9), (MAPPED, 5353))
    box.hands.outgoing((C, 7000), (WORLD, 9))
    told = {(f.protocol, str(f.private[0]), f.private[1], str(f.public[0]), f.public[1],
             str(f.remote[0]), f.remote[1], f.outgoing, f.tcp_state)
            for f in box.export(A)}  # fmt: skip
    assert told == {
        (17, A, 7001, PUBLIC, 7001, WORLD, 9, False, ""),
        (17, A, 7000, PUBLIC, 7000, ELSEWHERE, 8, True, ""),
        (17, A, 53, MAPPED, 5353, WORLD, 9, False, ""),
    }
    assert all(0 < flow.timeout_s <= 600 for flow in box.export(A))


def test_flows_of_one_public_address_are_dropped_and_the_others_stay(box: Box) -> None:
    """What a static mapping was handed over for is not what the box's port or its pool leads."""
    box.apply(state(port(UDP, A, 53, MAPPED, 5353)))
    mapped = box.hands.incoming((WORLD, 9), (MAPPED, 5353))
    pooled = box.hands.outgoing((A, 7000), (WORLD, 9))
    assert (mapped, pooled) == ((A, 53), (POOL, 7000))
    box.apply(state(static(A, PUBLIC), port(UDP, A, 53, MAPPED, 5353)))
    box.hands.incoming((ELSEWHERE, 9), (PUBLIC, 7001))
    box.hands.outgoing((A, 7002), (ELSEWHERE, 9))
    assert box.drop(A, SECOND) == 0
    assert box.drop(A, PUBLIC) == 2
    assert {str(flow.public[0]) for flow in box.export(A)} == {MAPPED, POOL}
    box.apply(state())
    assert box.hands.incoming((WORLD, 9), (MAPPED, 5353)) == (A, 53)
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (POOL, 7000)
    assert box.drop(A) == 2


def exported(box: Box) -> tuple[Flow, ...]:
    """A flow in by a static address, one in by a port, and two out by the pool."""
    box.apply(state(static(A, PUBLIC), port(UDP, B, 53, MAPPED, 5353)))
    box.hands.incoming((WORLD, 9), (PUBLIC, 7001))
    box.hands.incoming((WORLD, 9), (MAPPED, 5353))
    box.hands.outgoing((C, 7000), (WORLD, 9))
    box.hands.outgoing((C, 7000), (ELSEWHERE, 9))
    return box.export(A) + box.export(B) + box.export(C)


def bare(flows: tuple[Flow, ...]) -> set[Flow]:
    return {replace(flow, timeout_s=0) for flow in flows}


def test_flows_are_the_same_at_the_box_they_are_handed_to(boxes: Boxes) -> None:
    one, two = boxes
    flows = exported(one)
    assert len(flows) == 4
    assert two.apply(state(pool=(FAR_POOL,))) == []
    assert two.bring_in(flows) == []
    assert bare(two.export(A) + two.export(B) + two.export(C)) == bare(flows)
    assert two.bring_in(flows) == [], "again is the same"
    assert bare(two.export(A) + two.export(B) + two.export(C)) == bare(flows)
    assert bare(one.export(A)) <= bare(flows), "the first one keeps them until it drops them"
    assert [one.drop(host) for host in (A, B, C)] == [1, 1, 2]


def test_a_flow_that_another_holds_fails_alone(boxes: Boxes) -> None:
    one, two = boxes
    flows = exported(one)
    two.apply(state(pool=(FAR_POOL,)))
    assert two.bring_in(flows) == []
    stolen = [replace(flow, private=(IPv4Address(B), 7777)) for flow in two.export(C)[:1]]
    fresh = replace(flows[0], remote=(IPv4Address(ELSEWHERE), 99))
    failures = two.bring_in([*stolen, fresh])
    assert [f.item for f in failures] == [f"flow udp {B}:7777 {stolen[0].remote[0]}:9"]
    assert f"in use for {C} here" in failures[0].reason
    assert fresh in {replace(f, timeout_s=fresh.timeout_s) for f in two.export(A)}
    assert len(two.export(C)) == 2


# -- life -------------------------------------------------------------------------------------


def test_before_start_is_an_error_that_says_so() -> None:
    with pytest.raises(DataPlaneError, match="start"):
        asyncio.run(FakeNaptPlane().apply(NaptState()))


def test_the_twin_injects_failures() -> None:
    async def tell() -> None:
        fake = FakeNaptPlane()
        fake.missing = "nft"
        with pytest.raises(EnvironmentProblem, match="nft"):
            await fake.start()
        fake.missing = ""
        await fake.start()
        fake.fail_next("rules")
        assert [f.item for f in await fake.apply(state(static(A, PUBLIC)))] == ["rules"]
        assert fake.held is None
        fake.unreachable = (IPv4Address(BOX1),)
        found = await fake.apply(state(detour(A, BOX1)))
        assert [(f.item, f.reason) for f in found] == [
            (f"detour {A}", f"no route leads to the box {BOX1}")
        ]
        fake.fail_next("flow udp")
        flow = Flow(17, (IPv4Address(B), 1), (IPv4Address(POOL), 2), (IPv4Address(WORLD), 3),
                    True, 9)  # fmt: skip
        assert len(await fake.import_flows([flow])) == 1
        assert await fake.import_flows([flow]) == []

    asyncio.run(tell())
