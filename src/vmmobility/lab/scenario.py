"""A scenario: the steps that a lab goes through, read from TOML and fully checked beforehand.

Values only.  The format is in docs/lab.md.  Not here: carrying steps out (steps.py), judging
assertions (assertions.py).  Rests on fabric and toml_table.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab.correspondents import Pair
from vmmobility.lab.fabric import Fabric, Link
from vmmobility.lab.faults import find_link
from vmmobility.lab.toml_table import Table, load, whole

STEPS = (
    "move", "wait", "kill", "start", "restart", "cut", "loss", "heal", "exec", "assert", "repeat",
)  # fmt: skip
ASSERTIONS = (
    "no-loss", "no-broken-tcp", "serving", "only-serving-route", "route", "binding", "reachable",
    "command", "event", "moves-done", "sound",
)  # fmt: skip
VIAS = ("tunnel", "host-route", "local", "none")


@dataclass(frozen=True, slots=True)
class Move:
    """Ask the manager to move `vm` to the NVE `to`."""

    vm: str
    to: str
    wait: bool = True
    expect: str = "ok"
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """A signal to a daemon; its guests live on."""

    node: str
    signal: signal.Signals


@dataclass(frozen=True, slots=True)
class Start:
    """Start a daemon (again); `kill_first` makes it a restart."""

    node: str
    kill_first: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Drop `per_mille` of a link's frames each way (1000 = cut, 0 = heal), for a while or on."""

    link: str
    per_mille: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Exec:
    """Run a command in a node's namespace."""

    node: str
    command: tuple[str, ...]
    expect_status: int | None = 0


@dataclass(frozen=True, slots=True)
class Assertion:
    """Something that must be so, at once or within a time."""

    what: str
    within_s: float
    vm: str = ""
    node: str = ""
    via: str = ""
    source: str = ""
    command: tuple[str, ...] = ()
    contains: str = ""
    event: str = ""
    maximum: int = 0


@dataclass(frozen=True, slots=True)
class Repeat:
    """The steps, several times."""

    times: int
    steps: tuple[Step, ...]


Step = Move | Pause | Kill | Start | Fault | Exec | Assertion | Repeat


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fabric, who talks to whom, and what happens."""

    name: str
    description: str
    fabric: Fabric
    probes: tuple[Pair, ...]
    steps: tuple[Step, ...]

    def moves(self) -> Iterator[Move]:
        """Every move in order, repeats written out."""
        return _moves(self.steps)


def _moves(steps: Iterable[Step]) -> Iterator[Move]:
    for step in steps:
        if isinstance(step, Move):
            yield step
        elif isinstance(step, Repeat):
            for _ in range(step.times):
                yield from _moves(step.steps)


def built_in() -> dict[str, Path]:
    """The scenarios that come with the lab: name -> file."""
    folder = Path(str(resources.files("vmmobility.lab") / "scenarios"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The scenario file for a path or a built-in name."""
    if Path(name).is_file():
        return Path(name)
    if name in built_in():
        return built_in()[name]
    raise LabError(f"no scenario {name!r}", "give a TOML file or one of: " + ", ".join(built_in()))


def load_scenario(path: Path) -> Scenario:
    """Read and check a scenario file and its fabric."""
    with whole(load(path), str(path)) as table:
        name = table.take("name", str, path.stem)
        description = table.take("description", str, "")
        fabric = _fabric(table, path)
        probes = tuple(_probes(table, fabric))
        steps = tuple(_steps(table, "step", fabric))
    scenario = Scenario(name, description, fabric, probes, steps)
    return scenario if probes else _with_default_probes(scenario)


def _fabric(table: Table, path: Path) -> Fabric:
    inline = table.take("fabric", object)
    if isinstance(inline, dict):
        return fabrics.parse_fabric(inline, f"{path}: fabric", f"{path.stem}-fabric")
    if not isinstance(inline, str):
        raise LabError(f"{path}: `fabric` is {inline!r}", "give a name, a path or a table")
    return fabrics.load_fabric(fabrics.find(inline, beside=path))


def _with_default_probes(scenario: Scenario) -> Scenario:
    """Every correspondent probes every VM that is moved (every VM, if none is)."""
    moved = dict.fromkeys(move.vm for move in scenario.moves())
    vms = list(moved) or [vm.name for vm in scenario.fabric.vms]
    talkers = scenario.fabric.of_kind("correspondent")
    pairs = tuple(Pair(node.name, vm) for vm in vms for node in talkers)
    return Scenario(scenario.name, scenario.description, scenario.fabric, pairs, scenario.steps)


def _probes(table: Table, fabric: Fabric) -> Iterator[Pair]:
    for entry in table.tables("probe"):
        source = entry.take("from", str)
        light = [vm.name for vm in fabric.vms if vm.kind == "netns"]
        talkers = [node.name for node in fabric.of_kind("correspondent")] + light
        _one_of(entry, "from", source, talkers)
        yield Pair(source, _vm(entry, fabric, "to"))


