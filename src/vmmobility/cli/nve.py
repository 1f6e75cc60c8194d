"""`vmmob nve start|stop|list|status`: this host's VMs.  Speaks to the NVE's API alone.

`run` and `flush`, which do the daemon's own work, are in run.py and join this group here.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import NveClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, nve_socket, vni_option
from vmmobility.cli.run import nve_flush, nve_run
from vmmobility.errors import ConfigError
from vmmobility.wire.values import VmKey


@click.group()
def nve() -> None:
    """The NVE of this host: run it, and its VMs."""


nve.add_command(nve_run)
nve.add_command(nve_flush)


def read_definition(path: Path) -> dict[str, Any]:
    """A VM definition as the API's JSON body.  Raises ConfigError if the file is no TOML or JSON.

    In TOML an interface is an [[interface]]; what a definition must hold is the NVE's to say.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", "name a VM definition"
        ) from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: no {kind}: {error}", "correct that line") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: no JSON object", "write {…}")
    if "interface" in value and "interfaces" not in value:
        value["interfaces"] = value.pop("interface")
    if not isinstance(value.get("vm_id"), str) or not value["vm_id"]:
        raise ConfigError(f"{path}: vm_id: is missing or no text", 'add vm_id = "NAME"')
    # A TOML date is no JSON; the NVE then says what is wrong with its text.
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


@nve.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@nve_socket
@output.as_json
def start(file: Path, socket_path: Path, json_output: bool) -> None:
    """Start the VM that FILE (TOML, or JSON) defines, and register it."""
    definition = read_definition(file)
    with NveClient(socket_path) as client:
        started = client.start_vm(definition)
    if json_output:
        output.print_json(started)
    else:
        click.echo(f"{output.vm_name(started)}: {started['phase']}, epoch {started['epoch']}")


@nve.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@nve_socket
@output.as_json
def stop(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """End the VM's guest and deregister it."""
    vm = chosen_vm(name, vni)
    with NveClient(socket_path) as client:
        stopped = client.stop_vm(vm)
    if json_output:
        output.print_json(stopped)
    else:
        click.echo(f"{vm}: stopped")


@nve.command("list")
@nve_socket
@output.as_json
def list_vms(socket_path: Path, json_output: bool) -> None:
    """List the VMs here: local, redirected and prepared ones, with their traffic."""
    with NveClient(socket_path) as client:
        rows = client.vms()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("VM", output.vm_name),
            ("PHASE", lambda row: row["phase"]),
            ("EPOCH", lambda row: row["epoch"]),
            ("FORWARDING", lambda row: row["forwarding"]),
            ("TARGET", lambda row: row["target"]),
            ("TRAFFIC", lambda row: row["traffic"]),
        ],
    )


@nve.command()
@nve_socket
@output.as_json
def status(socket_path: Path, json_output: bool) -> None:
    """How the NVE is."""
    with NveClient(socket_path) as client:
        found = client.status()
    output.print_json(found) if json_output else output.print_fields(found)
