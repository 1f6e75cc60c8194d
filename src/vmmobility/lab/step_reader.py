"""One [[step]] of a scenario's TOML -> its value, fully checked against the fabric.

Every mistake is a LabError that names the step, the key and the remedy.  Not here: the rest of a
scenario's file (scenario.py), what a step does (steps.py).  Rests on step_types and toml_table.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator

from vmmobility.drivers.frr.plan import daemons
from vmmobility.errors import LabError
from vmmobility.lab.fabric import Fabric, Link
from vmmobility.lab.faults import find_link
from vmmobility.lab.frr_plans import router_plans
from vmmobility.lab.napt_daemons import boxes_of
from vmmobility.lab.step_types import (
    Assertion,
    Carrier,
    Drain,
    Exec,
    Fault,
    Guest,
    Kill,
    KillFrr,
    LookAtStandby,
    LoseState,
    Move,
    Pause,
    Power,
    Protect,
    Remember,
    Repeat,
    Replay,
    Start,
    StartFrr,
    Step,
)
from vmmobility.lab.toml_table import Table

GUEST_STEPS = ("start-vm", "stop-vm", "expect", "start-by-hand", "migrate-by-hand", "stop-by-hand")
STEPS = (
    "move", "drain", "protect", "look-at-standby", "wait", "kill", "start", "restart",
    "power-off", "power-on", "lose-state", "cut", "loss", "heal", "link-down", "link-up",
    "kill-frr", "start-frr", "exec", "vmmob",
    *GUEST_STEPS, "remember", "replay", "assert", "repeat",
)  # fmt: skip
SIZE_ASSERTIONS = ("packet-size", "no-silent-drop", "no-broken-bulk", "too-big-counted")
ASSERTIONS = (
    "no-loss", "no-broken-tcp", "serving", "only-serving-route", "route", "binding", "reachable",
    "unreachable", "hops", "command", "vmmob", "event", "no-event", "moves-done", "sound",
    "bindings-unchanged", "routes-unchanged", "refreshed", "replay-dropped", "guest",
    "redirects", "direct-path", "no-host-routes", "drained", "routes-at-most",
    "collected", "external-not-tunnelled", "disk-writes", "flows-stay", "flows-spread", "flows-at",
    "taken-over", "runs-at", *SIZE_ASSERTIONS,
)  # fmt: skip
VIAS = ("tunnel", "host-route", "local", "none")
PROCESSES = ("daemon", "relay", "both")
COLLECTED_STATES = ("away", "home")
GUEST_STATES = ("running", "paused", "none")
PHASES = ("before", "during", "after")
_PATIENT = ("only-serving-route", "direct-path", "no-host-routes", "drained", "packet-size")
_PLAIN = ("no-broken-tcp", "flows-stay", "no-broken-bulk", "moves-done", "bindings-unchanged",
          "routes-unchanged", "refreshed", "replay-dropped",
          "external-not-tunnelled")  # fmt: skip


def read_steps(table: Table, key: str, fabric: Fabric) -> Iterator[Step]:
    """The steps of the array of tables `key`."""
    for entry in table.tables(key):
        yield _step(entry, fabric)


def _step(entry: Table, fabric: Fabric) -> Step:
    do = entry.choice("do", STEPS)
    if do in GUEST_STEPS:
        return _guest(entry, fabric, do)
    if do in ("kill", "start", "restart", "power-off", "power-on", "lose-state"):
        return _host_step(entry, fabric, do)
    if do == "move":
        return Move(
            vm_of(entry, fabric), _nve(entry, fabric, "to"), entry.take("wait", bool, True),
            entry.choice("expect", ("ok", "fail", "any"), "ok"),
            entry.take("timeout_s", float, 60.0),
        )  # fmt: skip
    if do == "protect":
        return _protect(entry, fabric)
    if do == "look-at-standby":
        return LookAtStandby(_with_records(entry, fabric), entry.take("timeout_s", float, 20.0))
    if do == "drain":
        known = [n.name for n in fabric.of_kind("nve")]
        to = tuple(_one_of(entry, "to", name, known) for name in entry.strings("to", ()))
        parallel, timeout_s = entry.take("parallel", int, 4), entry.take("timeout_s", float, 120.0)
        return Drain(_nve(entry, fabric, "nve"), to, parallel, timeout_s)
    if do == "wait":
        if entry.has("seconds"):
            return Pause(entry.take("seconds", float))
        return _assertion(entry, fabric, "until", 30.0)
    if do in ("cut", "loss", "heal"):
        return _fault(entry, fabric, do)
    if do in ("link-down", "link-up", "kill-frr", "start-frr"):
        return _fabric_step(entry, fabric, do)
    if do in ("exec", "vmmob"):
        status = None if entry.take("any_status", bool, False) else entry.take("status", int, 0)
        node = _daemon(entry, fabric) if do == "vmmob" else _named(entry, fabric)
        return Exec(node, _command(entry), status, do == "vmmob")
    if do == "remember":
        return Remember()
    if do == "replay":
        return Replay(_node(entry, fabric, "from"))
    if do == "repeat":
        return Repeat(entry.take("times", int), tuple(read_steps(entry, "step", fabric)))
    return _assertion(entry, fabric, "what", 0.0)


def _protect(entry: Table, fabric: Fabric) -> Protect:
    vm = vm_of(entry, fabric)
    if fabric.vm(vm).kind == "external":
        raise LabError(f"{entry.where}: {vm} is external", "an NVE protects guests of its own")
    return Protect(
        vm,
        _nve(entry, fabric, "to"),
        entry.take("every_s", float, 5.0),
        entry.take("lease_s", float) if entry.has("lease_s") else None,
        entry.take("checkpoints", int, 3),
        entry.take("timeout_s", float, 60.0),
    )


def _with_records(entry: Table, fabric: Fabric) -> str:
    vm = vm_of(entry, fabric)
    if not fabric.vm(vm).disk_mib:
        raise LabError(f"{entry.where}: {vm} writes no records", "give it a disk_mib")
    return vm


def _host_step(entry: Table, fabric: Fabric, do: str) -> Step:
    if do == "kill":
        process = entry.choice("process", PROCESSES, "daemon")
        nodes = _daemons(entry, fabric)
        if process == "relay" and (strange := set(nodes) - {n.name for n in fabric.of_kind("nve")}):
            raise LabError(f"{entry.where}: {min(strange)} has no relay", "name NVEs only")
        return Kill(nodes, _signal(entry), process)
    if do in ("start", "restart"):
        return Start(_daemons(entry, fabric), kill_first=do == "restart")
    nve = _nve(entry, fabric, "node")
    return LoseState(nve) if do == "lose-state" else Power(nve, do == "power-on")


def _fabric_step(entry: Table, fabric: Fabric, do: str) -> Step:
    if do in ("link-down", "link-up"):
        link = find_link(fabric, entry.take("link", str), entry.where)
        if link.shared:
            raise LabError(f"{entry.where}: {link.name} is a segment", "name a link of two nodes")
        return Carrier(link.name, do == "link-up")
    plans = router_plans(fabric)
    router = _one_of(entry, "node", entry.take("node", str), list(plans))
    if do == "start-frr":
        return StartFrr(router)
    known = list(daemons(plans[router]))
    names = entry.strings("daemons", tuple(known))
    chosen = tuple(_one_of(entry, "daemons", name, known) for name in names)
    return KillFrr(router, chosen, _signal(entry))


def _guest(entry: Table, fabric: Fabric, do: str) -> Guest:
    vm = vm_of(entry, fabric)
    external = fabric.vm(vm).kind == "external"
    if external is (do in ("start-vm", "stop-vm")):
        word = "is" if external else "is not"
        raise LabError(f"{entry.where}: {vm} {word} external", "see `kind` in docs/lab.md")
    nve = _nve(entry, fabric, "to" if do == "migrate-by-hand" else "nve")
    error = entry.take("error", str) if entry.has("error") else None
    return Guest(do, vm, nve, error, entry.take("timeout_s", float, 60.0))


def _fault(entry: Table, fabric: Fabric, do: str) -> Fault:
    link: Link = find_link(fabric, entry.take("link", str), entry.where)
    if do == "heal":
        return Fault(link.name, 0)
    per_mille = 1000 if do == "cut" else round(entry.take("percent", float) * 10)
    if not 0 < per_mille <= 1000:
        raise LabError(f"{entry.where}: percent", "give more than 0 and at most 100")
    seconds = entry.take("seconds", float) if entry.has("seconds") else None
    control_only = entry.choice("only", ("all", "control"), "all") == "control"
    return Fault(link.name, per_mille, seconds, control_only)


def _assertion(entry: Table, fabric: Fabric, key: str, within_s: float) -> Assertion:
    what = entry.choice(key, ASSERTIONS)
    if what in _PATIENT and key == "what":
        within_s = 30.0
    within_s = entry.take("within_s", float, within_s)
    if what in _PLAIN:
        return Assertion(what, within_s)
    if what == "no-loss":
        vm = vm_of(entry, fabric) if entry.has("vm") else ""
        most, at_rest = entry.take("max", int, 0), entry.take("at_rest", bool, False)
        talkers = [node.name for node in fabric.of_kind("correspondent")]
        talkers += [one.name for one in fabric.vms if one.kind == "netns"]
        named = entry.has("from")
        source = _one_of(entry, "from", entry.take("from", str), talkers) if named else ""
        return Assertion(what, within_s, vm, source=source, maximum=most, at_rest=at_rest)
    if what == "no-silent-drop":
        return Assertion(what, within_s, maximum=entry.take("max", int, 0))
    if what == "too-big-counted":
        return Assertion(what, within_s, vm_of(entry, fabric), _nve(entry, fabric, "node"))
    if what == "packet-size":
        return _packet_size(entry, fabric, within_s)
    if what in ("serving", "binding", "guest", "taken-over", "runs-at"):
        return _placed(entry, fabric, what, within_s)
    if what in ("flows-spread", "flows-at"):
        vm = vm_of(entry, fabric) if what == "flows-at" else ""
        talkers = [node.name for node in fabric.of_kind("correspondent")]
        named = entry.has("from")
        source = _one_of(entry, "from", entry.take("from", str), talkers) if named else ""
        return Assertion(what, within_s, vm, source=source)
    if what == "redirects":
        node, target = _nve(entry, fabric, "node"), _nve(entry, fabric, "to")
        return Assertion(what, within_s, vm_of(entry, fabric), node, target=target)
    if what == "collected":
        state = entry.choice("state", COLLECTED_STATES)
        names = [node.name for node in fabric.of_kind("collector")]
        node = _one_of(entry, "node", entry.take("node", str), names) if entry.has("node") else ""
        return Assertion(what, within_s, vm_of(entry, fabric), node, state=state)
    if what in ("direct-path", "no-host-routes", "drained", "routes-at-most"):
        return _of_fabric(entry, fabric, what, within_s)
    if what in ("only-serving-route", "sound", "disk-writes"):
        return Assertion(what, within_s, vm_of(entry, fabric))
    if what == "route":
        via = entry.choice("via", VIAS)
        return Assertion(what, within_s, vm_of(entry, fabric), _node(entry, fabric), via)
    if what in ("reachable", "unreachable", "hops"):
        return _reaching(entry, fabric, what, within_s)
    if what in ("command", "vmmob"):
        contains = entry.take("contains", str, "")
        node = _named(entry, fabric) if what == "command" else _daemon(entry, fabric)
        return Assertion(what, within_s, node=node, command=_command(entry), contains=contains)
    node = _daemon(entry, fabric) if entry.has("node") else ""
    return Assertion(what, within_s, node=node, event=entry.take("event", str))


def _of_fabric(entry: Table, fabric: Fabric, what: str, within_s: float) -> Assertion:
    """About a VM's ways, its host routes, its redirects."""
    if what == "routes-at-most":
        vm = vm_of(entry, fabric) if entry.has("vm") else ""
        node = _node(entry, fabric) if entry.has("node") else ""
        return Assertion(what, within_s, vm, node, maximum=entry.take("max", int))
    node = _nve(entry, fabric, "node") if what == "drained" and entry.has("node") else ""
    return Assertion(what, within_s, vm_of(entry, fabric), node)