def _steps(table: Table, key: str, fabric: Fabric) -> Iterator[Step]:
    for entry in table.tables(key):
        yield _step(entry, fabric)


def _step(entry: Table, fabric: Fabric) -> Step:
    do = entry.choice("do", STEPS)
    if do == "move":
        return Move(
            _vm(entry, fabric), _nve(entry, fabric, "to"), entry.take("wait", bool, True),
            entry.choice("expect", ("ok", "fail", "any"), "ok"),
            entry.take("timeout_s", float, 60.0),
        )  # fmt: skip
    if do == "wait":
        if entry.has("seconds"):
            return Pause(entry.take("seconds", float))
        return _assertion(entry, fabric, "until", 30.0)
    if do == "kill":
        return Kill(_daemon(entry, fabric), _signal(entry))
    if do in ("start", "restart"):
        return Start(_daemon(entry, fabric), kill_first=do == "restart")
    if do in ("cut", "loss", "heal"):
        return _fault(entry, fabric, do)
    if do == "exec":
        status = None if entry.take("any_status", bool, False) else entry.take("status", int, 0)
        return Exec(_named(entry, fabric), _command(entry), status)
    if do == "repeat":
        return Repeat(entry.take("times", int), tuple(_steps(entry, "step", fabric)))
    return _assertion(entry, fabric, "what", 0.0)


def _fault(entry: Table, fabric: Fabric, do: str) -> Fault:
    link: Link = find_link(fabric, entry.take("link", str), entry.where)
    if do == "heal":
        return Fault(link.name, 0)
    per_mille = 1000 if do == "cut" else round(entry.take("percent", float) * 10)
    if not 0 < per_mille <= 1000:
        raise LabError(f"{entry.where}: percent", "give more than 0 and at most 100")
    seconds = entry.take("seconds", float) if entry.has("seconds") else None
    return Fault(link.name, per_mille, seconds)


def _assertion(entry: Table, fabric: Fabric, key: str, within_s: float) -> Assertion:
    what = entry.choice(key, ASSERTIONS)
    if what == "only-serving-route" and key == "what":
        within_s = 30.0
    within_s = entry.take("within_s", float, within_s)
    if what == "no-loss":
        return Assertion(what, within_s, maximum=entry.take("max", int, 0))
    if what in ("no-broken-tcp", "moves-done"):
        return Assertion(what, within_s)
    if what in ("serving", "binding"):
        return Assertion(what, within_s, _vm(entry, fabric), _nve(entry, fabric, "nve"))
    if what in ("only-serving-route", "sound"):
        return Assertion(what, within_s, _vm(entry, fabric))
    if what == "route":
        via = entry.choice("via", VIAS)
        return Assertion(what, within_s, _vm(entry, fabric), _node(entry, fabric), via)
    if what == "reachable":
        source, target = entry.take("from", str), entry.take("to", str)
        _one_of(entry, "from", source, sorted(fabric.names()))
        places = [*(n.name for n in fabric.nodes), *(v.name for v in fabric.vms)]
        _one_of(entry, "to", target, places)
        return Assertion(what, within_s, vm=target, source=source)
    if what == "command":
        contains = entry.take("contains", str, "")
        node = _named(entry, fabric)
        return Assertion(what, within_s, node=node, command=_command(entry), contains=contains)
    node = _node(entry, fabric) if entry.has("node") else ""
    return Assertion(what, within_s, node=node, event=entry.take("event", str))


def _signal(entry: Table) -> signal.Signals:
    name = entry.take("signal", str, "KILL")
    try:
        return signal.Signals["SIG" + name.removeprefix("SIG")]
    except KeyError as error:
        raise LabError(f"{entry.where}: signal {name!r}", "use KILL, TERM, STOP …") from error


def _command(entry: Table) -> tuple[str, ...]:
    return tuple(shlex.split(entry.take("command", str)))


def _vm(entry: Table, fabric: Fabric, key: str = "vm") -> str:
    return _one_of(entry, key, entry.take(key, str), [vm.name for vm in fabric.vms])


def _nve(entry: Table, fabric: Fabric, key: str) -> str:
    return _one_of(entry, key, entry.take(key, str), [n.name for n in fabric.of_kind("nve")])


def _node(entry: Table, fabric: Fabric) -> str:
    return _one_of(entry, "node", entry.take("node", str), [n.name for n in fabric.nodes])


def _named(entry: Table, fabric: Fabric) -> str:
    return _one_of(entry, "node", entry.take("node", str), sorted(fabric.names()))


def _daemon(entry: Table, fabric: Fabric) -> str:
    known = [n.name for n in (*fabric.of_kind("manager"), *fabric.of_kind("nve"))]
    return _one_of(entry, "node", entry.take("node", str), known)


def _one_of(entry: Table, key: str, value: str, known: list[str]) -> str:
    if value not in known:
        raise LabError(f"{entry.where}: `{key}` is {value!r}", "use one of: " + ", ".join(known))
    return value
