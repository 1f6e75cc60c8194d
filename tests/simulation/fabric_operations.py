"""What befalls routers and the fabric between them, beside what befalls any node.

Not here: all other verbs (operations.py), how they are drawn (draw_fabric.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tests.engine.network import World


class FabricOperations:
    """Verbs; a part of Operations."""

    world: World
    hit: Callable[[str, str], None]

    def do_refuse(self, name: str, count: str) -> None:
        """A router's kernel refuses its next changes."""
        fabric = self.world.fabric
        if fabric is not None:
            self.hit("router's kernel fails", name)
            fabric.fail_next[name] += ["no such device"] * int(count)

    def do_bar(self, name: str, origin: str, length: str) -> None:
        """For so long a router hears nothing of what another one announces."""
        fabric = self.world.fabric
        if fabric is not None and name != origin:
            self.hit("fabric breaks", name)
            fabric.bar(name, origin)
            self.world.later(float(length), partial(fabric.unbar, name, origin))

    def calm_fabric(self) -> None:
        fabric = self.world.fabric
        if fabric is not None:
            for name, origin in sorted(fabric.barred):
                fabric.unbar(name, origin)
            for failures in fabric.fail_next.values():
                failures.clear()

    def routers_of(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Which routers "source-router" and "destination-router" mean in a move."""
        fabric = self.world.fabric
        found = {f"{p}-router": fabric.router_of(nve) for p, nve in parts.items()} if fabric else {}
        return {part: name for part, name in found.items() if name is not None}
