"""The commands that do a daemon's own work: `manager|nve|router|napt run`, `nve|router|napt flush`.

The only module of the command line that knows the daemons; they are imported when asked for, so
that every other command starts quickly.  Not here: the daemons (daemon/).
"""

from __future__ import annotations

from pathlib import Path

import click

from vmmobility.cli.parameters import config_file, record_file


@click.command("run")
@config_file
@record_file
def manager_run(path: Path, record: Path | None) -> None:
    """Run the manager in the foreground, until SIGTERM or SIGINT."""
    from vmmobility.api.manager_api import manager_api
    from vmmobility.api.server import serve
    from vmmobility.daemon import manager as daemon

    daemon.run(path, lambda service, place: serve(manager_api(service), place), record)


@click.command("run")
@config_file
@record_file
def nve_run(path: Path, record: Path | None) -> None:
    """Run the NVE in the foreground, until SIGTERM or SIGINT.  VMs go on without it."""
    from vmmobility.api.nve_api import nve_api
    from vmmobility.api.server import serve
    from vmmobility.daemon import nve as daemon

    daemon.run(path, lambda service, place: serve(nve_api(service), place), record)


@click.command("flush")
@config_file
def nve_flush(path: Path) -> None:
    """Remove what the NVE has put into this host's kernel.  The daemon must not run."""
    from vmmobility.daemon import nve as daemon

    daemon.flush(path)


@click.command("run")
@config_file
@record_file
def router_run(path: Path, record: Path | None) -> None:
    """Run the router in the foreground, until SIGTERM or SIGINT.  Its routes go on without it."""
    from vmmobility.api.router_api import router_api
    from vmmobility.api.server import serve
    from vmmobility.daemon import router as daemon

    daemon.run(path, lambda service, place: serve(router_api(service), place), record)


@click.command("flush")
@config_file
def router_flush(path: Path) -> None:
    """Remove what the router has put into this host's kernel.  The daemon must not run."""
    from vmmobility.daemon import router as daemon

    daemon.flush(path)


@click.command("run")
@config_file
def napt_run(path: Path) -> None:
    """Run the NAPT box in the foreground, until SIGTERM or SIGINT.  Its translation goes on."""
    from vmmobility.api.napt_api import napt_api
    from vmmobility.api.server import serve
    from vmmobility.daemon import napt as daemon

    daemon.run(path, lambda service, place: serve(napt_api(service), place))


@click.command("flush")
@config_file
def napt_flush(path: Path) -> None:
    """Remove what the box has put into this host's kernel.  The daemon must not run."""
    from vmmobility.daemon import napt as daemon

    daemon.flush(path)


@click.command("run")
@config_file
def server_run(path: Path) -> None:
    """Run the server's agent in the foreground, until SIGTERM or SIGINT.  VMs go on without it."""
    from vmmobility.daemon import server as daemon

    daemon.run(path)


@click.command("flush")
@config_file
def server_flush(path: Path) -> None:
    """Remove the circuits from this host's kernel.  The agent must not run, nor any guest."""
    from vmmobility.daemon import server as daemon

    daemon.flush(path)
