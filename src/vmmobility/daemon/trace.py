"""Why does traffic for an address go where it goes: `GET /v1/trace/{address}`.

Without a beginning every router, and every NVE that has to do with the VM, is asked at once.  From
a node on, the way is followed hop by hop: by the addresses of next hops, as far as they are some
node's, else by data centre.  Not here: what is wrong with a step (trace_steps.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from vmmobility.daemon.trace_facts import Answer, Facts, Step, facts_of
from vmmobility.daemon.trace_steps import (
    forwarding_of,
    hops,
    leading,
    manager_step,
    nve_step,
    redirects_to,
    router_step,
    silent_step,
)
from vmmobility.engine.manager import ManagerEngine
from vmmobility.errors import BadRequest, NotFound
from vmmobility.wire.values import Address, VmKey

LONGEST_WAY = 32  # nodes

Ask = Callable[
    [VmKey | None, Address, Sequence[str], float], Awaitable[Mapping[str, Answer | None]]
]
"""ask(vm, address, nodes, seconds): what each node has answered by then."""


class Tracer:
    """The traces of one manager.  ask: has the engine ask these nodes."""

    def __init__(self, engine: ManagerEngine, ask: Ask) -> None:
        self._engine = engine
        self._ask = ask

    async def trace(self, address: str, start: str, seconds: float) -> dict[str, Any]:
        """The steps, and whether all is as it should be (docs/api.md).

        start: where the way begins, "" for all nodes; seconds: how long each question may take.
        Raises BadRequest, NotFound.
        """
        facts = facts_of(self._engine, _address(address))
        if start and start not in facts.nves and start not in facts.sites:
            raise NotFound(
                f"no NVE or router {start} is known",
                "see `vmmob show nves` and `vmmob show routers`",
            )
        steps = [manager_step(facts)]
        arrives: bool | None = None
        if start:
            way, arrives = await self._follow(facts, start, seconds)
            steps += way
        else:
            nodes = [*_routers(facts), *facts.concerned()]
            answers = await self._ask(facts.vm, facts.address, nodes, seconds)
            steps += [_step(facts, node, answers.get(node)) for node in nodes]
        return {
            "address": str(facts.address),
            "vni": facts.vm.vni if facts.vm else 0,
            "vm": facts.vm.vm_id if facts.vm else None,
            "serving": facts.serving,
            "from": start or None,
            "arrives": arrives,
            "ok": not any(step.wrong for step in steps),
            "silent": [step.node for step in steps if step.silent],
            "steps": [step.row() for step in steps],
        }

    async def _follow(
        self, facts: Facts, start: str, seconds: float
    ) -> tuple[list[Step], bool | None]:
        """The way from a node on, and whether it ends at the VM; None: nobody knows."""
        steps: list[Step] = []
        visited: list[str] = []
        node: str | None = start
        while node is not None and len(steps) < LONGEST_WAY:
            visited.append(node)
            if node in facts.others:
                step = Step(node, facts.role(node), "delivers to", facts.others[node])
                step.detail.append("a member of the same group; it was not asked")
                return [*steps, step], True
            answer = (await self._ask(facts.vm, facts.address, [node], seconds)).get(node)
            step = _step(facts, node, answer)
            steps.append(step)
            if node in facts.nves and (answer is None or facts.vm is None):
                return steps, None
            if answer is None or answer["refused"]:
                return steps, None
            if node in facts.nves and forwarding_of(answer) == "local":
                return steps, node == facts.serving
            if node in facts.sites and _ends(answer):
                return steps, False
            node, known = _next(facts, node, answer, visited)
            if node is not None and not known:
                step.detail.append(f"{node} is next by its data centre, not by its address")
            if node in visited:
                step.wrong.append(f"packets go in a circle: {node} had them before")
                return steps, False
        return steps, None


def _address(text: str) -> Address:
    try:
        found = ip_address(text)
    except ValueError:
        found = None
    if found is None or getattr(found, "scope_id", None):
        raise BadRequest(
            f"{text!r} is no address", "write an IPv4 or IPv6 address, as 10.1.0.5 or fd01::5"
        )
    return found


def _routers(facts: Facts) -> list[str]:
    """Default routers first; each data centre's together."""
    sites = sorted(facts.sites.values(), key=lambda site: (site.dc, site.border))
    return [site.router_id for site in sites]


def _step(facts: Facts, node: str, answer: Answer | None) -> Step:
    if node in facts.sites:
        judge: Callable[[Facts, str, Answer], Step] = router_step
    elif facts.vm is None:
        return Step(node, facts.role(node), "not asked", detail=["no VM has the address"])
    else:
        judge = nve_step
    return silent_step(facts, node) if answer is None else judge(facts, node, answer)


def _ends(answer: Answer) -> bool:
    """Whether a router leads packets nowhere."""
    row = leading(answer)
    return not answer["more"] if row is None else row.get("kind") != "unicast"


def _next(facts: Facts, node: str, answer: Answer, visited: list[str]) -> tuple[str | None, bool]:
    """The node that gets the packets from here, and whether it is known to be it."""
    if node in facts.nves:
        if forwarding_of(answer) == "redirect":
            return redirects_to(answer), True
        return _into_the_fabric(facts, node, visited)
    row = leading(answer)
    if row is None:
        return None, True
    named = [facts.node_at(hop.get("gateway")) for hop in hops(row)]
    for name in named:
        if name is not None and (name in facts.sites or name in facts.nves):
            return name, True
    guess = _by_data_centre(facts, node, answer)
    return (None, False) if guess in visited else (guess, False)


def _into_the_fabric(facts: Facts, nve: str, visited: list[str]) -> tuple[str | None, bool]:
    """What an NVE does not take itself goes to its default router."""
    routers = facts.routers_of(nve)
    if routers:
        return routers[0], True
    goal = facts.serving if facts.binding and facts.binding.at_home else facts.home
    return (None, False) if goal in visited else (goal, False)


def _by_data_centre(facts: Facts, router: str, answer: Answer) -> str | None:
    """The next agent on the way to where this router leads, if it is built as usual."""
    ours = any(row.get("ours") is True and row.get("leads") is True for row in answer["rows"])
    straight = ours or answer["direct"] is True or facts.home is None
    goal = facts.serving if straight else facts.home
    last = facts.routers_of(goal) if goal else []
    if goal is None or not last:
        return goal
    if router in last:
        return goal
    there, here = facts.sites[last[0]], facts.sites[router]
    if here.dc == there.dc:
        return there.router_id
    edge = there.dc if here.border else here.dc
    borders = [s.router_id for s in facts.sites.values() if s.border and s.dc == edge]
    return borders[0] if borders else there.router_id
