"""`vmmob move VM NVE`, `vmmob move list|show|watch|abort`: start a move, follow it, give it up.

Speaks to the manager's API alone.
"""

from __future__ import annotations

from pathlib import Path

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.default_command import DefaultCommand
from vmmobility.cli.move_terms import terms_options
from vmmobility.cli.move_watch import (
    JsonTeller,
    Teller,
    follow_live,
    last,
    progress_words,
    under_way,
    watched,
    which,
)
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import ApiError
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.values import VmKey

MOVES: list[Column] = [
    ("MOVE", lambda row: row["id"]),
    ("VM", output.vm_name),
    ("FROM", lambda row: row["from"]),
    ("TO", lambda row: row["to"]),
    ("MODE", lambda row: row["mode"]),
    ("STATE", lambda row: row["state"]),
    ("OK", lambda row: row["ok"]),
    ("COPIED", lambda row: progress_words(row["progress"]) if row.get("progress") else None),
    ("REASON", lambda row: row["reason"] or None),
]

START = "VM NVE"  # how help lists it; no VM can have this name
wait_timeout_option = click.option(
    "--wait-timeout",
    "wait_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds to wait at most (implies --wait); the move itself goes on.",
)


class _Move(DefaultCommand):
    default = START


@click.group(cls=_Move, subcommand_metavar="VM NVE | list | show MOVE | watch MOVE | abort MOVE")
def move() -> None:
    """Move a VM to another NVE, follow moves, or give one up.

    `vmmob move VM NVE --help` shows more.  A VM that is called like a command is written with its
    VNI: 0/abort, 0/list.
    """


@move.command(START)
@click.argument("name", metavar="VM", type=VM_NAME)
@click.argument("to", metavar="NVE")
@click.option(
    "--mode",
    type=click.Choice(["hot", "warm", "cold"]),
    help="hot: while it runs.  cold: one that is suspended or stopped stays so where it comes to "
    "be; one that runs is suspended for the move and goes on there.  warm: to its standby, with "
    "one last checkpoint (`vmmob vm protect`).  Unless given: hot or cold, by its state.",
)
@click.option("--wait", is_flag=True, help="Wait for the end and show the phases.")
@wait_timeout_option
@terms_options
@vni_option
@manager_socket
@output.as_json
def start(
    name: VmKey,
    to: str,
    mode: str | None,
    wait: bool,
    wait_s: float | None,
    terms: MoveTerms,
    vni: int | None,
    socket_path: Path,
    json_output: bool,
) -> None:
    """Move a VM to another NVE."""
    with ManagerClient(socket_path) as client:
        begun = client.start_move(chosen_vm(name, vni), to, terms, mode or "")
        if not json_output:
            click.echo(f"move {which(begun)}")
        if wait or wait_s is not None:
            begun = watched(client, begun, wait_s, quiet=json_output)
    if json_output:
        output.print_json(begun)
    elif begun["ok"] and begun["reason"]:
        click.echo(f"note: {begun['reason']}")
    if begun["ok"] is False:
        raise ApiError(
            f"the move of {output.vm_name(begun)} to {to} failed: {begun['reason'] or 'no reason'}",
            f"see `vmmob vm show {output.vm_name(begun)}` for where it runs; then move it again",
        )


@move.command("list")
@click.option("--under-way", "under_way_only", is_flag=True, help="Only those that have not ended.")
@manager_socket
@output.as_json
def list_moves(under_way_only: bool, socket_path: Path, json_output: bool) -> None:
    """Moves under way and the latest ones that have ended, oldest first."""
    with ManagerClient(socket_path) as client:
        rows = [row for row in client.moves() if row["ok"] is None or not under_way_only]
    output.print_json(rows) if json_output else output.print_table(rows, MOVES)


@move.command()
@click.argument("name", metavar="MOVE")
@manager_socket
@output.as_json
def show(name: str, socket_path: Path, json_output: bool) -> None:
    """One move: its phases, how far its copy is, its figures.

    MOVE is a move's ID (`vmmob move list`), or a VM: its latest move then.
    """
    with ManagerClient(socket_path) as client:
        found = client.move(last(client.moves(), name)["id"])
    if json_output:
        output.print_json(found)
        return
    shown = {key: found[key] for key in ("mode", "state", "ok", "reason", "epoch")}
    if found.get("progress"):
        shown["copied"] = progress_words(found["progress"])
    click.echo(f"move {which(found)}")
    output.print_fields({**shown, **found["measured"]})
    Teller().tell({**found, "progress": None})


@move.command()
@click.argument("name", metavar="MOVE")
@wait_timeout_option
@manager_socket
@output.as_json
def watch(name: str, wait_s: float | None, socket_path: Path, json_output: bool) -> None:
    """Follow a move to its end: a line a phase, and how far its copy is.

    MOVE is a move's ID (`vmmob move list`), or a VM: its latest move then.  With --json each line
    is an object: {"event": "phase"|"waiting"|"progress"|"end", "move", ...}; the last one, "end",
    has the whole move.
    """
    with ManagerClient(socket_path) as client:
        begun = last(client.moves(), name)
        teller = JsonTeller() if json_output else Teller()
        if not json_output:
            click.echo(f"move {which(begun)}")
        ended = follow_live(client, begun["id"], wait_s, teller)
    teller.say({"event": "end", "move": ended["id"], **ended}, f"{ended['state']}")
    if not json_output:
        output.print_fields(ended["measured"])
    if not ended["ok"]:
        raise ApiError(
            f"move {ended['id']} is {ended['state']}: {ended['reason'] or 'no reason'}",
            f"see `vmmob vm show {output.vm_name(ended)}` for where it runs",
        )


@move.command()
@click.argument("name", metavar="MOVE")
@click.option("--wait", is_flag=True, help="Wait for the end and show the phases.")
@wait_timeout_option
@manager_socket
@output.as_json
def abort(
    name: str, wait: bool, wait_s: float | None, socket_path: Path, json_output: bool
) -> None:
    """Give up a move that has not ended: the VM stays where it was.

    MOVE is a move's ID (`vmmob move list`), or the VM that is moved.  The source serves again
    first, then the destination forgets.  A guest that may run at the destination already is ended
    there for certain before; if it has registered from there, the move is good, and this fails.
    """
    with ManagerClient(socket_path) as client:
        given_up = client.abort_move(under_way(client.moves(), name)["id"])
        if not json_output:
            click.echo(f"move {which(given_up)}: {given_up['state']}")
        if wait or wait_s is not None:
            given_up = watched(client, given_up, wait_s, quiet=json_output)
    if json_output:
        output.print_json(given_up)
    if given_up["ok"]:
        raise ApiError(
            f"move {given_up['id']} was too far: {output.vm_name(given_up)} is at {given_up['to']}",
            f"move it back with `vmmob move {output.vm_name(given_up)} {given_up['from']}`",
        )
    if given_up["state"] == "failed":
        raise ApiError(
            f"move {given_up['id']} failed: {given_up['reason']}",
            f"look at {output.vm_name(given_up)} on both hosts now",
        )