def _packet_size(entry: Table, fabric: Fabric, within_s: float) -> Assertion:
    """About what passes to a VM in a phase of its last move; `told_by`: who says what does not."""
    phase = entry.choice("phase", PHASES)
    octets = entry.take("ipv4", int), entry.take("ipv6", int)
    source = ""
    if entry.has("from"):
        source = _one_of(entry, "from", entry.take("from", str), sorted(fabric.names()))
    teller = _node(entry, fabric, "told_by") if entry.has("told_by") else ""
    return Assertion("packet-size", within_s, vm_of(entry, fabric), teller, source=source,
                     state=phase, octets=octets)  # fmt: skip


def _placed(entry: Table, fabric: Fabric, what: str, within_s: float) -> Assertion:
    """About a VM and an NVE, and perhaps a state."""
    state = ""
    if what == "guest":
        state = entry.choice("state", GUEST_STATES)
    elif what == "binding":
        state = entry.take("state", str, "")
    vm, nve = vm_of(entry, fabric), _nve(entry, fabric, "nve")
    return Assertion(what, within_s, vm, nve, state=state)


def _reaching(entry: Table, fabric: Fabric, what: str, within_s: float) -> Assertion:
    source = entry.take("from", str)
    _one_of(entry, "from", source, sorted(fabric.names()))
    if what == "hops":
        vm, most = vm_of(entry, fabric, "to"), entry.take("max", int)
        return Assertion(what, within_s, vm, source=source, maximum=most)
    places = [*(n.name for n in fabric.nodes), *(v.name for v in fabric.vms)]
    target = _one_of(entry, "to", entry.take("to", str), places)
    return Assertion(what, within_s, vm=target, source=source)


