"""A scenario: the steps that a lab goes through, read from TOML and fully checked beforehand.

Values only.  The format is in docs/lab.md.  Not here: a single step's keys (step_reader.py),
carrying steps out (steps.py), judging assertions (assertions.py).  Rests on fabric, toml_table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from vmmobility.errors import LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab.correspondents import Pair
from vmmobility.lab.fabric import Fabric
from vmmobility.lab.step_reader import SIZE_ASSERTIONS, read_steps, vm_of
from vmmobility.lab.step_types import Assertion, Guest, Move, Repeat, Step
from vmmobility.lab.toml_table import Table, load, whole


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fabric, who talks to whom, and what happens.

    packet_sizes: whether they also try what size of packets passes, and talk bulk TCP
    """

    name: str
    description: str
    fabric: Fabric
    probes: tuple[Pair, ...]
    steps: tuple[Step, ...]
    packet_sizes: bool = False

    def moves(self) -> Iterator[Move]:
        """Every move in order, repeats written out."""
        return (step for step in flat(self.steps) if isinstance(step, Move))


def flat(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps in order, repeats written out."""
    for step in steps:
        if isinstance(step, Repeat):
            for _ in range(step.times):
                yield from flat(step.steps)
        else:
            yield step


def each(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps in order, those of a repeat once."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from each(step.steps)
        else:
            yield step


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


def load_scenario(path: Path, settings: Mapping[str, str] | None = None) -> Scenario:
    """Read and check a scenario file and its fabric, some of whose settings may be others."""
    with whole(load(path), str(path)) as table:
        name = table.take("name", str, path.stem)
        description = table.take("description", str, "")
        fabric = fabrics.with_settings(_fabric(table, path), settings or {})
        probes = tuple(_probes(table, fabric))
        steps = tuple(read_steps(table, "step", fabric))
        packet_sizes = table.take("packet_sizes", bool, False)
    scenario = Scenario(name, description, fabric, probes, steps, packet_sizes)
    scenario = scenario if probes else _with_default_probes(scenario)
    _check_sizes(scenario, str(path))
    return scenario


def _fabric(table: Table, path: Path) -> Fabric:
    inline = table.take("fabric", object)
    if isinstance(inline, dict):
        return fabrics.parse_fabric(inline, f"{path}: fabric", f"{path.stem}-fabric", path)
    if not isinstance(inline, str):
        raise LabError(f"{path}: `fabric` is {inline!r}", "give a name, a path or a table")
    return fabrics.load_fabric(fabrics.find(inline, beside=path))


def _with_default_probes(scenario: Scenario) -> Scenario:
    """Every correspondent probes every VM that is moved, also by hand (every VM, if none is)."""
    moved = dict.fromkeys(
        step.vm
        for step in each(scenario.steps)
        if isinstance(step, Move) or (isinstance(step, Guest) and step.do == "migrate-by-hand")
    )
    vms = list(moved) or [vm.name for vm in scenario.fabric.vms]
    talkers = scenario.fabric.of_kind("correspondent")
    pairs = tuple(Pair(node.name, vm) for vm in vms for node in talkers)
    return replace(scenario, probes=pairs)


def _check_sizes(scenario: Scenario, where: str) -> None:
    asserted = [step.what for step in each(scenario.steps) if isinstance(step, Assertion)]
    asked = [what for what in asserted if what in SIZE_ASSERTIONS]
    if asked and not scenario.packet_sizes:
        raise LabError(f"{where}: {asked[0]!r}, but no size is tried", "add packet_sizes = true")
    for pair in scenario.probes if scenario.packet_sizes else ():
        if scenario.fabric.vm(pair.vm).kind != "netns":
            what = f"{where}: packet_sizes, but {pair.vm} has no service that answers to any size"
            raise LabError(what, 'use a VM of kind "netns"')


def _probes(table: Table, fabric: Fabric) -> Iterator[Pair]:
    for entry in table.tables("probe"):
        source = entry.take("from", str)
        light = [vm.name for vm in fabric.vms if vm.kind == "netns"]
        talkers = [node.name for node in fabric.of_kind("correspondent")] + light
        if source not in talkers:
            remedy = "use one of: " + ", ".join(talkers)
            raise LabError(f"{entry.where}: `from` is {source!r}", remedy)
        yield Pair(source, vm_of(entry, fabric, "to"))
