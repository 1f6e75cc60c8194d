"""`vmmob replay FILE`: what a daemon heard and did, again, from its recording.

Replays on this machine and speaks to no daemon.  Not here: the replay (daemon/recording).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from vmmobility import __version__
from vmmobility.cli import output
from vmmobility.daemon.recording.conversation import Line, Narrator
from vmmobility.daemon.recording.reading import Header, open_recording
from vmmobility.daemon.recording.replay import Difference, Replay


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--until", type=click.FloatRange(min=0), help="Replay its first so many seconds.")
@click.option("--outputs", is_flag=True, help="Show every input and output: records, timers too.")
@output.as_json
@click.pass_context
def replay(
    context: click.Context, path: Path, until: float | None, outputs: bool, json_output: bool
) -> None:
    """Replay a recording, show it as a conversation, and compare every output.

    FILE is what a daemon wrote with `--record` or node.record.  Exit code 0: all outputs are the
    same; 1: the first that differs is shown.
    """
    with open_recording(path) as recording:
        run = Replay(recording, math.inf if until is None else until)
        narrator = Narrator(recording.header.origin)
        rows: list[dict[str, Any]] = []
        if not json_output:
            for text in _begin(recording.header):
                click.echo(text)
        for happening in run.run():
            for line in narrator.lines(happening):
                if outputs or not line.detail:
                    _show(line, rows if json_output else None)
    if json_output:
        output.print_json(_document(run, rows))
    else:
        for text in _end(run):
            click.echo(text)
    context.exit(1 if run.difference else 0)


def _show(line: Line, rows: list[dict[str, Any]] | None) -> None:
    if rows is None:
        click.echo(str(line))
    else:
        rows.append(line.as_json())


def _begin(header: Header) -> list[str]:
    origin = header.origin
    role = origin.role.name.lower().replace("_", "-")
    lines = [f"{role} {origin.node_id}, boot {origin.boot}, recorded by {header.version}"]
    if header.version != __version__:
        lines.append(f"(this is {__version__}: its engines may rightly answer otherwise)")
    return lines


def _end(run: Replay) -> list[str]:
    counts = f"{run.inputs} inputs, {run.outputs} outputs"
    found = run.difference
    if found is not None:
        return [
            f"{counts} the same, then a difference at {found.at:.3f} s, line {found.line}, "
            f"after {found.after}:",
            f"  expected: {found.expected}",
            f"  found:    {found.found}",
        ]
    end = f"(up to {run.until:g} s)" if run.cut else f"({run.recording.ending})"
    return [f"{counts}, same {end}"]


def _document(run: Replay, rows: list[dict[str, Any]]) -> dict[str, Any]:
    header = run.recording.header
    return {
        "role": header.origin.role.name.lower().replace("_", "-"),
        "node": header.origin.node_id,
        "boot": header.origin.boot,
        "version": header.version,
        "time_ns": header.time_ns,
        "conversation": rows,
        "inputs": run.inputs,
        "outputs": run.outputs,
        "same": run.difference is None,
        "difference": _difference(run.difference),
        "ending": None if run.cut or run.difference else run.recording.ending,
    }


def _difference(found: Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "line": found.line,
        "at_s": round(found.at, 6),
        "after": found.after,
        "expected": found.expected,
        "found": found.found,
    }
