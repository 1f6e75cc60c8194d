"""`vmmob drain NVE`, `vmmob drain list|show|abort`: empty a host; `vmmob nve cordon|uncordon`.

Speaks to the manager's API alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.default_command import DefaultCommand, FirstCommand
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import asks_manager
from vmmobility.errors import ApiError, NotFound

Row = dict[str, Any]
START = "NVE"  # how help lists it
LOOK_S = 1.0  # its progress is told so often
MIB = 1 << 20

DRAINS: list[Column] = [
    ("DRAIN", lambda row: row["id"]),
    ("NVE", lambda row: row["nve"]),
    ("STATE", lambda row: row["state"]),
    ("VMS", lambda row: row["all"]),
    ("MOVED", lambda row: row["moved"]),
    ("MOVING", lambda row: row["moving"]),
    ("FAILED", lambda row: row["failed"]),
    ("SECONDS", lambda row: row["elapsed_s"]),
]
VMS: list[Column] = [
    ("VM", output.vm_name),
    ("STAGE", lambda row: row["stage"]),
    ("TO", lambda row: row["to"]),
    ("MOVE", lambda row: row["move"]),
    ("ATTEMPTS", lambda row: row["attempts"]),
    ("REASON", lambda row: row["reason"] or None),
]


class _Drain(DefaultCommand):
    default = START


@click.group(cls=_Drain, subcommand_metavar="NVE | list | show DRAIN | abort DRAIN")
def drain() -> None:
    """Empty an NVE: move all its VMs elsewhere, so many at once.

    `vmmob drain NVE --help` shows more.
    """


@drain.command(START, cls=FirstCommand)
@click.argument("nve", metavar="NVE")
@click.option(
    "--to", multiple=True, metavar="NVE", help="Only to these NVEs; any that may unless given."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="So many moves at once.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto"]),
    default="auto",
    show_default=True,
    help="How VMs are moved; auto: as their guests' state asks for.",
)
@click.option("--uncordon", is_flag=True, help="Let VMs come there again once it has ended.")
@click.option("--wait", is_flag=True, help="Wait for the end and show how far it is.")
@asks_manager
def start(
    nve: str,
    to: tuple[str, ...],
    parallel: int,
    mode: str,
    uncordon: bool,
    wait: bool,
    socket_path: Path,
    json_output: bool,
) -> None:
    """Move every VM of an NVE to other NVEs.

    From now on no VM begins there and none is moved there (it is cordoned), also after the end:
    `vmmob nve uncordon NVE` lifts that.  The manager drains by itself, across its own restarts.  A
    drain that is under way there goes on with these values.
    """
    wanted = {"nve": nve, "to": list(to), "parallel": parallel, "mode": mode, "uncordon": uncordon}
    with ManagerClient(socket_path) as client:
        found = client.start_drain(wanted)
        if not json_output:
            click.echo(f"drain {found['id']}: {nve}, {found['all']} VMs, {parallel} at once")
        if wait:
            found = _followed(client, found, quiet=json_output)
    if json_output:
        output.print_json(found)
    _end(found)


@drain.command("list")
@asks_manager
def list_drains(socket_path: Path, json_output: bool) -> None:
    """Drains under way and the latest ones that have ended."""
    with ManagerClient(socket_path) as client:
        rows = client.drains()
    output.print_json(rows) if json_output else output.print_table(rows, DRAINS)


@drain.command()
@click.argument("name", metavar="DRAIN")
@click.option("--wait", is_flag=True, help="Wait for the end and show how far it is.")
@asks_manager
def show(name: str, wait: bool, socket_path: Path, json_output: bool) -> None:
    """One drain and its VMs.  DRAIN is a drain's ID (`vmmob drain list`), or an NVE: its latest."""
    with ManagerClient(socket_path) as client:
        found = client.drain(_named(client, name)["id"])
        if wait:
            found = _followed(client, found, quiet=json_output)
    if json_output:
        output.print_json(found)
    else:
        click.echo(
            f"drain {found['id']}: {found['nve']}, {found['state']}, {progress_words(found)}"
        )
        output.print_table(found["vms"], VMS)
    if wait:
        _end(found)


