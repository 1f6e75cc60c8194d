"""`vmmob check`: does every NVE, kernel and hypervisor hold what the manager has on record?

Speaks to the manager's API alone; one host's own comparison is `vmmob nve check` (nve.py).
"""

from __future__ import annotations

from pathlib import Path

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.comparison import patience, print_comparison, timeout_option
from vmmobility.cli.parameters import manager_socket


@click.command()
@timeout_option
@manager_socket
@output.as_json
def check(timeout_s: float, socket_path: Path, json_output: bool) -> None:
    """Compare the manager's bindings with every NVE, its kernel and its guests.

    What differs is listed and, where that is safe, repaired.  Exit code 0: nothing differs and
    every NVE has answered; 1: something differs (repaired or not), or was not answered, or the
    manager could not be asked; 2: wrong usage.
    """
    with ManagerClient(socket_path) as client, patience("asking the NVEs"):
        found = client.check(timeout_s)
    print_comparison(found, "bindings and redirects", as_json=json_output)
