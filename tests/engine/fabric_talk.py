"""The scenario language about routers: how a world gets them, what befalls them, what they hold.

Not here: the language itself (conversation.py), the fabric (fake_fabric.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.engine.fake_fabric import FakeFabric
from tests.engine.network import World
from tests.engine.node import Node
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.fabric_routes import RouteAction, VmRoutes
from vmmobility.wire.registry import RouteState
from vmmobility.wire.values import VmKey


class FabricTalk:
    """Verbs; a part of Conversation."""

    @property
    def world(self) -> World:
        raise NotImplementedError

    @property
    def _fabric(self) -> FakeFabric:
        assert self.world.fabric is not None
        return self.world.fabric

    def do_bar(self, router: str, origin: str) -> None:
        """bar x from rb: what rb announces does not come to x."""
        self._fabric.bar(router, origin)

    def do_unbar(self, router: str, origin: str) -> None:
        self._fabric.unbar(router, origin)

    def do_refuse(self, router: str, *words: str) -> None:
        """refuse rb no such device: its kernel, the next change of its routes."""
        self._fabric.fail_next[router].append(" ".join(words))


def sites(text: str) -> tuple[RouterSite, ...]:
    """Routers from "ra:a/rb:b,c/x": each with the NVEs behind it; a border router has none."""
    parts = [part.partition(":") for part in text.split("/")]
    return tuple(
        RouterSite(name, border=not nves, serves=tuple(nves.split(",")) if nves else ())
        for name, _, nves in parts
    )


def fabric_options(given: Mapping[str, str]) -> dict[str, Any]:
    """A World's arguments from the words of `world`."""
    options: dict[str, Any] = {}
    if "nves" in given:
        options["nves"] = tuple(given["nves"].split(","))
    if "routers" in given:
        options["routers"] = sites(given["routers"])
    if "fabric" in given:
        least, _, most = given["fabric"].partition("..")
        options["fabric_delay_s"] = (float(least), float(most))
    return options


def gate_settings(given: Mapping[str, str]) -> dict[str, Any]:
    """The manager's settings from the words of `world`."""
    found: dict[str, Any] = {"gate_s": float(given["gate"])} if "gate" in given else {}
    return found | ({"gate_policy": given["policy"]} if "policy" in given else {})


def describe_routes(routes: VmRoutes) -> str:
    """What a router holds of a VM, in words."""
    if routes.state is RouteAction.NONE or routes.serving is None:
        return "nothing"
    return f"{routes.state.value} to {routes.serving.nve_id}"


def entry_in_words(node: Node, vm: VmKey) -> str:
    """What a router knows of a VM; "" if that is nothing."""
    entry = node.router.entries.get(vm) if node.router else None
    if entry is None or entry.state is RouteState.NONE:
        return ""
    sight = "" if entry.sight is None else ", direct" if entry.sight.direct else ", not direct"
    does = describe_routes(entry.routes())
    return f"{entry.state.name} epoch {entry.epoch}, {does}{sight}"
