"""What a program sends to have a VM (docs/api.md), as what the engine is asked for, and back.

Not here: whether there is room (engine/manager_admission.py).  Rests on the definitions of VMs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vmmobility.drivers.hypervisor.definition import decode, encode
from vmmobility.engine.binding_update_list import interface_to_json
from vmmobility.engine.capacity import Resources, resources_of
from vmmobility.engine.lifecycle_record import Life, VmRequest
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.errors import BadRequest, DecodeError
from vmmobility.wire.definition_keys import file_keys
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import VmKey

MOST = 1 << 26
MOST_KEY = 128  # characters of a client key
# What a request says besides; the rest is the VM's definition.
BESIDES = ("client_key", "resources", "placement")
RESOURCES = ("vcpus", "memory_mib", "storage_mib", "threads")


def request_of(body: Mapping[str, Any]) -> VmRequest:
    """Raises BadRequest, naming the key."""
    told = _counts(body.get("resources", {}), "resources")
    document = {key: value for key, value in body.items() if key not in BESIDES}
    for key in ("vcpus", "memory_mib"):
        if key in told and body.get(key, told[key]) != told[key]:
            raise _wrong(f"resources.{key}: {told[key]}, but {key} is {body[key]}", "say it once")
        if told.get(key):
            document[key] = told[key]
    try:
        definition = decode(json.dumps(file_keys(document)).encode())
    except (DecodeError, ValueError) as error:
        raise _wrong(str(error), "correct the VM's definition") from None
    if definition.kind == "external":
        what = "kind: guests of other hands are not created by us"
        raise _wrong(what, "let an NVE expect it: `vmmob nve expect`")
    data = encode(definition)
    resources = resources_of(data)
    resources = replace(
        resources,
        vcpus=told.get("vcpus", resources.vcpus),
        memory_mib=told.get("memory_mib", resources.memory_mib),
        storage_mib=max(told.get("storage_mib", 0), resources.storage_mib),
    )
    nves, centre, apart = _placement(body.get("placement", {}), definition.vm.vni)
    return VmRequest(
        _client_key(body.get("client_key")),
        digest_of(body),
        definition.vm,
        definition.interfaces,
        data,
        resources,
        told.get("threads", 0),
        nves,
        centre,
        apart,
    )


def digest_of(body: Mapping[str, Any]) -> str:
    """The same for the same request, in whatever order its keys stand."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def adjusted(life: Life, body: Mapping[str, Any]) -> tuple[Resources, bytes] | None:
    """What a confirmation makes of the VM: its resources and definition; None: as offered.

    Raises BadRequest."""
    told = _counts(body.get("resources", {}), "resources")
    told.pop("threads", None)
    if not told:
        return None
    less = replace(life.request.resources, **told)
    definition = decode(life.request.definition)
    if definition.kind == "netns":
        return less, life.request.definition
    disks = resources_of(life.request.definition).storage_mib
    if less.storage_mib < disks:
        raise _wrong(f"resources.storage_mib: its disks have {disks} MiB", "leave it as it is")
    if not less.vcpus or not less.memory_mib:
        raise _wrong("resources: a VM has a vCPU and memory", "ask for 1 or more")
    return less, encode(replace(definition, vcpus=less.vcpus, memory_mib=less.memory_mib))


def _counts(value: object, where: str) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _wrong(f"{where}: no object", "send {…}")
    for key, count in value.items():
        if key not in RESOURCES:
            known = ", ".join(RESOURCES)
            raise _wrong(f"{where}.{_shown(key)}: unknown key", f"known are {known}")
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST:
            raise _wrong(f"{where}.{key}: {count!r} is no count", f"use 0 to {MOST}")
    return dict(value)


def _placement(value: object, vni: int) -> tuple[tuple[str, ...], str, tuple[VmKey, ...]]:
    if not isinstance(value, Mapping):
        raise _wrong("placement: no object", "send {…}")
    unknown = sorted(set(value) - {"nves", "dc", "anti_affinity"})
    if unknown:
        what = f"placement.{_shown(unknown[0])}: unknown key"
        raise _wrong(what, "known are nves, dc, anti_affinity")
    centre = value.get("dc", "")
    if not isinstance(centre, str) or not centre.isprintable():
        raise _wrong("placement.dc: no text", "name a data centre of the routers")
    nves = _names(value.get("nves", []), "placement.nves")
    apart = _names(value.get("anti_affinity", []), "placement.anti_affinity")
    return nves, centre, tuple(VmKey(vni, name) for name in apart)


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(f"{where}: no list", "send [NAME, …]")
    try:
        return tuple(check_name(name if isinstance(name, str) else "") for name in value)
    except ValueError as error:
        raise _wrong(f"{where}: {error}", "name NVEs, or VMs, by their IDs") from None


def _client_key(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MOST_KEY:
        raise _wrong(
            "client_key: is missing, or no text",
            f"choose one of 1 to {MOST_KEY} characters, a fresh one for each VM",
        )
    return value


def _shown(key: str) -> str:
    """A key as an answer can hold it: half a surrogate pair has no octets."""
    return key if key.isprintable() else repr(key)


def _wrong(what: str, remedy: str) -> BadRequest:
    return BadRequest(what, remedy)


def life_view(life: Life, state: str, nve_id: str, now: float) -> dict[str, Any]:
    """A VM's life as people see it (docs/api.md).  now: monotonic seconds."""
    asked = life.request
    resources = {
        "vcpus": asked.resources.vcpus,
        "memory_mib": asked.resources.memory_mib,
        "storage_mib": asked.resources.storage_mib,
        "threads": asked.threads,
    }
    offered = life.state is LifeState.OFFERED
    left = round(max(life.offer_until - now, 0.0), 1)
    at = life.server or None
    offer = {"nve": life.nve_id, "server": at, "resources": resources, "expires_in_s": left}
    return {
        "vni": life.vm.vni,
        "vm": life.vm.vm_id,
        "state": state,
        "nve": nve_id or life.nve_id,
        "reason": life.reason,
        "client_key": asked.client_key,
        "resources": resources,
        "offer": offer if offered else None,
        "placement": {
            "nves": list(asked.nves),
            "dc": asked.dc,
            "anti_affinity": [vm.vm_id for vm in asked.apart],
        },
    }


def unbound_view(life: Life, liveness: str) -> dict[str, Any]:
    """A VM that no NVE has (yet), as a binding is shown."""
    return {
        "vni": life.vm.vni,
        "vm": life.vm.vm_id,
        "nve": life.nve_id,
        "server": life.server or None,
        "epoch": 0,
        "lifetime_s": 0,
        "expires_in_s": None,
        "interfaces": [interface_to_json(i) for i in life.request.interfaces],
        "previous": [],
        "state": "unbound",
        "nve_liveness": liveness,
        "guest": "none",
        "guest_ordered": None,
        "guest_error": "",
    }
