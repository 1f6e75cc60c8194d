"""Real TCP and UDP flows through two NAPT boxes while their inside end moves from one to the other.

The VM is one namespace with a link to each box: it "moves" when routes turn.  Every byte of TCP and
every UDP datagram is counted.  Both policies: the mapping is handed over, or kept where it was.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.napt_planes import (
    BOX1,
    MAPPED,
    POOL,
    PUBLIC,
    SISTER,
    A,
    LinuxPair,
    World,
    detour,
    state,
)
from tests.contract.napt_talks import (
    FAR,
    PORTS,
    STATIC,
    Talk,
    talks_with_ports_and_pool,
    talks_with_static,
    tcp_in,
    tcp_out,
    udp_out,
)
from vmmobility.engine.napt_plane import NaptState

pytestmark = pytest.mark.netns


def without(desired: NaptState) -> NaptState:
    """The state without its mappings: what the box has left after a hand-over."""
    return state(pool=[str(p) for p in desired.pool])


@pytest.mark.parametrize(
    ("mappings", "begin", "publics"),
    [(STATIC, talks_with_static, [PUBLIC]), (PORTS, talks_with_ports_and_pool, [MAPPED, POOL])],
    ids=["static", "ports-and-pool"],
)
def test_handed_over_flows_continue_both_ways(
    linux_pair: LinuxPair,
    mappings: tuple[object, ...],
    begin: Callable[[World], list[Talk]],
    publics: list[str],
) -> None:
    one, two = linux_pair
    world = one.world
    assert one.apply(state(*mappings)) == []  # type: ignore[arg-type]
    assert two.apply(state(pool=[FAR])) == []
    talks = begin(world)
    for talk in talks:
        talk.exchange()
    # The new box first, then the routes, then the old box.
    assert two.apply(state(*mappings, pool=[FAR])) == []  # type: ignore[arg-type]
    flows = one.export(A)
    assert len(flows) == 4
    assert two.bring_in(flows) == []
    world.behind_box2(A)
    for public in publics:
        world.public_to_box2(public)
    assert one.apply(state()) == []
    assert one.drop(A) == 4
    for talk in talks:
        talk.exchange()
    assert {(f.public, f.private, f.remote) for f in two.export(A)} == {
        (f.public, f.private, f.remote) for f in flows
    }
    assert one.export(A) == ()
    lost = one.usage()
    assert (lost.unmapped, lost.untranslated, lost.unknown) == (0, 0, 0)
    lost = two.usage()
    assert (lost.unmapped, lost.untranslated, lost.unknown) == (0, 0, 0)


@pytest.mark.parametrize(
    ("mappings", "begin"),
    [(STATIC, talks_with_static), (PORTS, talks_with_ports_and_pool)],
    ids=["static", "ports-and-pool"],
)
def test_kept_flows_continue_both_ways_and_new_ones_begin(
    linux_pair: LinuxPair, mappings: tuple[object, ...], begin: Callable[[World], list[Talk]]
) -> None:
    one, two = linux_pair
    world = one.world
    assert one.apply(state(*mappings)) == []  # type: ignore[arg-type]
    talks = begin(world)
    for talk in talks:
        talk.exchange()
    assert two.apply(state(detour(A, BOX1), pool=[FAR])) == []
    world.behind_box2(A)
    for talk in talks:
        talk.exchange()
    # What begins after the move has the kept mapping, too.
    late = [tcp_out(world, (A, 9001), 9001), udp_out(world, (A, 9002), 9002)]
    public = PUBLIC if mappings == STATIC else POOL
    for talk in late:
        assert talk.outside.getpeername()[0] == public
        talk.exchange()
    # Exempt destinations keep the normal way, and see the private address.
    near = world.socket(world.outside, socket.SOCK_DGRAM, SISTER, 9003)
    world.route(world.outside, f"{A}/32", "10.0.2.1")
    mouth = world.socket(world.inside, socket.SOCK_DGRAM, A, 9003)
    mouth.sendto(b"?", (SISTER, 9003))
    assert near.recvfrom(100)[1] == (A, 9003)
    assert two.export(A) == (), "nothing of it is translated at the box it is behind"
    assert len(one.export(A)) == 6


def test_a_kept_mapping_is_handed_over_later(linux_pair: LinuxPair) -> None:
    """The detour ends while flows are alive: what they left untranslated here does not stick."""
    one, two = linux_pair
    world = one.world
    one.apply(state(*STATIC))
    talks = talks_with_static(world)
    two.apply(state(detour(A, BOX1), pool=[FAR]))
    world.behind_box2(A)
    for talk in talks:
        talk.exchange()
    assert two.bring_in(one.export(A)) == []
    assert two.apply(state(*STATIC, pool=[FAR])) == []
    world.public_to_box2(PUBLIC)
    one.apply(state())
    assert one.drop(A) == 4
    for talk in talks:
        talk.exchange()
    assert len(two.export(A)) == 4
    assert two.hands.ours("-d", "rule", "show") == []
    assert two.hands.ours("-d", "route", "show", "table", "all") == []


def test_a_flow_moves_there_and_back(linux_pair: LinuxPair) -> None:
    one, two = linux_pair
    world = one.world
    one.apply(state())
    two.apply(state(pool=[FAR]))
    talks = [tcp_out(world, (A, 7001), 7001), udp_out(world, (A, 7002), 7002)]
    for talk in talks:
        talk.exchange()
    for source, target in ((one, two), (two, one)):
        assert target.bring_in(source.export(A)) == []
        if target is two:
            world.behind_box2(A)
            world.public_to_box2(POOL)
        else:
            world.route(world.inside, "default", "10.0.4.1")
            world.route(world.box1, f"{A}/32", "10.0.4.2")
            world.route(world.outside, f"{POOL}/32", "10.0.1.1")
        assert source.drop(A) == 2
        for talk in talks:
            talk.exchange()


class Streams:
    """Bytes each way through every connection, as fast as they go."""

    def __init__(self, talks: list[Talk], size: int) -> None:
        self.size = size
        self.heard: dict[str, int] = {}
        self._threads = []
        for talk in talks:
            for name, mouth, ear in (
                (f"{talk.name} up", talk.inside, talk.outside),
                (f"{talk.name} down", talk.outside, talk.inside),
            ):
                self._threads.append(threading.Thread(target=self._send, args=(mouth,)))
                self._threads.append(threading.Thread(target=self._hear, args=(name, ear)))
        for thread in self._threads:
            thread.start()

    def _send(self, mouth: socket.socket) -> None:
        block = bytes(1 << 16)
        for _ in range(self.size // len(block)):
            mouth.sendall(block)

    def _hear(self, name: str, ear: socket.socket) -> None:
        self.heard[name] = 0
        while self.heard[name] < self.size:
            part = ear.recv(1 << 16)
            if not part:
                return
            self.heard[name] += len(part)

    def run_on(self, octets: int = 1 << 20) -> None:
        """Wait until so much more has come in every stream."""
        wait_for(lambda: len(self.heard) == len(self._threads) // 2, "all streams run", 60)
        goals = {n: min(self.size, there + octets) for n, there in dict(self.heard).items()}
        wait_for(lambda: all(self.heard[n] >= goal for n, goal in goals.items()), "they go on", 60)

    def end(self) -> None:
        """All of them in full."""
        for thread in self._threads:
            thread.join(60)
        assert set(self.heard.values()) == {self.size}


def test_a_stream_under_way_loses_nothing(linux_pair: LinuxPair) -> None:
    """Routes turn in the middle of a stream each way; the flows are not at rest when exported."""
    one, two = linux_pair
    world = one.world
    one.apply(state(*STATIC))
    two.apply(state(pool=[FAR]))
    streams = Streams(
        [tcp_in(world, (PUBLIC, 8081), (A, 8081)), tcp_out(world, (A, 8083), 8083)], 64 << 20
    )
    streams.run_on()
    assert two.apply(state(*STATIC, pool=[FAR])) == []
    assert two.bring_in(one.export(A)) == []
    streams.run_on()
    world.behind_box2(A)
    streams.run_on()
    world.public_to_box2(PUBLIC)
    streams.run_on()
    one.apply(state())
    assert one.drop(A) == 2
    streams.end()


def test_a_stream_under_way_survives_keep_and_then_hand_over(linux_pair: LinuxPair) -> None:
    """At each step one box may translate what comes in, and the other what goes out."""
    one, two = linux_pair
    world = one.world
    one.apply(state(*STATIC))
    two.apply(state(detour(A, BOX1), pool=[FAR]))
    talks = [tcp_in(world, (PUBLIC, 8081), (A, 8081)), tcp_out(world, (A, 8083), 8083)]
    streams = Streams(talks, 64 << 20)
    streams.run_on()
    world.behind_box2(A)
    streams.run_on()
    assert two.bring_in(one.export(A)) == []
    streams.run_on()
    assert two.apply(state(*STATIC, pool=[FAR])) == []
    streams.run_on()
    world.public_to_box2(PUBLIC)
    streams.run_on()
    one.apply(state())
    assert one.drop(A) == 2
    streams.end()
    assert len(two.export(A)) == 2
    for used in (one.usage(), two.usage()):
        assert (used.untranslated, used.unknown, used.unmapped) == (0, 0, 0)


def test_a_middle_of_a_connection_that_nobody_handed_over_is_not_given_a_new_port(
    linux_pair: LinuxPair,
) -> None:
    """It would be answered by a reset: dropped, counted, and alive once its flow is brought in."""
    one, two = linux_pair
    world = one.world
    one.apply(state())
    two.apply(state(pool=[FAR]))
    talk = tcp_out(world, (A, 7001), 7001)
    talk.exchange()
    world.behind_box2(A)
    world.public_to_box2(POOL)
    talk.inside.sendall(b"early")
    wait_for(lambda: two.usage().unknown, "it is dropped and counted")
    assert two.export(A) == ()
    assert two.bring_in(one.export(A)) == []
    assert talk.outside.recv(5) == b"early", "sent again by TCP"
    talk.exchange()
