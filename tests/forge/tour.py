"""The situations in which nodes are attacked: one long story of a domain, stopped at every event.

Rest, every step of moves (leaving home, in mid-chain, coming home), redirecting NVEs, failed
moves, restarts from durable state, a lost manager, a cut network, leases that end, conflicts, bad
weather, lost power, a full disk, lost state.  Not here: the attack (campaign.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, Weather
from tests.forge.domain import Domain
from vmmobility.engine.manager_move import MoveRefused
from vmmobility.engine.outputs import Order
from vmmobility.wire.values import VmKey

VM1, VM2, VM3 = vm_key("vm1"), vm_key("vm2"), vm_key("vm3")
SETTLE_S = 90.0


def travel(domain: Domain) -> None:
    """The whole story; domain.attack is called after each of its events."""
    for chapter in CHAPTERS:
        chapter(domain)


def move(domain: Domain, vm: VmKey, to: str, seconds: float = 8.0) -> None:
    # What an earlier chapter left behind may not allow it; another seed's will.
    with contextlib.suppress(MoveRefused):
        domain.move(vm, to)
    domain.run(seconds)


def dwell(domain: Domain, seconds: float, events: int = 100) -> None:
    """A time in which nothing happens by itself: it is stopped at nothing, again and again."""
    for number in range(events):
        domain.later(seconds * number / events, lambda: None)
    domain.run(seconds)


def at_rest(domain: Domain) -> None:
    domain.start_vm(VM1, "a", interfaces_of("vm1", 1, 1))
    domain.start_vm(VM2, "a", interfaces_of("vm2", 1, 2))
    domain.start_vm(VM3, "b", interfaces_of("vm3", 2, 1))
    domain.run(4)


def a_chain_of_moves(domain: Domain) -> None:
    domain.senders.add(("a", VM1))
    move(domain, VM1, "b")
    move(domain, VM1, "c", 0.3)
    move(domain, VM2, "b")


def everybody_restarts(domain: Domain) -> None:
    """From what is durable; all that was ever sent is a week old now."""
    for name in domain.nodes:
        domain.restart(name)
        domain.run(0.2)
    domain.run(30)


def coming_home_with_a_crash(domain: Domain) -> None:
    domain.senders.clear()
    move(domain, VM1, "a", 0.6)
    domain.crash("c")
    domain.run(2)
    domain.restart("c")
    domain.run(20)
    move(domain, VM2, "a", 0.55)
    domain.crash(MANAGER)
    domain.run(3)
    domain.restart(MANAGER)
    domain.run(40)


def moves_that_fail(domain: Domain) -> None:
    hypervisor = domain.nodes["a"].hypervisor
    assert hypervisor is not None
    for stage in ("copy", "moment", "switch"):
        hypervisor.break_next.add(stage)
        move(domain, VM1, "d", 6)
    refusing = domain.nodes["c"].hypervisor
    assert refusing is not None
    refusing.fail_next[Order.PREPARE_INCOMING] = ["no memory"]
    move(domain, VM3, "c", 4)


def the_manager_is_away(domain: Domain) -> None:
    domain.crash(MANAGER)
    domain.run(40)
    domain.restart(MANAGER)
    domain.run(5)


def a_lease_ends(domain: Domain) -> None:
    domain.cut.add(frozenset(("b", MANAGER)))
    domain.run(60)
    domain.start_vm(VM3, "d", interfaces_of("vm3", 2, 1))  # bound elsewhere
    domain.run(5)
    domain.cut.clear()
    domain.run(12)


def bad_weather(domain: Domain) -> None:
    domain.weather = Weather(loss=0.15, repetition=0.2, delay_s=(0.001, 0.2))
    move(domain, VM1, "c", 25)
    move(domain, VM3, "a", 25)
    domain.weather = Weather()


def power_is_lost(domain: Domain) -> None:
    move(domain, VM2, "c", 0.4)
    domain.power_cut("c")
    domain.run(20)
    domain.restart("c")
    domain.run(20)


def a_disk_is_full(domain: Domain) -> None:
    domain.nodes["a"].fail_persist = True
    domain.stop_vm(VM2, "a")
    domain.run(2)
    domain.restart("a")
    domain.run(20)


def state_is_lost(domain: Domain) -> None:
    """A re-imaged NVE, then the manager: only a challenge keeps old datagrams out.

    Of d and the manager nobody is left who remembers the other's highest boot."""
    for name in ("d", MANAGER):
        domain.cut |= {frozenset((MANAGER, nve)) for nve in domain.nodes if nve != MANAGER}
        domain.lose_state(name)
        domain.restart(name)
        dwell(domain, 2.0)  # nothing can be proven yet
        domain.cut.clear()
        domain.run(10)


CHAPTERS: tuple[Callable[[Domain], None], ...] = (
    at_rest,
    a_chain_of_moves,
    everybody_restarts,
    coming_home_with_a_crash,
    moves_that_fail,
    the_manager_is_away,
    a_lease_ends,
    bad_weather,
    power_is_lost,
    a_disk_is_full,
    state_is_lost,
    everybody_restarts,
)