def _signal(entry: Table) -> signal.Signals:
    name = entry.take("signal", str, "KILL")
    try:
        return signal.Signals["SIG" + name.removeprefix("SIG")]
    except KeyError as error:
        raise LabError(f"{entry.where}: signal {name!r}", "use KILL, TERM, STOP …") from error


def _command(entry: Table) -> tuple[str, ...]:
    return tuple(shlex.split(entry.take("command", str)))


def vm_of(entry: Table, fabric: Fabric, key: str = "vm") -> str:
    """The VM that `key` names."""
    return _one_of(entry, key, entry.take(key, str), [vm.name for vm in fabric.vms])


def _nve(entry: Table, fabric: Fabric, key: str) -> str:
    return _one_of(entry, key, entry.take(key, str), [n.name for n in fabric.of_kind("nve")])


def _node(entry: Table, fabric: Fabric, key: str = "node") -> str:
    return _one_of(entry, key, entry.take(key, str), [n.name for n in fabric.nodes])


def _named(entry: Table, fabric: Fabric) -> str:
    return _one_of(entry, "node", entry.take("node", str), sorted(fabric.names()))


def _daemon(entry: Table, fabric: Fabric) -> str:
    return _one_of(entry, "node", entry.take("node", str), _all_daemons(fabric))


def _daemons(entry: Table, fabric: Fabric) -> tuple[str, ...]:
    """`node`, or several `nodes`, all at once."""
    if not entry.has("nodes"):
        return (_daemon(entry, fabric),)
    names = entry.strings("nodes")
    if not names or len(set(names)) != len(names):
        raise LabError(f"{entry.where}: `nodes` is {list(names)}", "name each node once")
    return tuple(_one_of(entry, "nodes", name, _all_daemons(fabric)) for name in names)


def _all_daemons(fabric: Fabric) -> list[str]:
    agents = [n for n in fabric.of_kind("router") if n.role != "transit"]
    nodes = (*fabric.of_kind("manager"), *fabric.of_kind("nve"), *agents)
    return [n.name for n in nodes] + [box.name for box in boxes_of(fabric)]


def _one_of(entry: Table, key: str, value: str, known: list[str]) -> str:
    if value not in known:
        raise LabError(f"{entry.where}: `{key}` is {value!r}", "use one of: " + ", ".join(known))
    return value
