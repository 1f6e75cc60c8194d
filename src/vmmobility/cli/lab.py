"""`vmmob lab run|up|down|exec|list`: fabrics and scenarios on this one machine.

Not here: anything the lab does (lab/).  Rests on click and rich.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vmmobility.cli import output
from vmmobility.errors import EnvironmentProblem, LabError
from vmmobility.lab import fabric as fabrics
from vmmobility.lab import fault_matrix, teardown, workdir
from vmmobility.lab import scenario as scenarios
from vmmobility.lab.fault_report import FaultReport, faults_html, print_faults
from vmmobility.lab.laboratory import build
from vmmobility.lab.narrator import Say
from vmmobility.lab.report import Report
from vmmobility.lab.report_html import html
from vmmobility.lab.report_text import print_report
from vmmobility.lab.runner import Options, interruptible, run_scenario
from vmmobility.lab.workdir import LabInfo

_FILE = click.Path(path_type=Path, dir_okay=False)
_DIR = click.Path(path_type=Path, file_okay=False)


@click.group()
def lab() -> None:
    """Try it on one machine: fabrics of network namespaces, scenarios, probes, reports."""


@lab.command("list")
@output.as_json
def list_(json_output: bool) -> None:
    """Built-in fabrics and scenarios, and the labs that run."""
    rows = [_row("scenario", name, path) for name, path in scenarios.built_in().items()]
    rows.append({"kind": "scenario", "name": fault_matrix.NAME,
                 "description": fault_matrix.DESCRIPTION})  # fmt: skip
    rows += [_row("fabric", name, path) for name, path in fabrics.built_in().items()]
    rows += [
        {"kind": "running lab", "name": info.lab_id, "description": f"{info.name}, {info.fabric}"}
        for info in workdir.all_labs()
    ]
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("KIND", lambda row: row["kind"]),
            ("NAME", lambda row: row["name"]),
            ("DESCRIPTION", lambda row: row["description"]),
        ],
    )


def _row(kind: str, name: str, path: Path) -> dict[str, str]:
    if kind == "scenario":
        return {
            "kind": kind,
            "name": name,
            "description": scenarios.load_scenario(path).description,
        }
    return {"kind": kind, "name": name, "description": fabrics.load_fabric(path).description}


@lab.command()
@click.argument("scenario", metavar="FILE|NAME")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1), metavar="N")
@click.option("--json", "json_file", type=_FILE, help="Write the report as JSON to this file.")
@click.option("--html", "html_file", type=_FILE, help="Write the report as one HTML page.")
@click.option("--raw", type=_DIR, help="Write every probe as CSV, and the logs, to this folder.")
@click.option("--keep", is_flag=True, help="Leave the lab running at the end.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the fabric: tunnel=kernel|relay, redirect=auto|host-route|tunnel, probe_every_ms=N, "
    "step_s=N.  Of fault-matrix: quick=true, mode=, phase=, fault=, resume=FILE.",
)
def run(
    scenario: str, repeat: int, json_file: Path | None, html_file: Path | None,
    raw: Path | None, keep: bool, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Run a scenario and report.  Exit status 0 only if all went well."""
    if scenario == fault_matrix.NAME:
        _run_faults(_settings(settings), json_file, html_file, raw, keep)
        return
    loaded = scenarios.load_scenario(scenarios.find(scenario), _settings(settings))
    _need_root()
    for path in (json_file, html_file):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    try:
        report = run_scenario(loaded, Options(repeat, raw, keep), _narrate(console))
    except KeyboardInterrupt:
        raise click.Abort from None
    _write(report, json_file, html_file)
    print_report(report, console if console.is_terminal else Console(highlight=False, width=100))
    for path in (json_file, html_file, raw):
        if path is not None:
            click.echo(f"written: {path}")
    sys.exit(0 if report.ok else 1)


