"""`vmmob config check|init|show`: a daemon's configuration file (daemon/config.py)."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any

import click

from vmmobility.cli import output
from vmmobility.daemon import config_files as files
from vmmobility.daemon.config_template import template
from vmmobility.daemon.stream_certificates import check_certificates
from vmmobility.errors import ConfigError

file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def config() -> None:
    """Configuration files: check, make, show."""


@config.command()
@file_argument
def check(file: Path) -> None:
    """Check a file, and the certificates that it names for streams; exit code 0 if a daemon would
    take it."""
    loaded = files.load(file)
    check_certificates(loaded)
    click.echo(f"{file}: is the configuration of {files.role_of(loaded)} {loaded.node_id}")


@config.command()
@click.argument("role", type=click.Choice(["manager", "nve", "router", "napt", "server"]))
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it; standard output unless given.  A file that is there is kept.",
)
def init(role: str, target: Path | None) -> None:
    """Write a commented configuration with every key."""
    text = template(role)
    if target is None:
        click.echo(text, nl=False)
        return
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{target}: is there already", "name another --output, or remove it"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{target}: cannot be written: {error.strerror}", "name another --output"
        ) from None
    click.echo(f"{target}: made; edit it, then `vmmob config check {target}`")


def _plain(value: Any) -> Any:
    """A configuration value as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name.lower().replace("_", "-")
    return value if isinstance(value, int | float) or value is None else str(value)


@config.command()
@file_argument
@output.as_json
def show(file: Path, json_output: bool) -> None:
    """Show what a daemon would take from a file, defaults included."""
    loaded = files.load(file)
    values = {**_plain(loaded), "role": files.role_of(loaded)}
    if json_output:
        output.print_json(values)
        return
    timers, peers = values.pop("timers", {}), values.pop("peers", [])
    servers = values.pop("servers", [])
    managers, nve = values.pop("managers", []), values.pop("nve", None)
    neighbours, napts = values.pop("neighbours", []), values.pop("napts", [])
    if nve is not None:
        locators = [nve["ipv4"], nve["ipv6"]]
        values["locators"] = [locator for locator in locators if locator is not None]
    values.pop("name", None)  # a server's: its node_id
    name = {"file": values.pop("file"), "node_id": loaded.node_id}
    output.print_fields({**name, **values, **timers})
    for peer in [*peers, *managers, *neighbours]:
        way = f"via {peer['via']}" if peer.get("via") else ", ".join(peer["addresses"])
        click.echo(f"{peer['role']} {peer['id']}: {way}")
    for server in servers:
        click.echo(f"server {server['name']}: {server['address']}, from {server['own']}")
    for napt in napts:
        click.echo(f"napt {napt['id']}: {', '.join([*napt['addresses'], *napt['pool']])}")
