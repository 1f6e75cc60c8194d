"""A router's engine, told by hand: epochs, pairs, refusals, overtaken orders, restarts, reports.

Not here: what a manager tells routers (scenarios/fabric_*.txt).
"""

from __future__ import annotations

import pytest

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fabric_talk import sites
from tests.engine.network import MANAGER, World
from vmmobility.engine.fabric_routes import RouteAction
from vmmobility.engine.router import RETRY_S, RouterEngine
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    InterfaceGroup,
    Option,
    PreviousNve,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import Purpose, RouteState, Status

VM = vm_key("vm1")
INTERFACE = interfaces_of("vm1", 1, 1)[0]


class Told:
    """A world whose manager says what a test wants.  replies: in the order in which they came."""

    def __init__(self) -> None:
        self.world = World(routers=sites("ra:a/rb:b,c/x"))
        self.replies: list[Message] = []

    @property
    def router(self) -> RouterEngine:
        router = self.world.nodes["rb"].router
        assert router is not None
        return router

    def held(self) -> RouteAction:
        assert self.world.fabric is not None
        held = self.world.fabric.held["rb"].get(VM)
        return held.state if held else RouteAction.NONE

    def tell(self, epoch: int, state: RouteState, *options: Option, subject: str = "") -> None:
        """Options in place of the pair (c, from b) and the VM's addresses, if there are any."""
        channel, now = self.world.manager.channel, self.world.now
        nodes = self.world.nodes
        pair = (InterfaceGroup(INTERFACE), ServingNve(nodes["c"].nve), PreviousNve(nodes["b"].nve))
        given = options or (pair if state else ())
        channel.request(
            channel.peers["rb"], Purpose.ROUTE, [VmId(VM), Epoch(epoch), Route(state), *given], now,
            lambda reply, at: self.replies.append(reply), subject=subject or None,
        )  # fmt: skip
        self.world.feed(nodes[MANAGER], lambda: None)

    def ask(self, epoch: int, state: RouteState, *options: Option) -> Status:
        """The answer to one order."""
        before = len(self.replies)
        self.tell(epoch, state, *options)
        self.world.run_until(lambda: len(self.replies) > before, 10.0)
        return self.replies[-1].status


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.mark.parametrize(
    ("state", "held"),
    [
        (RouteState.WATCH, RouteAction.NONE),
        (RouteState.KEEP, RouteAction.HOLD),
        (RouteState.LEAD, RouteAction.HOLD),
        (RouteState.ANNOUNCE, RouteAction.ANNOUNCE),
    ],
)
def test_each_state_is_held_and_answered_with_a_sight(
    told: Told, state: RouteState, held: RouteAction
) -> None:
    assert told.ask(5, state) is Status.ACCEPTED
    assert told.held() is held
    assert told.replies[-1].find(Sight) is not None
    routes = told.router.entries[VM].routes()
    led = None if routes.serving is None else routes.serving.nve_id
    assert led == {RouteState.KEEP: "b", RouteState.WATCH: None}.get(state, "c")
    assert routes.goal is not None
    assert routes.goal.nve_id == "c", "its sight is about the destination"


def test_an_older_order_changes_nothing_and_hears_the_newer_epoch(told: Told) -> None:
    told.ask(5, RouteState.ANNOUNCE)
    assert told.ask(4, RouteState.NONE) is Status.STALE_EPOCH
    assert told.replies[-1].epoch == 5
    assert told.held() is RouteAction.ANNOUNCE


def test_the_same_order_again_is_obeyed_and_another_one_of_its_epoch_is_not(told: Told) -> None:
    told.ask(5, RouteState.ANNOUNCE)
    assert told.ask(5, RouteState.ANNOUNCE) is Status.ACCEPTED
    assert told.ask(5, RouteState.NONE) is Status.STALE_EPOCH
    assert told.held() is RouteAction.ANNOUNCE


def test_the_tombstone_outlives_the_route_and_a_restart(told: Told) -> None:
    told.ask(5, RouteState.ANNOUNCE)
    assert told.ask(6, RouteState.NONE) is Status.ACCEPTED
    told.world.restart("rb")
    assert told.ask(5, RouteState.ANNOUNCE) is Status.STALE_EPOCH
    assert told.held() is RouteAction.NONE
    assert not told.router.watched()


def test_half_a_pair_or_no_address_is_malformed_and_changes_nothing(told: Told) -> None:
    nodes = told.world.nodes
    told.ask(5, RouteState.ANNOUNCE)
    only_serving = (InterfaceGroup(INTERFACE), ServingNve(nodes["c"].nve))
    assert told.ask(6, RouteState.KEEP, *only_serving) is Status.MALFORMED
    assert told.ask(6, RouteState.ANNOUNCE, InterfaceGroup(INTERFACE)) is Status.MALFORMED
    assert told.ask(6, RouteState.ANNOUNCE, ServingNve(nodes["c"].nve)) is Status.MALFORMED
    assert told.held() is RouteAction.ANNOUNCE
    assert told.router.entries[VM].epoch == 5
    assert told.ask(6, RouteState.LEAD, *only_serving) is Status.ACCEPTED, "no order was lost by it"


def test_a_vm_is_unknown_after_a_malformed_order(told: Told) -> None:
    assert told.ask(6, RouteState.ANNOUNCE, InterfaceGroup(INTERFACE)) is Status.MALFORMED
    assert VM not in told.router.entries


def test_what_the_kernel_refuses_is_told_and_tried_again(told: Told) -> None:
    assert told.world.fabric is not None
    told.world.fabric.fail_next["rb"] += ["no such device"]
    assert told.ask(5, RouteState.ANNOUNCE) is Status.DATA_PLANE_FAILURE
    assert told.held() is RouteAction.NONE
    told.world.run(RETRY_S + 0.1)
    assert told.held() is RouteAction.ANNOUNCE
    assert told.router.next_timer() is not None, "its next report"


def test_an_order_that_a_newer_one_overtakes_is_answered(told: Told) -> None:
    """Before the kernel has done what the first asked for the second one is there."""
    told.tell(5, RouteState.ANNOUNCE)
    told.tell(6, RouteState.NONE)
    told.world.run_until(lambda: len(told.replies) == 2, 5.0)
    assert [(r.status, r.epoch) for r in told.replies] == [
        (Status.OUT_OF_SEQUENCE, 5),
        (Status.ACCEPTED, 6),
    ]
    assert told.held() is RouteAction.NONE


@pytest.mark.parametrize("state", list(RouteState))
def test_a_restarted_router_holds_what_it_held(told: Told, state: RouteState) -> None:
    told.ask(5, state)
    before = told.router.entries[VM].routes()
    fabric = told.world.fabric
    assert fabric is not None
    told.world.crash("rb")
    fabric.lose_all("rb")
    told.world.restart("rb")
    assert told.router.entries[VM].routes() == before
    assert told.held() is before.state


def test_nothing_is_said_before_it_is_durable(told: Told) -> None:
    told.world.nodes["rb"].fail_persist = True
    told.tell(5, RouteState.ANNOUNCE)
    told.world.run(3.0)
    assert told.world.nodes["rb"].router is None, "it has stopped"
    assert not told.replies
    assert told.held() is RouteAction.NONE


def test_a_restarted_router_reports_only_what_it_has_seen(told: Told) -> None:
    """Its kernel tells first: a guess would have redirects come back that nobody needs."""
    told.ask(5, RouteState.ANNOUNCE)
    told.world.restart("rb")
    assert told.router.next_timer() is None
    told.world.run(0.01)
    sight = told.router.entries[VM].sight
    assert sight is not None
    assert sight.direct