def _run_faults(
    settings: dict[str, str], json_file: Path | None, html_file: Path | None,
    raw: Path | None, keep: bool,
) -> None:  # fmt: skip
    """The fault matrix: cells, not steps."""
    fault_matrix.check_settings(settings)
    _need_root()
    for path in (json_file, html_file):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    resume = Path(settings["resume"]) if "resume" in settings else None

    def write(report: FaultReport) -> None:  # after each cell: it can be resumed
        if json_file is not None:
            text = json.dumps(report.as_json(), indent=2, ensure_ascii=False)
            json_file.write_text(text + "\n")

    options = fault_matrix.MatrixOptions(raw, write, keep, resume)
    try:
        report = fault_matrix.run_matrix(settings, options, _narrate(console))
    except KeyboardInterrupt:
        raise click.Abort from None
    write(report)
    if html_file is not None:
        html_file.write_text(faults_html(report))
    print_faults(report, console if console.is_terminal else Console(highlight=False, width=120))
    for path in (json_file, html_file, raw):
        if path is not None:
            click.echo(f"written: {path}")
    sys.exit(0 if report.ok else 1)


def _settings(words: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise LabError(f"--set {key}{equals}{value}", "write KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _write(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n")
    if html_file is not None:
        html_file.write_text(html(report))


@lab.command()
@click.argument("fabric", metavar="FABRIC")
@click.option("--name", help="What `vmmob lab list` calls it; the fabric's name unless given.")
def up(fabric: str, name: str | None) -> None:
    """Build a fabric with its daemons and VMs, and leave it running."""
    loaded = fabrics.load_fabric(fabrics.find(fabric))
    _need_root()
    for info in workdir.all_labs():
        if name is not None and info.name == name:
            raise LabError(f"a lab named {name} runs", f"vmmob lab down {name}")
    console = Console(highlight=False)
    try:
        with interruptible():
            running = build(loaded, name or loaded.name, owned=False, say=_narrate(console))
    except KeyboardInterrupt:
        raise click.Abort from None
    running.detach()
    lab_id, daemons = running.info.lab_id, running.daemons
    click.echo(f"\nlab {lab_id} is up.  Look around:")
    for node in loaded.of_kind("correspondent")[:1]:
        vm = loaded.vms[0].addresses[0].ip if loaded.vms else "…"
        click.echo(f"  vmmob lab exec --lab {lab_id} {node.name} -- ping {vm}")
    for node in loaded.of_kind("nve")[:1]:
        click.echo(f"  vmmob lab exec --lab {lab_id} {node.name} -- ip route")
    click.echo(f"  export VMMOB_SOCKET={daemons.socket(daemons.manager)}; vmmob show bindings")
    for vm_definition in loaded.vms[:1]:
        click.echo(f"  vmmob move {vm_definition.name} {loaded.of_kind('nve')[-1].name} --wait")
    click.echo(f"  vmmob lab down {lab_id}")


@lab.command()
@click.argument("name", required=False)
def down(name: str | None) -> None:
    """End a running lab (by name or id; the only one if none is given)."""
    _need_root()
    left = teardown.tear_down(_chosen(name))
    for item in left:
        click.echo(f"left behind: {item}", err=True)
    sys.exit(1 if left else 0)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("--lab", "name", help="Which lab; the only one if not given.")
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str | None, node: str, command: tuple[str, ...]) -> None:
    """Run a command inside a node's namespace: vmmob lab exec NODE -- COMMAND."""
    _need_root()
    info = _chosen(name)
    namespace = f"{info.lab_id}-{node}"
    if namespace not in info.namespaces:
        known = ", ".join(n.removeprefix(info.lab_id + "-") for n in sorted(info.namespaces))
        raise LabError(f"no node {node!r} in lab {info.lab_id}", f"known: {known}")
    os.execvp("ip", ["ip", "netns", "exec", namespace, *command])


def _chosen(name: str | None) -> LabInfo:
    labs = [info for info in workdir.all_labs() if name in (None, info.lab_id, info.name)]
    if len(labs) == 1:
        return labs[0]
    if not labs:
        raise LabError(f"no lab {name or ''} runs".replace("  ", " "), "vmmob lab up FABRIC")
    raise LabError("more than one lab runs", "name one: " + ", ".join(i.lab_id for i in labs))


def _narrate(console: Console) -> Say:
    """Lines with the time since the beginning, as things happen, from any thread."""
    begun = time.monotonic()
    lock = threading.Lock()

    def say(line: str) -> None:
        with lock:
            text = Text(f"{time.monotonic() - begun:8.2f} s  ", style="dim")
            console.print(text.append(line, style="not dim"), soft_wrap=True)
            if not console.is_terminal:
                sys.stdout.flush()

    return say


def _need_root() -> None:
    if os.geteuid() != 0:
        raise EnvironmentProblem("the lab makes network namespaces", "run it as root")
