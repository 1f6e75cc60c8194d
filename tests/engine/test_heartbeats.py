"""Heartbeats between real engines: alive, silent, dead; restarts, loss, repetition."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.engine.napt_world import NaptWorld
from tests.engine.network import MANAGER, Weather, World
from vmmobility.engine.capacity import HostCapacity, Resources
from vmmobility.engine.manager_liveness import LATE_S, MISSED, Pulse
from vmmobility.wire.values import Interface, VmKey

HOST = HostCapacity(Resources(16, 8192, 1000), Resources(12, 4096, 900))
ETH0 = Interface(b"\x52\x54\0\0\0\x01", (ip_network("10.1.0.5/32"), ip_network("fd01:1::5/128")))
EVERY_S = 1.0
DEAD_S = MISSED * EVERY_S + LATE_S


def world(**more: Any) -> World:
    settings = {"heartbeat_s": EVERY_S, **more.pop("nve_settings", {})}
    made = World(nve_settings=settings, **more)
    for name in ("a", "b", "c"):
        made.nodes[name].capacity = HOST
    return made


def liveness(made: World, name: str = "a") -> str:
    return made.manager.liveness_of(name, made.now)


def told(made: World, event: str) -> list[tuple[float, str]]:
    return [(at, e.detail["nve"]) for at, _, e in made.events if e.name == event]


def pulses(made: World) -> dict[str, Any]:
    return made.manager.pulses


def test_an_nve_that_beats_is_alive_and_tells_what_is_free():
    made = world()
    made.run(2.5)
    assert {name: liveness(made, name) for name in "abc"} == dict.fromkeys("abc", "alive")
    assert pulses(made)["a"].capacity == HOST
    assert pulses(made)["a"].boot == made.nodes["a"].boot


def test_the_first_of_them_tells_what_was_measured():
    made = world()
    made.run_until(lambda: "a" in pulses(made))
    assert pulses(made)["a"].capacity == HOST
    made.restart("a")
    boot = made.nodes["a"].boot
    made.run_until(lambda: pulses(made)["a"].boot == boot)
    assert pulses(made)["a"].capacity == HOST


def test_a_measurement_that_hangs_keeps_no_heartbeat_back_for_long():
    made = world()
    made._measured = lambda node, life: None  # type: ignore[method-assign]
    made.restart("a")
    made.run_until(lambda: liveness(made) == "alive", EVERY_S + 0.5)


def test_three_missed_and_it_is_dead_and_back_with_the_next():
    made = world()
    made.run(2.2)
    last = pulses(made)["a"].heard
    made.crash("a")
    made.run_until(lambda: liveness(made) == "silent")
    assert made.now - last <= EVERY_S + LATE_S + 0.51
    made.run_until(lambda: told(made, "nve.silent"))
    ((at, who),) = told(made, "nve.silent")
    assert who == "a"
    assert at - last == pytest.approx(DEAD_S, abs=0.01)
    assert at - last <= MISSED * EVERY_S + 1.0
    manager = made.manager
    assert manager._silent_since("a") == pytest.approx(last)
    assert manager._silent_since("b") is None
    made.restart("a")
    made.run_until(lambda: told(made, "nve.back"))
    made.run(0.5)
    assert liveness(made) == "alive"
    assert told(made, "nve.restarted")[-1][1] == "a"


def test_nothing_else_follows_from_death():
    """Fail static: binding, routes and everybody else's entries stay as they are."""
    made = world(nve_settings={"lifetime_s": 40.0})
    vm = VmKey(0, "vm-1")
    made.start_vm(vm, "a", (ETH0,))
    made.run(2.0)
    manager, kernel = made.manager, made.nodes["a"].kernel
    before = dict(kernel.held)
    made.cut.add(frozenset(("a", MANAGER)))
    made.run_until(lambda: told(made, "nve.silent"))
    assert manager.cache.bindings[vm].nve.nve_id == "a"
    assert manager.cache.bindings[vm].state == "serving"
    assert dict(kernel.held) == before
    made.cut.clear()
    made.run_until(lambda: told(made, "nve.back"))
    assert not told(made, "nve.restarted")


