"""Mappings that end, come back, or pass between NAPT boxes: what the kernel holds at each step."""

from __future__ import annotations

from tests.engine.napt_world import PRIVATE, VM, NaptWorld
from vmmobility.engine.napt_settings import NaptPolicy

PUBLIC = "198.51.100.2"  # of VM: a's locator takes the pool's first
HAND_OVER = {"policy": NaptPolicy.HAND_OVER}


def handing_world(**more: object) -> NaptWorld:
    """x hands over what is behind y; VM runs at a."""
    world = NaptWorld(box_settings={"x": {**HAND_OVER, **more}})
    world.run(2.0)
    assert not world.begin().error
    return world


def move_to(world: NaptWorld, to: str) -> None:
    """Until the mapping is translated there, too."""
    box = world.site(to)
    move = world.moved(to)
    assert move.ok, move.reason
    world.run_until(lambda: world.box(box).mappings.of_vm(VM)[0].ours)
    world.run(0.1)


def test_back_again_while_it_is_still_translated_there_needs_no_detour() -> None:
    world = handing_world(linger_s=30.0)
    move_to(world, "b")
    move_to(world, "a")
    [mapping] = world.box("y").mappings.of_vm(VM)
    assert mapping.lingers, "translated at y, until routes have turned"
    both: list[object] = []

    def look() -> bool:
        state = world.boxes["y"].state
        if {m.private for m in state.static} & {d.private for d in state.detours}:
            both.append(state)
        return move.ok is not None

    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(look)
    assert move.ok, move.reason
    assert not both, "a static mapping and a detour of one address"
    world.run_until(
        lambda: world.boxes["y"].static.get(str(PRIVATE)) == PUBLIC and not mapping.lingers
    )
