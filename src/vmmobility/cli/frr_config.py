"""`vmmob router frr-config`: what FRR needs beside the router agent, to be pasted or compared.

Not here: what it says (drivers/frr/).  Rests on click.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, ip_address, ip_network

import click

from vmmobility.cli.parameters import PlainText
from vmmobility.drivers.frr.check import check as check_by_frr
from vmmobility.drivers.frr.plan import BgpPlan, InterfacePlan, Neighbour, RouterPlan, StaticRoute
from vmmobility.drivers.frr.render import render
from vmmobility.wire.values import Prefix


def _interface(text: str) -> InterfacePlan:
    name, _, part = text.partition(":")
    if not name or part not in ("", "passive", "uplink"):
        raise ValueError("write NAME, NAME:passive or NAME:uplink")
    return InterfacePlan(name, "active" if not part else "passive", uplink=part == "uplink")


def _home(text: str) -> StaticRoute:
    prefix, _, locator = text.partition("=")
    route = StaticRoute(ip_network(prefix), ip_address(locator))
    if route.prefix.version != route.next_hop.version:
        raise ValueError("prefix and locator are of one family")
    return route


def _neighbour(inside: bool, text: str) -> Neighbour:
    address, _, asn = text.partition("=")
    return Neighbour(ip_address(address), int(asn), inside)


PREFIX = PlainText("PREFIX", ip_network)
INTERFACE = PlainText("NAME[:passive|:uplink]", _interface)
HOME = PlainText("PREFIX=LOCATOR", _home)
INSIDE = PlainText("ADDRESS=ASN", lambda text: _neighbour(True, text))
OUTSIDE = PlainText("ADDRESS=ASN", lambda text: _neighbour(False, text))


@click.command("frr-config")
@click.option(
    "--vm-prefix",
    "vm_prefixes",
    type=PREFIX,
    multiple=True,
    required=True,
    help="Prefix in which VMs' addresses lie, of the whole operator; one a family.",
)
@click.option(
    "--interface",
    "interfaces",
    type=INTERFACE,
    multiple=True,
    required=True,
    help="An interface: with IGP neighbours, passive (NVEs), or to another AS.",
)
@click.option(
    "--home",
    "homes",
    type=HOME,
    multiple=True,
    help="A home prefix of an NVE that hangs on this router, and the NVE's locator.",
)
@click.option("--igp", type=click.Choice(["ospf", "isis"]), default="ospf", show_default=True)
@click.option("--asn", type=click.IntRange(1, (1 << 32) - 1), help="Own AS: a border router.")
@click.option(
    "--neighbour",
    "inside",
    type=INSIDE,
    multiple=True,
    help="Another border router of this operator: host routes are exchanged with it.",
)
@click.option(
    "--upstream",
    "outside",
    type=OUTSIDE,
    multiple=True,
    help="Any other BGP neighbour: it gets covering prefixes alone.",
)
@click.option(
    "--covering",
    type=PREFIX,
    multiple=True,
    help="A covering prefix that this data centre announces by BGP.",
)
@click.option(
    "--router-id",
    type=PlainText("IPV4", IPv4Address),
    default=IPv4Address("192.0.2.1"),
    show_default=True,
)
@click.option("--hostname", default=socket.gethostname, help="This host's name unless given.")
@click.option("--check", "checked", is_flag=True, help="Have FRR's own tool check it first.")
def frr_config(
    vm_prefixes: tuple[Prefix, ...],
    interfaces: tuple[InterfacePlan, ...],
    homes: tuple[StaticRoute, ...],
    igp: str,
    asn: int | None,
    inside: tuple[Neighbour, ...],
    outside: tuple[Neighbour, ...],
    covering: tuple[Prefix, ...],
    router_id: IPv4Address,
    hostname: str,
    checked: bool,
) -> None:
    """Print FRR's configuration for this router: redistribution of VMs' host routes, the policies
    that keep them inside, and the timers that must be tuned, each with its reason.

    Paste what is missing into frr.conf and load it with FRR's own reload tool.  A move changes
    nothing in it.
    """
    if (inside or outside) and asn is None:
        raise click.UsageError("--neighbour and --upstream need --asn")
    plan = RouterPlan(
        hostname,
        router_id,
        interfaces,
        "isis" if igp == "isis" else "ospf",
        homes,
        vm_prefixes,
        covering,
        BgpPlan(asn, (*inside, *outside)) if asn is not None else None,
    )
    text = render(plan)
    if checked:
        check_by_frr(text)
    click.echo(text, nl=False)
