"""Messages as plain JSON values and back: for people, captures and docs/vectors.

Names are those of registry.py and of the table OPTIONS; octets that are no ASCII text are hex,
integers beyond 2^53 - 1 decimal strings.
Not here: bytes (message.py, options.py).  Rests on message and options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    BY_CLASS,
    AttachId,
    Capacity,
    Checkpoint,
    Definition,
    Endpoint,
    Epoch,
    FlowOption,
    GroupMember,
    GroupOption,
    Guest,
    GuestStateOption,
    InterfaceGroup,
    KnownBoot,
    Mapping,
    Measurements,
    MobilityKind,
    MoveTerms,
    Nonce,
    Option,
    OriginAuthentication,
    PhaseOption,
    PreviousNve,
    Protection,
    Reason,
    Route,
    ServingNve,
    Sight,
    Supported,
    Ticket,
    Timestamp,
    Translation,
    UnknownOption,
    VmId,
)
from vmmobility.wire.registry import (
    CopyStorage,
    GuestLife,
    GuestState,
    Kind,
    Mobility,
    OnTimeout,
    Phase,
    Purpose,
    RouteState,
    Status,
)
from vmmobility.wire.values import Interface, Nve, VmKey

Readable = dict[str, Any]
_EXACT = 2**53 - 1


def _octets(data: bytes) -> Readable:
    return {"text": data.decode()} if data.isascii() else {"hex": data.hex()}


def _data(entry: Readable) -> bytes:
    return entry["text"].encode() if "text" in entry else bytes.fromhex(entry["hex"])


def _plain(value: Any) -> Any:
    """One value of an option as JSON: enumerations by name, addresses as text, octets as hex."""
    match value:
        case IntEnum():
            return value.name
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(v) for v in value]
        case int():  # RFC 7493: greater integers do not survive every reader of JSON
            return value if value <= _EXACT else str(value)
        case str() | None:
            return value
        case _:
            return str(value)


def _fields(value: Any) -> Readable:
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}


def _located(nve: Nve) -> Readable:
    found = {f"ipv{locator.version}": str(locator) for locator in nve.locators}
    return {"nve_id": nve.nve_id, **found}


def readable_option(option: Option) -> Readable:
    """One option: its name in the table and its values."""
    match option:
        case UnknownOption(wire_type, data):
            return {"option": "unknown", "type": wire_type, "hex": data.hex()}
        case VmId(vm):
            values = _fields(vm)
        case InterfaceGroup(interface):
            values = {"mac": interface.mac_text, "prefixes": _plain(interface.prefixes)}
        case ServingNve(nve) | PreviousNve(nve):
            values = _located(nve)
        case GroupMember(member, nve):
            values = {"member": member, **_located(nve)}
        case Definition(data) | Measurements(data):
            values = _octets(data)
        case _:
            values = _fields(option)
    return {"option": BY_CLASS[type(option)].name, **values}


def readable(message: Message) -> Readable:
    """A whole message, its options in their order."""
    return {
        "kind": message.kind.name,
        "purpose": message.purpose.name,
        "status": message.status.name,
        "flags": message.flags,
        "sequence": message.sequence,
        "lifetime": message.lifetime,
        "options": [readable_option(o) for o in message.options],
    }


def _nve(entry: Readable) -> Nve:
    v4, v6 = entry.get("ipv4"), entry.get("ipv6")
    return Nve(entry["nve_id"], v4 and IPv4Address(v4), v6 and IPv6Address(v6))


def _interface(entry: Readable) -> Interface:
    mac = bytes.fromhex(entry["mac"].replace(":", ""))
    return Interface(mac, tuple(ip_network(p) for p in entry["prefixes"]))


def _end(entry: list[Any]) -> tuple[IPv4Address, int]:
    return IPv4Address(entry[0]), int(entry[1])


def _flow(entry: Readable) -> FlowOption:
    return FlowOption(
        entry["protocol"],
        bool(entry["outgoing"]),
        _end(entry["private"]),
        _end(entry["public"]),
        _end(entry["remote"]),
        entry["timeout_s"],
        entry["tcp_state"],
    )


def _mapped(entry: Readable, first: str, second: str) -> tuple[str, IPv4Address, IPv4Address]:
    return entry["box"], IPv4Address(entry[first]), IPv4Address(entry[second])


_READERS: dict[type, Callable[[Readable], Option]] = {
    VmId: lambda e: VmId(VmKey(e["vni"], e["vm_id"])),
    InterfaceGroup: lambda e: InterfaceGroup(_interface(e)),
    ServingNve: lambda e: ServingNve(_nve(e)),
    PreviousNve: lambda e: PreviousNve(_nve(e)),
    Epoch: lambda e: Epoch(int(e["epoch"])),
    Ticket: lambda e: Ticket(bytes.fromhex(e["ticket"])),
    AttachId: lambda e: AttachId(int(e["attach_id"])),
    MobilityKind: lambda e: MobilityKind(Mobility[e["mobility"]], e["member"]),
    PhaseOption: lambda e: PhaseOption(Phase[e["phase"]]),
    Timestamp: lambda e: Timestamp(int(e["time_ns"])),
    Definition: lambda e: Definition(_data(e)),
    Endpoint: lambda e: Endpoint(ip_address(e["address"]), e["port"]),
    Measurements: lambda e: Measurements(_data(e)),
    Supported: lambda e: Supported(tuple(e["values"])),
    Reason: lambda e: Reason(e["text"]),
    Nonce: lambda e: Nonce(bytes.fromhex(e["nonce"])),
    KnownBoot: lambda e: KnownBoot(int(e["boot"])),
    Guest: lambda e: Guest(GuestLife[e["life"]]),
    GuestStateOption: lambda e: GuestStateOption(
        GuestState[e["state"]], bool(e["kept"]), e["grace_s"], int(e["ordered"])
    ),
    Route: lambda e: Route(RouteState[e["state"]]),
    Sight: lambda e: Sight(bool(e["direct"]), bool(e["covered"])),
    OriginAuthentication: lambda e: OriginAuthentication(
        e["key_id"], int(e["boot"]), bytes.fromhex(e["digest"])
    ),
    Translation: lambda e: Translation(*_mapped(e, "original", "substitute")),
    Mapping: lambda e: Mapping(*_mapped(e, "private", "public")),
    FlowOption: _flow,
    MoveTerms: lambda e: MoveTerms(
        e["timeout_s"],
        OnTimeout[e["on_timeout"]],
        e["bandwidth_mib_s"],
        e["downtime_ms"],
        CopyStorage[e["copy_storage"]],
    ),
    Protection: lambda e: Protection(*(e[f.name] for f in fields(Protection))),
    Checkpoint: lambda e: Checkpoint(int(e["number"]), e["age_ms"]),
    Capacity: lambda e: Capacity(*(e[f.name] for f in fields(Capacity))),
    GroupOption: lambda e: GroupOption(int(e["epoch"]), e["member"], e["name"]),
    GroupMember: lambda e: GroupMember(e["member"], _nve(e)),
}
_BY_NAME = {BY_CLASS[option].name: reader for option, reader in _READERS.items()}


def option_of(entry: Readable) -> Option:
    """What readable_option wrote.  Raises KeyError or ValueError for anything else."""
    if entry["option"] == "unknown":
        return UnknownOption(entry["type"], bytes.fromhex(entry["hex"]))
    return _BY_NAME[entry["option"]](entry)


def message_of(entry: Readable) -> Message:
    """What readable wrote.  Raises KeyError or ValueError for anything else."""
    return Message(
        Kind[entry["kind"]],
        Purpose[entry["purpose"]],
        entry["sequence"],
        tuple(option_of(o) for o in entry["options"]),
        entry["lifetime"],
        Status[entry["status"]],
        entry["flags"],
    )
