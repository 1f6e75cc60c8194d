"""One step of a trace: what a node does with packets for the address, and what is wrong with it.

A node's answer is held against what the manager has on record.  Not here: whom to ask and in which
order (trace.py), the records (trace_facts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmmobility.daemon.trace_facts import Answer, Facts, Step
from vmmobility.drivers.linux.ownership import HOLD_TABLE, MAIN_TABLE
from vmmobility.engine.binding_update_list import DATA_PLANE
from vmmobility.engine.fabric_record import Lead
from vmmobility.engine.manager_checks import HOLDS, WITHOUT_REDIRECT
from vmmobility.wire.registry import Phase, RouteState

NOTHING_WRONG = ("serving", "released")  # states of a binding
LOCAL_TABLE = 255
LEADS_ITSELF = (RouteState.KEEP, RouteState.LEAD, RouteState.ANNOUNCE)
PROTOCOLS = {2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 16: "dhcp",
             77: "vmmobility", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip",
             196: "static"}  # fmt: skip
RUNS = ("running", "arrived")


def manager_step(facts: Facts) -> Step:
    """Who has the address, by the binding cache."""
    binding = facts.binding
    step = Step(facts.manager, "manager", "bound to")
    if binding is None:
        step.decision = "bound to nobody"
        step.wrong.append("no VM is registered with this address")
        if facts.onboarded:
            step.detail.append(f"VM {facts.onboarded} is onboarded with it")
        if facts.entry is not None:
            step.detail.append(f"routers are being told to forget VM {facts.entry.vm}")
        return step
    step.to = binding.nve.nve_id
    place = "at home" if binding.at_home else "away" + (f" from {facts.home}" if facts.home else "")
    step.detail += [f"VM {binding.vm}, epoch {binding.epoch}", place]
    if binding.previous:
        step.detail.append(f"previous {', '.join(binding.previous)}")
    for nve, vm in facts.others.items():
        step.detail.append(f"shares the load with VM {vm} at {nve}")
    if facts.move is not None:
        move = facts.move
        step.detail.append(
            f"move {move.move_id} to {move.destination.nve_id} is {move.state.value}"
        )
    if binding.state not in NOTHING_WRONG:
        step.wrong.append(f"the binding is {binding.state}")
    if binding.ending:
        step.wrong.append("the binding is being removed")
    return step


def silent_step(facts: Facts, node: str) -> Step:
    """A node that has not answered."""
    step = Step(node, facts.role(node), "silent", silent=True)
    step.wrong.append("does not answer")
    told = facts.told(node)
    if told is not None:
        step.detail.append(_told(told.lead, told.epoch))
    return step


# ---- routers -------------------------------------------------------------------------------------


def router_step(facts: Facts, node: str, answer: Answer) -> Step:
    """How a router's kernel leads the address, and whether that is what it was told."""
    step = Step(node, facts.role(node), "unknown")
    if answer["refused"]:
        step.wrong.append(_words(f"refuses to say: {answer['refused']}", answer))
        return step
    row = leading(answer)
    if row is not None:
        step.decision, step.to = _decision(facts, row), _leads_to(facts, row)
        step.detail.append(_route(row))
        if row.get("kind") == "local":
            step.wrong.append("takes packets for the address itself")
        elif row.get("kind") != "unicast":
            step.wrong.append(f"drops them: {row.get('kind')}")
    elif not answer["more"]:
        step.decision = "no route"
        step.wrong.append("no route leads there")
    told = facts.told(node)
    if told is not None and (told.lead is not None or not told.acknowledged):
        step.detail.append(_told(told.lead, told.epoch))
    if answer["direct"] is not None:
        step.detail.append("direct" if answer["direct"] else "not direct")
    step.wrong += _against_orders(facts, node, answer)
    step.wrong += _against_binding(facts, node, answer, row)
    return step


def leading(answer: Answer) -> Mapping[str, Any] | None:
    """The row that packets follow; None if there is none, or if it was cut off."""
    return next((row for row in answer["rows"] if row.get("leads") is True), None)


