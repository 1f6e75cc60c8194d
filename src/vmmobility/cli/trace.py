"""`vmmob trace`: why does traffic for this address go where it goes?

Speaks to the manager's API alone; what one router's kernel holds is `vmmob router explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.comparison import patience
from vmmobility.cli.parameters import manager_socket


@click.command()
@click.argument("address")
@click.option(
    "--from",
    "start",
    default="",
    metavar="NODE",
    help="Follow the way from this NVE or router on, hop by hop.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=3600, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that a node may take to answer.",
)
@manager_socket
@output.as_json
def trace(address: str, start: str, timeout_s: float, socket_path: Path, json_output: bool) -> None:
    """Say where packets for ADDRESS go, node by node, and what is wrong with that.

    The manager says who has the address and what it has told the routers; routers say what their
    kernel does, NVEs what theirs does.  A line that begins with "!" is inconsistent.  NVEs compare
    themselves when they are asked, as by `vmmob check`; nothing else is changed.

    Exit code 0: all is consistent and every node has answered; 1: something is wrong or silent,
    nobody has the address, or the manager could not be asked; 2: wrong usage.
    """
    with ManagerClient(socket_path) as client, patience("asking routers and NVEs"):
        found = client.trace(address, start, timeout_s)
    output.print_json(found) if json_output else _print(found)
    if not found["ok"]:
        click.get_current_context().exit(1)


def _print(found: Mapping[str, Any]) -> None:
    steps = found["steps"]
    cells = [(step["node"], step["role"], _does(step)) for step in steps]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for step, row in zip(steps, cells, strict=True):
        mark = " " if step["ok"] else "!"
        aligned = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        wrong = "" if step["ok"] else f"WRONG: {step['wrong']}"
        said = "  ".join(part for part in (step["detail"], wrong) if part)
        click.echo(f"{mark} {aligned}  {said}".rstrip())
    click.echo(_closing(found))


def _does(step: Mapping[str, Any]) -> str:
    return f"{step['decision']} → {step['to']}" if step["to"] else str(step["decision"])


def _closing(found: Mapping[str, Any]) -> str:
    who = f"VM {output.vm_name(found)} at {found['serving']}" if found["vm"] else "nobody"
    if found["from"]:
        way = {True: "reaches", False: "does not reach", None: "was not followed as far as"}
        said = f"{found['address']} from {found['from']} {way[found['arrives']]} {who}"
    else:
        said = f"{found['address']} is of {who}"
    wrong, count = sum(not step["ok"] for step in found["steps"]), len(found["steps"])
    said += f"; {count} step{'s' * (count > 1)}"
    if not wrong:
        return f"{said}, all consistent"
    silent = f", silent: {', '.join(found['silent'])}" if found["silent"] else ""
    said += f", {wrong} inconsistent{silent}"
    return f"{said}; `vmmob check` mends what the record decides" if found["vm"] else said