def test_a_manager_that_restarts_grants_the_whole_time_again():
    made = world()
    made.run(2.2)
    made.crash("a")
    made.run(2.0)
    made.restart(MANAGER)
    born = made.now
    assert liveness(made) == "alive"
    made.run_until(lambda: told(made, "nve.silent"))
    ((at, who),) = told(made, "nve.silent")
    assert who == "a"
    assert at == pytest.approx(born + DEAD_S, abs=0.01)
    made.run(5.0)
    assert liveness(made, "b") == "alive"


def test_a_manager_that_stood_still_judges_nobody_by_that_time():
    made = world()
    made.run(2.2)
    manager = made.manager
    manager._liveness_timer(made.now + 60.0)
    assert not any(pulse.dead for pulse in manager.pulses.values())
    made.run(10.0)
    assert not told(made, "nve.silent")


def test_an_nve_of_an_older_version_is_not_judged():
    made = World()
    made.run(30.0)
    assert liveness(made) == "none"
    assert not told(made, "nve.silent")


def test_bad_weather_kills_nobody():
    made = world(weather=Weather(loss=0.2, repetition=0.2, delay_s=(0.001, 0.3)), seed=7)
    made.run(300.0)
    assert not told(made, "nve.silent")


def test_heartbeats_do_not_pile_up_and_write_nothing():
    made = world()
    made.run(3.0)
    manager, edge = made.manager, made.edge("a")
    disk = dict(made.nodes[MANAGER].disk)
    writes = []
    made.observe = lambda node, what, value: writes.append(node) if what == "durable" else None
    made.run(20.0)
    assert writes == []
    assert made.nodes[MANAGER].disk == disk
    assert not manager.channel.peers["a"].replies
    made.crash(MANAGER)
    made.run(60.0)
    assert len(edge.channel._outstanding) == 1


def test_what_was_overheard_before_a_restart_of_the_manager_says_nothing():
    """Heartbeats' marks are not durable: a restarted manager takes them once more, and sees by
    Known Boot that they are old."""
    made = world()
    made.run(2.2)
    made.overheard = []
    made.run(3.0)
    old = len(made.overheard)
    made.crash("a")
    made.restart(MANAGER)
    born = made.now
    made.run(1.0)
    for index in range(old):
        if made.overheard[index][0].node_id == MANAGER:
            made.say_again(index)
            made._pump(made.nodes[MANAGER])
    made.run_until(lambda: "a" in [who for _, who in told(made, "nve.silent")])
    assert told(made, "nve.silent")[0][0] - born == pytest.approx(DEAD_S, abs=0.01)


def test_the_second_of_two_addresses_is_tried_within_the_interval():
    """The first of the manager's addresses leads nowhere: the repetition goes to the second."""
    made = world()
    made.run(1.5)
    gone = made.nodes[MANAGER].nve.locators[0]
    send = made._send

    def lossy(node: Any, output: Any) -> None:
        if output.destination.address != gone:
            send(node, output)

    made._send = lossy  # type: ignore[method-assign]
    made.run(30.0)
    assert liveness(made) == "alive"
    assert not told(made, "nve.silent")


def test_sequence_numbers_turn_over():
    one = Pulse(1, 1.0, 0.0, sequence=0xFFFF_FFFF)
    assert one.is_older_than(0)
    assert not one.is_older_than(0xFFFF_FFFF)
    assert not one.is_older_than(0xFFFF_FFF0)


def test_they_cross_boxes_and_outlive_restarts_of_boxes_and_manager():
    made = NaptWorld(nve_settings={"heartbeat_s": EVERY_S})
    made.run(4.0)
    assert {name: liveness(made, name) for name in "abc"} == dict.fromkeys("abc", "alive")
    assert made.manager.pulses["a"].boot == made.edge("a").channel.boot_to(MANAGER)
    made.restart("x")
    made.run(5.0)
    made.restart(MANAGER)
    made.run(5.0)
    heard = {name: pulse.heard for name, pulse in made.manager.pulses.items()}
    assert min(heard.values()) > made.now - 1.5
    assert not told(made, "nve.silent")
    made.crash("a")
    made.run_until(lambda: told(made, "nve.silent"))
    assert [who for _, who in told(made, "nve.silent")] == ["a"]
    made.restart("a")
    made.run_until(lambda: told(made, "nve.back"), 10.0)
