"""`vmmob vm protect|unprotect`, `vmmob show protected`, `vmmob move VM NVE --mode warm`.

Speaks to the manager's API alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.wire.values import VmKey

EVERY_S = 5.0
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PROTECTED: list[Column] = [
    ("VM", output.vm_name),
    ("NVE", lambda row: row["nve"]),
    ("STANDBY", lambda row: row["standby"]),
    ("STATE", lambda row: row["state"]),
    ("EVERY", lambda row: every_words(row)),
    ("FAIL-OVER", lambda row: row["fail_over"]),
    ("CHECKPOINT", lambda row: row["checkpoint"]),
    ("STALE S", lambda row: row["staleness_s"]),
    ("NEXT S", lambda row: row["next_s"]),
    ("REASON", lambda row: row["reason"] or None),
]


def every_words(row: Mapping[str, Any]) -> str:
    """When checkpoints are taken."""
    return f"daily at {row['at']} UTC" if row["at"] else f"every {row['every_s']:g} s"


class TimeOfDay(click.ParamType[str]):
    """A time of day, as "03:00" or "3:00"."""

    name = "time of day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = re.fullmatch(r"(\d{1,2}):(\d\d)", str(value))
        if found is None or int(found[1]) > 23 or int(found[2]) > 59:
            self.fail(f"{value!r} is no time of day such as 03:00 (UTC)", param, ctx)
        return f"{int(found[1]):02}:{found[2]}"


class Duration(click.ParamType[float]):
    """Seconds, as "5", "5s", "10m", "1h" or "1d"."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration such as 5s, 10m or 1h", param, ctx)
        return float(found[1]) * UNITS_S[found[2]]


@click.command("protect")
@click.argument("name", metavar="VM", type=VM_NAME)
@click.option("--to", required=True, metavar="NVE", help="Where its standby is.")
@click.option(
    "--every",
    type=Duration(),
    metavar="TIME",
    help="From one checkpoint to the next: 5s (unless given), 10m, 1h.",
)
@click.option(
    "--at",
    type=TimeOfDay(),
    metavar="HH:MM",
    help="In the place of --every: one checkpoint a day, at this time, UTC; the first at once.",
)
@click.option(
    "--fail-over/--no-fail-over",
    default=None,
    help="Whether the standby takes over when the VM's NVE is lost; below 60 s it does.",
)
@click.option(
    "--lease",
    type=Duration(),
    default=None,
    metavar="TIME",
    help="With fail-over: cut off from the manager for so long, the VM is paused.",
)
@vni_option
@manager_socket
@output.as_json
def protect(
    name: VmKey,
    to: str,
    every: float | None,
    at: str | None,
    fail_over: bool | None,
    lease: float | None,
    vni: int | None,
    socket_path: Path,
    json_output: bool,
) -> None:
    """Keep checkpoints of a running VM at another NVE: a warm standby.

    With fail-over the standby lets the VM run from its last complete checkpoint when its NVE is
    lost; what was written since is lost.  The price: a VM whose NVE cannot reach the manager for
    the time of its lease is paused, also when it is the manager that is down.  Without, nobody
    pauses it, and nobody takes over: a copy to fall back to, at long intervals the draft's cold
    standby.
    """
    if every is not None and at is not None:
        raise click.UsageError("--every and --at exclude each other: give one of them")
    when = {"every_s": EVERY_S if every is None else every} if at is None else {"at": at}
    wanted: dict[str, Any] = {"to": to, **when}
    if fail_over is not None:
        wanted["fail_over"] = fail_over
    if lease is not None:
        wanted["lease_s"] = lease
    with ManagerClient(socket_path) as client:
        found = client.protect(chosen_vm(name, vni), wanted)
    if json_output:
        output.print_json(found)
        return
    words = "takes over" if found["fail_over"] else "does not take over by itself"
    click.echo(f"VM {output.vm_name(found)}: standby at {to}, {every_words(found)}; it {words}")


@click.command("unprotect")
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@manager_socket
@output.as_json
def unprotect(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """End a VM's protection: its standby forgets it, and it runs on without a lease."""
    with ManagerClient(socket_path) as client:
        found = client.unprotect(chosen_vm(name, vni))
    if json_output:
        output.print_json(found)
    else:
        click.echo(f"VM {output.vm_name(found)}: its standby at {found['standby']} ends")


@click.command("protected")
@manager_socket
@output.as_json
def protected(socket_path: Path, json_output: bool) -> None:
    """The VMs that have a warm standby, and the age of its last checkpoint."""
    with ManagerClient(socket_path) as client:
        rows = client.protected()
    output.print_json(rows) if json_output else output.print_table(rows, PROTECTED)