@drain.command()
@click.argument("name", metavar="DRAIN")
@click.option("--wait", is_flag=True, help="Wait until the moves under way have ended.")
@asks_manager
def abort(name: str, wait: bool, socket_path: Path, json_output: bool) -> None:
    """Begin no more moves of a drain.  DRAIN is its ID, or its NVE.

    Moves under way go on; `vmmob move abort` gives them up.  The NVE takes VMs again, unless it
    was cordoned before the drain.
    """
    with ManagerClient(socket_path) as client:
        found = client.abort_drain(_named(client, name)["id"])
        if wait:
            found = _followed(client, found, quiet=json_output)
    if json_output:
        output.print_json(found)
    else:
        click.echo(f"drain {found['id']}: {found['state']}, {progress_words(found)}")


@click.command()
@click.argument("nve", metavar="NVE")
@asks_manager
def cordon(nve: str, socket_path: Path, json_output: bool) -> None:
    """Let no VM begin at an NVE, and none be moved there (asks the manager)."""
    with ManagerClient(socket_path) as client:
        found = client.cordon(nve)
    output.print_json(found) if json_output else click.echo(f"{nve} is cordoned")


@click.command()
@click.argument("nve", metavar="NVE")
@asks_manager
def uncordon(nve: str, socket_path: Path, json_output: bool) -> None:
    """Let VMs come to an NVE again (asks the manager)."""
    with ManagerClient(socket_path) as client:
        found = client.uncordon(nve)
    output.print_json(found) if json_output else click.echo(f"{nve} is cordoned no more")


def progress_words(row: Row) -> str:
    """For example "12 of 200 VMs, 4 moving, 31.0 s, some 512.0 s to go"."""
    words = [f"{row['settled']} of {row['all']} VMs"]
    for what in ("moving", "failed"):
        if row[what]:
            words.append(f"{row[what]} {what}")
    if row["bytes"]:
        words.append(f"{row['bytes']['copied'] // MIB} of {row['bytes']['total'] // MIB} MiB")
    words.append(f"{row['elapsed_s']:.1f} s")
    if row["rest_s"] and row["ok"] is None:
        words.append(f"some {row['rest_s']:.0f} s to go")
    return ", ".join(words)


def _followed(client: ManagerClient, begun: Row, *, quiet: bool) -> Row:
    now, told, told_at = begun, "", 0.0
    while True:
        words = f"{now['settled']}/{now['moving']}/{now['failed']}"
        due = time.monotonic() - told_at >= 10 * LOOK_S
        if not quiet and (words != told or due or now["ok"] is not None):
            told, told_at = words, time.monotonic()
            click.echo(f"  {progress_words(now)}")
        if now["ok"] is not None:
            return now
        now = client.drain(now["id"], wait_s=LOOK_S)


def _named(client: ManagerClient, name: str) -> Row:
    """The drain of that ID, or the latest one of the NVE of that name.  Raises NotFound."""
    rows = client.drains()
    of_nve = [row for row in rows if row["nve"] == name]
    found = next((row for row in rows if row["id"] == name), None)
    found = found or next(reversed(of_nve), None)
    if found is None:
        raise NotFound(
            f"no drain {name}, nor has an NVE of that name been drained",
            "list them with `vmmob drain list`",
        )
    return found


def _end(found: Row) -> None:
    """Raises ApiError for a drain that has ended and has not emptied its NVE."""
    if found["ok"] is False:
        left = [f"{output.vm_name(row)} ({row['reason']})" for row in found["reasons"]]
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise ApiError(
            f"drain {found['id']} of {found['nve']} is {found['state']}: "
            f"{', '.join(left[:3]) or 'VMs are left'}{more}",
            f"see `vmmob drain show {found['id']}`; mend that, then drain it again",
        )
