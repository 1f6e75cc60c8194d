"""What must hold among a fabric's parts: names, addresses, and who routes with whom.

Every mistake is a LabError that names the place and the remedy.  Not here: single values, which
fabric.py checks as it reads them.  Rests on fabric_values.
"""

from __future__ import annotations

from vmmobility.errors import LabError
from vmmobility.lab.fabric_values import Fabric, Link, Node
from vmmobility.lab.napt_daemons import apart


def check_fabric(fabric: Fabric, where: str) -> None:
    """Raises LabError."""
    names = [node.name for node in fabric.nodes] + [vm.name for vm in fabric.vms]
    names += [link.name for link in fabric.links] + [box.name for box in fabric.boxes]
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"{where}: the name {name!r} is used twice", "rename one")
    linked = {end.node for link in fabric.links for end in link.ends}
    for node in fabric.nodes:
        if node.name not in linked:
            raise LabError(f"{where}: {node.name} is on no link", "add a [[link]] with it")
    if len(fabric.of_kind("manager")) > 1:
        raise LabError(f"{where}: more than one manager", "leave one [[manager]]")
    _check_overlap(fabric, where)
    _check_groups(fabric, where)
    _check_routers(fabric, where)
    _check_boxes(fabric, where)


def _check_overlap(fabric: Fabric, where: str) -> None:
    """Nothing twice, but private IPv4 behind different NAPT boxes."""
    prefixes = [(p, "") for link in fabric.links for p in link.prefixes]
    prefixes += [(p, node.name) for node in fabric.nodes for p in node.home_prefixes]
    prefixes += [(p, "") for box in fabric.boxes for p in box.publics]
    for index, (one, owner) in enumerate(prefixes):
        for other, another in prefixes[index + 1 :]:
            if one.version != other.version or not one.overlaps(other):
                continue
            if not (one.version == 4 and owner and another and apart(fabric, owner, another)):
                raise LabError(f"{where}: {one} and {other} overlap", "renumber one of them")
    shared = {vm for group in fabric.groups for vm in group.vms[1:]}
    alone = [vm for vm in fabric.vms if vm.name not in shared]
    addresses = [(a.ip, vm.home) for vm in alone for a in vm.addresses]
    addresses += [(a.ip, "") for link in fabric.links for end in link.ends for a in end.addresses]
    for index, (address, owner) in enumerate(addresses):
        for there, another in addresses[index + 1 :]:
            if address != there:
                continue
            if not (address.version == 4 and owner and another and apart(fabric, owner, another)):
                raise LabError(f"{where}: {address} is used twice", "change one of them")


def _check_groups(fabric: Fabric, where: str) -> None:
    """Members are light VMs (they say who they are), with the first one's addresses."""
    vms = {vm.name: vm for vm in fabric.vms}
    for group in fabric.groups:
        found = [vms[name] for name in group.vms if name in vms]
        if len(found) < len(group.vms) or len(found) < 2:
            raise LabError(f"{where}: group {group.name}: {list(group.vms)}", "name several VMs")
        if any(vm.kind != "netns" or vm.addresses != found[0].addresses for vm in found):
            what = f"{where}: members of group {group.name} differ"
            raise LabError(what, 'give each kind = "netns" and the first one\'s addresses')
        if len({vm.home for vm in found}) < len(found):
            what = f"{where}: two members of group {group.name} at one NVE"
            raise LabError(what, "give each another home")


def _check_routers(fabric: Fabric, where: str) -> None:
    routers = fabric.of_kind("router")
    if not fabric.dynamic:
        for node in fabric.of_kind("collector"):
            raise LabError(f"{where}: {node.name} has nobody to hear: no router runs FRR",
                           "add `frr = true` to every router")  # fmt: skip
        for node in routers:
            if node.role != "transit" or node.dc or node.asn:
                raise LabError(f"{where}: {node.name} has a role, dc or asn but no FRR",
                               "add `frr = true` to every router")  # fmt: skip
        return
    for node in routers:
        _check_router(node, where)
        if node.software == "bird" and fabric.igp != "ospf":
            raise LabError(f"{where}: BIRD at {node.name} speaks no IS-IS", 'use igp = "ospf"')
    for node in fabric.of_kind("collector"):
        _check_collector(fabric, node, where)
    for node in fabric.nodes:
        if node.kind != "router" and not fabric.routers_of(node.name):
            raise LabError(f"{where}: {node.name}'s first link has no router",
                           "its default route goes by one: put that link first")  # fmt: skip
    for link in fabric.links:
        _check_link(fabric, link, where)
    for dc in {node.dc for node in routers if node.dc}:
        borders = [node.name for node in routers if node.dc == dc and node.role == "border"]
        if fabric.igp == "isis" and len(borders) > 1:
            raise LabError(f"{where}: {dc} has border routers {', '.join(borders)}",
                           "with IS-IS, whose tags do not match, leave one")  # fmt: skip


def _check_boxes(fabric: Fabric, where: str) -> None:
    routers = {node.name for node in fabric.of_kind("router")}
    for box in fabric.boxes:
        if box.at not in routers:
            raise LabError(f"{where}: {box.name} is at {box.at!r}", "`at` names a router")
    for vm in fabric.vms:
        if vm.public is not None and not any(
            vm.public in prefix for box in fabric.boxes for prefix in box.publics
        ):
            raise LabError(f"{where}: {vm.name}'s public {vm.public} leads to no box",
                           "choose one in the publics of a [[napt]]")  # fmt: skip


def _check_router(node: Node, where: str) -> None:
    if not node.software:
        raise LabError(f"{where}: {node.name} runs no FRR beside routers that do",
                       "add `frr = true` to every router, or to none")  # fmt: skip
    if node.software == "bird" and node.role != "border":
        raise LabError(f"{where}: {node.name} is no border router and runs BIRD",
                       "leave `software` out and add `frr = true`")  # fmt: skip
    if node.role != "transit" and not node.dc:
        raise LabError(f"{where}: {node.name} is a {node.role} router of no dc", "add `dc`")
    if node.role == "border" and not node.asn:
        raise LabError(f"{where}: {node.name} is a border router without asn", "add `asn`")
    if node.role == "default" and node.asn:
        raise LabError(f"{where}: {node.name} is a default router with an asn",
                       "leave it out: BGP is its border router's")  # fmt: skip


def _check_collector(fabric: Fabric, node: Node, where: str) -> None:
    borders = {router.name for router in fabric.of_kind("router") if router.role == "border"}
    if not node.asn:
        raise LabError(f"{where}: {node.name} is a collector without asn", "add `asn`")
    if not node.peers or not set(node.peers) <= borders:
        raise LabError(f"{where}: {node.name} is to hear {', '.join(node.peers) or 'nobody'}",
                       "`peers` names border routers")  # fmt: skip


def _check_link(fabric: Fabric, link: Link, where: str) -> None:
    routers = [node for node in fabric.of_kind("router") if link.end(node.name) is not None]
    for index, one in enumerate(routers):
        for other in routers[index + 1 :]:
            same_dc = one.dc == other.dc
            asns_differ = one.asn != other.asn and one.asn and other.asn
            if same_dc == bool(asns_differ):
                raise LabError(
                    f"{where}: {link.name} joins {one.name} and {other.name}, which speak neither "
                    "one IGP nor BGP",
                    "give both the same dc, or each a dc (or none) and an asn of its own",
                )
