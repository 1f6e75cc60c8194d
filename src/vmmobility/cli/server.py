"""`vmmob server run|flush`: the agent of a hypervisor host that its NVE stands apart from."""

from __future__ import annotations

import click

from vmmobility.cli.run import server_flush, server_run


@click.group()
def server() -> None:
    """A hypervisor host that stands apart from its NVE: its agent."""


server.add_command(server_run)
server.add_command(server_flush)
