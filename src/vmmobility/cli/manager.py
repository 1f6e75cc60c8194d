"""`vmmob manager status`, which speaks to the manager's API alone.

`run`, which is the daemon, is in run.py and joins this group here.
"""

from __future__ import annotations

from pathlib import Path

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import manager_socket
from vmmobility.cli.run import manager_run


@click.group()
def manager() -> None:
    """The manager of a domain: run it, and how it is."""


manager.add_command(manager_run)


@manager.command()
@manager_socket
@output.as_json
def status(socket_path: Path, json_output: bool) -> None:
    """How the manager is."""
    with ManagerClient(socket_path) as client:
        found = client.status()
    output.print_json(found) if json_output else output.print_fields(found)
