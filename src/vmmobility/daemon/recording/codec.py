"""The values of inputs and outputs as JSON and back; what has no place here is refused.

A value that JSON lacks is an object with one key, which begins with '$': {"$VmKey": {…}},
{"$bytes": "00ff"}, {"$ip": "10.0.0.1"}.  Inside a value's fields every list is a tuple.
Not here: datagrams (sealed.py).  Rests on json, whose C encoder does most of the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, get_args

from vmmobility.daemon.recording.sealed import sent
from vmmobility.drivers.dataplane import Traffic
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom
from vmmobility.engine.channel import Retransmission
from vmmobility.engine.dataplane import Forwarding, Outside, RedirectPolicy, VmDataPlane
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.fabric_routes import RouteAction, Sight, VmRoutes
from vmmobility.engine.lifecycle_record import VmRequest
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.napt_plane import Detour, Flow, NaptState, PortMapping, StaticMapping
from vmmobility.engine.nve import NveSettings
from vmmobility.engine.outputs import Endpoint, Order, Output, Send
from vmmobility.engine.router import RouterSettings
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.values import Address, Interface, Nve, VmKey

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        VmKey,
        Interface,
        Nve,
        VmDataPlane,
        VmRoutes,
        Sight,
        RouterSite,
        NaptState,
        StaticMapping,
        PortMapping,
        Detour,
        Flow,
        Traffic,
        MoveTerms,
        Retransmission,
        Resources,
        VmRequest,
        HostCapacity,
        ServerRoom,
        ManagerSettings,
        NveSettings,
        RouterSettings,
        *get_args(Output),
    )
}
ENUMS: dict[str, type[Enum]] = {
    e.__name__: e for e in (Order, Forwarding, Outside, RedirectPolicy, RouteAction)
}
MOVE = "$Move"  # a move that the engine holds, by its id
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in CLASSES.values() if is_dataclass(cls)}
_PLAIN = frozenset((type(None), bool, int, float, str))


def _foreign(value: Any) -> Any:
    """What json does not know.  Raises TypeError for what has no place in a recording."""
    kind = type(value)
    if kind is Send:
        return {
            "$Send": {
                "datagram": sent(value.data),
                "to": _endpoint(value.destination),
                "from": None if value.source is None else _address(value.source),
            }
        }
    names = _FIELDS.get(kind)
    if names is not None:
        return {f"${kind.__name__}": {name: getattr(value, name) for name in names}}
    if kind is bytes:
        return {"$bytes": value.hex()}
    if kind is IPv4Address or kind is IPv6Address:
        return {"$ip": _address(value)}
    if kind is IPv4Network or kind is IPv6Network:
        return {"$net": str(value)}
    if isinstance(value, Enum) and kind.__name__ in ENUMS:
        return {f"${kind.__name__}": value.value}
    if kind is Move:
        return {MOVE: value.move_id}
    raise TypeError(f"a {kind.__name__} has no place in a recording")


_ENCODER = json.JSONEncoder(default=_foreign, separators=(",", ":"))


def text(value: Any) -> str:
    """One line of JSON.  Raises TypeError for a value of an unknown type."""
    return _ENCODER.encode(value)


def argument(value: Any) -> Any:
    """An argument of an input, as `text` writes it without loss.  Raises TypeError."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Endpoint:
        return {"$Endpoint": _endpoint(value)}
    if kind is tuple:
        return {"$tuple": list(value)}
    if kind is set or kind is frozenset:
        return {"$set": sorted(value)}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(value)
        return {"$map": list(value.items())}
    if isinstance(value, int | float | str) or (isinstance(value, tuple) and kind is not tuple):
        raise TypeError(f"a {kind.__name__} has no place in a recording")  # json would flatten it
    return value


def _endpoint(value: Endpoint) -> list[Any]:
    return [_address(value.address), value.port]


@lru_cache(maxsize=1024)
def _address(value: Address) -> str:
    """A few addresses come again and again, and an IPv6 address takes long to write."""
    return str(value)


def value_of(written: Any, move_of: Callable[[str], Any] | None = None) -> Any:
    """What `argument` and `text` wrote.  Raises KeyError, ValueError or TypeError.

    move_of: finds the engine's move of an id
    """
    if isinstance(written, list):
        return [value_of(item, move_of) for item in written]
    if not isinstance(written, dict):
        return written
    name = next(iter(written), "")
    if len(written) != 1 or not name.startswith("$"):
        return {key: value_of(value, move_of) for key, value in written.items()}
    inner = written[name]
    if name == MOVE:
        if move_of is None:
            raise ValueError("a move has no place here")
        return move_of(inner)
    if name[1:] in CLASSES and name != "$Send":
        return _object(CLASSES[name[1:]], inner)
    if name[1:] in ENUMS:
        return ENUMS[name[1:]](inner)
    return _SIMPLE[name](inner)


def _object(cls: type, inner: Mapping[str, Any]) -> Any:
    return cls(**{name: _tuples(value_of(value)) for name, value in inner.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def endpoint_of(written: Any) -> Endpoint:
    address, port = written
    return Endpoint(ip_address(address), int(port))


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "$bytes": bytes.fromhex,
    "$ip": ip_address,
    "$net": ip_network,
    "$Endpoint": endpoint_of,
    "$tuple": lambda inner: tuple(value_of(item) for item in inner),
    "$set": lambda inner: {value_of(item) for item in inner},
    "$map": lambda inner: {value_of(key): value_of(value) for key, value in inner},
}