def hops(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A route's next hops, as far as they were told."""
    found = row.get("next_hops")
    return [hop for hop in found if isinstance(hop, dict)] if isinstance(found, list) else []


def _against_orders(facts: Facts, node: str, answer: Answer) -> list[str]:
    wrong: list[str] = []
    told = facts.told(node)
    lead = told.lead if told else None
    state = lead.state if lead else RouteState.NONE
    if told is not None and not told.acknowledged:
        wrong.append(f"has not yet done what it was told: {_told(lead, told.epoch)}")
    elif told is not None and answer["epoch"] != told.epoch:
        wrong.append(f"is at epoch {answer['epoch']}, was told epoch {told.epoch}")
    elif answer["route"] != state.name.lower():
        wrong.append(f"was told {state.name.lower()}, and is at {answer['route']}")
    ours = {row.get("table") for row in answer["rows"] if row.get("ours") is True}
    if state in LEADS_ITSELF and HOLD_TABLE not in ours and not answer["more"]:
        wrong.append(f"was told to {state.name.lower()}, and holds no route in table {HOLD_TABLE}")
    if state is RouteState.ANNOUNCE and MAIN_TABLE not in ours and not answer["more"]:
        wrong.append("was told to announce, and holds no host route in the main table")
    for table, states in ((HOLD_TABLE, LEADS_ITSELF), (MAIN_TABLE, (RouteState.ANNOUNCE,))):
        if table in ours and state not in states and not facts.others:
            wrong.append(f"a stale route of ours stands in {_table(table)}")
    return wrong


def _against_binding(
    facts: Facts, node: str, answer: Answer, row: Mapping[str, Any] | None
) -> list[str]:
    wrong: list[str] = []
    told = facts.told(node)
    lead = told.lead if told else None
    if facts.binding is None:
        return wrong
    if lead is not None and answer["direct"] is False and lead.state is not RouteState.KEEP:
        wrong.append(f"the fabric does not lead straight to {lead.serving.nve_id}")
    if row is None:
        return wrong
    keeps = lead is not None and lead.state is RouteState.KEEP and lead.previous is not None
    serving = lead.serving.nve_id if lead else facts.serving
    expected = lead.previous.nve_id if keeps and lead and lead.previous else serving
    for name in dict.fromkeys(_hop_nodes(facts, row)):
        if name in facts.nves and name not in (expected, *facts.others):
            wrong.append(f"leads to {name}, and {expected} serves")
    ours = row.get("ours") is True
    alone = facts.move is None and not facts.others
    if facts.binding.at_home and alone and not ours and _is_host(facts, row):
        wrong.append("a stale host route: the VM is at home, where its covering prefix leads")
    return wrong


def _hop_nodes(facts: Facts, row: Mapping[str, Any]) -> list[str]:
    return [name for hop in hops(row) if (name := facts.node_at(hop.get("gateway")))]


def _leads_to(facts: Facts, row: Mapping[str, Any]) -> str | None:
    """In words: the nodes, or addresses, or interfaces of its next hops."""
    found = []
    for hop in hops(row):
        gateway = hop.get("gateway")
        name = facts.node_at(gateway)
        found.append(name or str(gateway or hop.get("interface")))
    total = row.get("hops")
    if isinstance(total, int) and total > len(found):
        found.append("…")
    return ", ".join(dict.fromkeys(found)) or None


def _is_host(facts: Facts, row: Mapping[str, Any]) -> bool:
    """Whether a route is no wider than the VM's own prefix."""
    length = _length(row)
    prefixes = [p for i in facts.binding.interfaces for p in i.prefixes] if facts.binding else []
    own = [p.prefixlen for p in prefixes if facts.address in p]
    return length is not None and length >= min(own, default=facts.address.max_prefixlen)


def _length(row: Mapping[str, Any]) -> int | None:
    length = str(row.get("prefix", "")).rpartition("/")[2]
    return int(length[:3]) if length.isascii() and length.isdecimal() else None


def _decision(facts: Facts, row: Mapping[str, Any]) -> str:
    table, kind, ours = row.get("table"), row.get("kind"), row.get("ours") is True
    if table == LOCAL_TABLE or kind == "local":
        return "its own address"
    if kind != "unicast":
        return str(kind)
    if table == HOLD_TABLE:
        return "hold table"
    if ours:
        return "host route of ours"
    if _is_host(facts, row):
        return "host route"
    return "default route" if _length(row) == 0 else "covering prefix"


def _route(row: Mapping[str, Any]) -> str:
    protocol = row.get("protocol")
    by = PROTOCOLS.get(protocol) if isinstance(protocol, int) else None
    devices = dict.fromkeys(str(hop["interface"]) for hop in hops(row) if "interface" in hop)
    words = [str(row.get("prefix", "")), f"by {by or protocol}" if protocol else ""]
    words += [f"in {_table(row.get('table'))}", f"dev {', '.join(devices)}" if devices else ""]
    return " ".join(word for word in words if word)


def _table(table: object) -> str:
    known = {MAIN_TABLE: "the main table", LOCAL_TABLE: "table local"}
    return known.get(table, f"table {table}") if isinstance(table, int) else "a rule"


def _told(lead: Lead | None, epoch: int) -> str:
    if lead is None:
        return f"told nothing (epoch {epoch})"
    return f"told {lead.state.name.lower()} (epoch {epoch})"


# ---- NVEs ----------------------------------------------------------------------------------------


def nve_step(facts: Facts, node: str, answer: Answer) -> Step:
    """What an NVE does with packets for the VM, and whether it should."""
    step = Step(node, facts.role(node), "leaves it to the fabric")
    forwarding = forwarding_of(answer)
    if forwarding == "local":
        step.decision, step.to = "delivers to", str(facts.vm)
    elif forwarding == "redirect":
        step.decision, step.to = "redirects to", redirects_to(answer)
    step.detail.append(f"{answer['phase']}, epoch {answer['epoch']}, guest {answer['guest']}")
    step.detail += _kernel(answer["shown"])
    if answer["reason"]:
        step.wrong.append(f"its kernel or guest differed: {answer['reason']}")
    if node == facts.serving:
        step.wrong += _wrong_at_serving(facts, answer)
    elif facts.move is None or node != facts.move.destination.nve_id:
        step.wrong += _wrong_elsewhere(facts, node, answer)
    return step


def forwarding_of(answer: Answer) -> str:
    """local, redirect or none; by the phase, where the NVE does not say."""
    shown = answer["shown"].get("forwarding")
    usual = DATA_PLANE[Phase[answer["phase"].upper()]][1].value
    return shown if shown in ("local", "redirect", "none") else usual


def redirects_to(answer: Answer) -> str | None:
    """The NVE that it redirects to."""
    target = answer["target"] or answer["shown"].get("target")
    return target if isinstance(target, str) else None


_COUNTERS = {
    "delivered": "delivered",
    "redirected": "redirected",
    "dropped": "dropped",
    "outside": "of these for their senders outside the data centres",
    "too_big": "too big",
}


def _kernel(shown: Mapping[str, Any]) -> list[str]:
    """Taps and counters, as the NVE tells them."""
    ports = shown.get("ports")
    words = []
    if isinstance(ports, list) and ports:
        words.append(f"taps {', '.join(map(str, ports))}")
    counts = [
        f"{shown[name]} {word}"
        for name, word in _COUNTERS.items()
        if isinstance(shown.get(name), int) and shown[name]
    ]
    return words + ([f"packets {', '.join(counts)}"] if counts else [])


def _wrong_at_serving(facts: Facts, answer: Answer) -> list[str]:
    wrong: list[str] = []
    binding = facts.binding
    phase = Phase[answer["phase"].upper()]
    if phase not in HOLDS:
        wrong.append(f"should serve the VM, and is in phase {answer['phase']}")
    elif facts.move is None:
        if forwarding_of(answer) != "local":
            wrong.append("should deliver to its own taps")
        if binding is not None and answer["epoch"] != binding.epoch:
            wrong.append(f"is at epoch {answer['epoch']}, the binding at {binding.epoch}")
    return wrong


def _wrong_elsewhere(facts: Facts, node: str, answer: Answer) -> list[str]:
    """A previous NVE redirects to the serving one; so does the home, unless the fabric leads past
    it; all others do nothing."""
    wrong: list[str] = []
    binding = facts.binding
    if binding is None:
        return wrong
    phase = Phase[answer["phase"].upper()]
    previous = binding.previous.get(node)
    if answer["guest"] in RUNS:
        wrong.append(f"a guest of the VM runs here, and {facts.serving} serves it")
    if forwarding_of(answer) == "redirect":
        if redirects_to(answer) != facts.serving:
            wrong.append(f"redirects to {redirects_to(answer)}, and {facts.serving} serves")
        elif answer["epoch"] < binding.epoch:
            wrong.append(f"redirects by epoch {answer['epoch']}, the binding is at {binding.epoch}")
    elif previous is not None and phase in WITHOUT_REDIRECT:
        wrong.append(f"is a previous NVE, and redirects nowhere: it is in phase {answer['phase']}")
    elif node == facts.home and not binding.fabric_direct:
        wrong.append("the covering prefix leads here, and it redirects nowhere")
    elif forwarding_of(answer) == "local":
        wrong.append(f"delivers to its own taps, and {facts.serving} serves")
    if previous is not None and previous.acknowledged < binding.epoch:
        wrong.append(f"has not acknowledged the redirect of epoch {binding.epoch}")
    return wrong


def _words(what: str, answer: Answer) -> str:
    return f"{what}: {answer['reason']}" if answer["reason"] else what
