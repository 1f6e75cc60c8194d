"""How alarms are printed: `vmmob show alarms` (the manager's) and `vmmob nve alarms` (a host's).

Not here: what is an alarm (daemon/alarms.py).  Rests on output.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from vmmobility.cli import output
from vmmobility.cli.output import Column

ALARMS: list[Column] = [
    ("ALARM", lambda row: row["alarm"]),
    ("VM", output.vm_name),
    ("NVE", lambda row: row["nve"]),
    ("FOR S", lambda row: row["for_s"]),
    ("WHAT", lambda row: row["what"]),
    ("REMEDY", lambda row: row["remedy"]),
]


def print_alarms(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        output.print_json(rows)
    elif rows:
        output.print_table(rows, ALARMS)
    else:
        click.echo("no alarms")
