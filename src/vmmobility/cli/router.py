"""`vmmob router list|check|status|explain`: the VMs that this host's router leads.

Speaks to the router's API alone.  `run` and `flush`, which do the daemon's own work, are in run.py
and join this group here.
"""

from __future__ import annotations

from pathlib import Path

import click

from vmmobility.api.client import RouterClient
from vmmobility.cli import output
from vmmobility.cli.comparison import patience, print_comparison, timeout_option
from vmmobility.cli.frr_config import frr_config
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import router_socket
from vmmobility.cli.run import router_flush, router_run

RULES: list[Column] = [
    ("PRIORITY", lambda row: row["priority"]),
    ("TABLE", lambda row: row["table"]),
    ("PREFIX", lambda row: row["prefix"]),
    ("PROTOCOL", lambda row: row["protocol"]),
    ("OURS", lambda row: row["ours"]),
    ("BY", lambda row: [hop["gateway"] or hop["interface"] for hop in row["next_hops"]]),
    ("LEADS", lambda row: row["leads"]),
]


@click.group()
def router() -> None:
    """The router of this host: run it beside the routing daemon, and what it leads."""


router.add_command(frr_config)
router.add_command(router_run)
router.add_command(router_flush)


@router.command("list")
@router_socket
@output.as_json
def list_routes(socket_path: Path, json_output: bool) -> None:
    """List the VMs that the manager has told this router of, and how the fabric leads them."""
    with RouterClient(socket_path) as client:
        rows = client.routes()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("VM", output.vm_name),
            ("STATE", lambda row: row["state"]),
            ("EPOCH", lambda row: row["epoch"]),
            ("PREFIXES", lambda row: row["prefixes"]),
            ("SERVING", lambda row: row["serving"]),
            ("FABRIC", lambda row: "direct" if row["direct"] else "elsewhere"),
        ],
    )


@router.command()
@router_socket
@output.as_json
def status(socket_path: Path, json_output: bool) -> None:
    """How the router is."""
    with RouterClient(socket_path) as client:
        found = client.status()
    output.print_json(found) if json_output else output.print_fields(found)


@router.command()
@click.argument("address")
@router_socket
@output.as_json
def explain(address: str, socket_path: Path, json_output: bool) -> None:
    """Show the rules and routes that lead ADDRESS here, in the order in which they are asked."""
    with RouterClient(socket_path) as client:
        rows = client.explain(address)
    output.print_json(rows) if json_output else output.print_table(rows, RULES)


@router.command()
@timeout_option
@router_socket
@output.as_json
def check(timeout_s: float, socket_path: Path, json_output: bool) -> None:
    """Compare the record with the kernel, repair it, and exit with 1 if anything differed."""
    with RouterClient(socket_path) as client, patience("comparing"):
        found = client.check(timeout_s)
    print_comparison(found, "VMs", as_json=json_output)
