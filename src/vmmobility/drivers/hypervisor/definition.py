"""A VM's definition as compact JSON (between NVEs) and as a TOML file (from people).

encode(definition) -> bytes      decode(bytes) -> VmDefinition, DecodeError
load(path) -> VmDefinition       ConfigError naming file and key
decode_interfaces(value)         its interfaces alone, DecodeError

Not here: whether its files exist on this machine (the drivers see to that).
Rests on interface.py and wire.values.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.disk_images import MARKS, SEEN
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.engine.dataplane import RedirectPolicy
from vmmobility.errors import ConfigError, DecodeError
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import Interface, Prefix, VmKey

KINDS = ("qemu", "netns", "external")
MACHINE_KEYS = {
    "qemu": ("kernel", "initrd", "append"),
    "netns": ("namespace",),
    "external": ("qmp",),
}
MACHINE_REQUIRED = {"qemu": ("kernel",), "netns": (), "external": ("qmp",)}
SOCKET_PATH_LIMIT = 107  # octets: what the address of a Unix socket holds
NAMESPACE_LIMIT = 255  # octets: of a file's name
VNI_LIMIT = 1 << 24
VM_ID_LIMIT = 255  # octets of UTF-8
VCPUS_LIMIT = 255
MEMORY_LIMIT_MIB = 1 << 24
INTERFACES_LIMIT = 16
DISK_FORMATS = ("qcow2", "raw")
DISKS_LIMIT = 8
MEMBER_LIMIT = 0xFFFF
DISK_LIMIT_MIB = 1 << 26
DISK_PATH_LIMIT = 255  # octets: definitions travel in datagrams
ENCODED_LIMIT = 64 * 1024  # octets: a definition is small, whoever sends more is wrong

KEYS = (
    "vm_id", "vni", "kind", "vcpus", "memory_mib", "machine", "interface", "redirect", "disk",
    "member",
)  # fmt: skip

# Called with (key, what is wrong); raises the error that suits the source.
_Reject = Callable[[str, str], Exception]


def encode(definition: VmDefinition) -> bytes:
    """The definition as JSON without white space; equal definitions give equal bytes."""
    document: dict[str, Any] = {
        "vm_id": definition.vm.vm_id,
        "vni": definition.vm.vni,
        "kind": definition.kind,
        "vcpus": definition.vcpus,
        "memory_mib": definition.memory_mib,
        "machine": definition.machine,
        "interface": [
            {"mac": i.mac_text, "addresses": [str(p) for p in i.prefixes]}
            for i in definition.interfaces
        ],
    }
    if definition.redirect is not None:  # an NVE that does not know the key refuses it
        document["redirect"] = definition.redirect.value
    if definition.disks:
        document["disk"] = [asdict(disk) for disk in definition.disks]
    if definition.member:
        document["member"] = definition.member
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def decode(data: bytes) -> VmDefinition:
    """The definition in `data`.  Raises DecodeError, reason "definition", naming the key."""
    if len(data) > ENCODED_LIMIT:
        raise _undecodable("(all)", f"{len(data)} octets are more than {ENCODED_LIMIT}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _undecodable("(all)", f"not JSON: {error}") from None
    return _definition(document, _undecodable)


def decode_interfaces(value: object) -> tuple[Interface, ...]:
    """A definition's list of interfaces alone.  Raises DecodeError, naming the key."""
    return _interfaces(value, _undecodable)


def _undecodable(key: str, problem: str) -> Exception:
    return DecodeError("definition", f"VM definition: {key}: {problem}")


def load(path: Path) -> VmDefinition:
    """The definition in the TOML file `path`.  Raises ConfigError naming the file and the key."""

    def reject(key: str, problem: str) -> Exception:
        return ConfigError(f"{path}: {key}: {problem}", f"correct {key} in {path}")

    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", "name a readable VM file"
        ) from None
    except (ValueError, RecursionError) as error:  # tomllib raises both, and its own
        raise ConfigError(f"{path}: not TOML: {error}", "correct the file's syntax") from None
    return _definition(document, reject)


def _definition(document: object, reject: _Reject) -> VmDefinition:
    if not isinstance(document, Mapping):
        raise reject("(all)", "must be a table of keys")
    _only_known(document, KEYS, "", reject)
    kind = document.get("kind", "qemu")
    if kind not in KINDS:
        raise reject("kind", f"{kind!r} is none of {', '.join(KINDS)}")
    return VmDefinition(
        vm=VmKey(
            vni=_integer(document, "vni", 0, (0, VNI_LIMIT - 1), reject),
            vm_id=_vm_id(document, reject),
        ),
        kind=kind,
        interfaces=_interfaces(document.get("interface"), reject),
        vcpus=_integer(document, "vcpus", 1, (1, VCPUS_LIMIT), reject),
        memory_mib=_integer(document, "memory_mib", 128, (1, MEMORY_LIMIT_MIB), reject),
        machine=_machine(document.get("machine", {}), kind, "disk" in document, reject),
        redirect=_redirect(document.get("redirect"), reject),
        disks=_disks(document.get("disk", []), kind, reject),
        member=_integer(document, "member", 0, (0, MEMBER_LIMIT), reject),
    )


def _disks(value: object, kind: str, reject: _Reject) -> tuple[Disk, ...]:
    if not isinstance(value, list):
        raise reject("disk", "must be a list of tables: [[disk]]")
    if value and kind != "qemu":
        raise reject("disk", f"a VM of kind {kind!r} has no disks of ours")
    if len(value) > DISKS_LIMIT:
        raise reject("disk", f"at most {DISKS_LIMIT} are possible")
    disks = tuple(_disk(item, f"disk[{n}]", reject) for n, item in enumerate(value))
    for n, disk in enumerate(disks):
        if disk.path in {other.path for other in disks[:n]}:
            raise reject(f"disk[{n}].path", f"{disk.path} is used twice")
    return disks


def _disk(item: object, where: str, reject: _Reject) -> Disk:
    if not isinstance(item, Mapping):
        raise reject(where, "must be a table")
    _only_known(item, ("path", "format", "size_mib"), f"{where}.", reject)
    path, image_format = item.get("path"), item.get("format", DISK_FORMATS[0])
    if not isinstance(path, str) or not path.isprintable() or path.endswith("/") or not path:
        raise reject(f"{where}.path", "must be the path of an image")
    if ".." in Path(path).parts or len(path.encode()) > DISK_PATH_LIMIT:
        raise reject(f"{where}.path", f"must be without .. and of {DISK_PATH_LIMIT} octets at most")
    if path.endswith(MARKS) or SEEN in path:
        raise reject(f"{where}.path", f"must not end like a mark: {', '.join(MARKS)}, {SEEN}…")
    if image_format not in DISK_FORMATS:
        raise reject(f"{where}.format", f"{image_format!r} is none of {', '.join(DISK_FORMATS)}")
    if "size_mib" not in item:
        raise reject(f"{where}.size_mib", "is required: an NVE may have to make such an image")
    size_mib = _integer(item, "size_mib", 0, (1, DISK_LIMIT_MIB), _in(where, reject))
    return Disk(str(Path(path)), image_format, size_mib)


def _in(where: str, reject: _Reject) -> _Reject:
    return lambda key, problem: reject(f"{where}.{key}", problem)


def _redirect(value: object, reject: _Reject) -> RedirectPolicy | None:
    if value is None:
        return None
    policies = {policy.value: policy for policy in RedirectPolicy}
    if not isinstance(value, str) or value not in policies:
        raise reject("redirect", f"{value!r} is none of {', '.join(policies)}")
    return policies[value]


def _only_known(
    table: Mapping[Any, Any], known: Sequence[str], prefix: str, reject: _Reject
) -> None:
    for key in table:
        if key not in known:
            name = key if isinstance(key, str) and key.isprintable() else repr(key)
            raise reject(f"{prefix}{name}", f"unknown key; known are {', '.join(known)}")


def _vm_id(document: Mapping[str, Any], reject: _Reject) -> str:
    value = document.get("vm_id")
    if not isinstance(value, str) or not value or not value.isprintable():
        raise reject("vm_id", "must be a non-empty string of printable characters")
    if len(value.encode()) > VM_ID_LIMIT:
        raise reject("vm_id", f"must be at most {VM_ID_LIMIT} octets")
    return value


def _integer(
    table: Mapping[str, Any], key: str, default: int, bounds: tuple[int, int], reject: _Reject
) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise reject(key, f"must be a whole number, not {value!r}")
    if not bounds[0] <= value <= bounds[1]:
        raise reject(key, f"{value} is not between {bounds[0]} and {bounds[1]}")
    return value


def _machine(value: object, kind: str, has_disk: bool, reject: _Reject) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise reject("machine", "must be a table")
    _only_known(value, MACHINE_KEYS[kind], "machine.", reject)
    for key, setting in value.items():
        if not isinstance(setting, str) or "\0" in setting:
            raise reject(f"machine.{key}", "must be a string")
        if not _can_be_a_word(setting):
            raise reject(f"machine.{key}", f"{setting!r} cannot be a word of a command line")
    for key in MACHINE_REQUIRED[kind]:
        if not value.get(key) and not (key == "kernel" and has_disk):  # it boots from that
            raise reject(f"machine.{key}", f"is required for kind {kind!r}")
    if kind == "netns" and "namespace" in value:
        _namespace(value["namespace"], reject)
    if kind == "external":
        _socket_path(value["qmp"], "machine.qmp", reject)
    return dict(value)


def _can_be_a_word(text: str) -> bool:
    """Whether a program, or the kernel as a file's name, can be given the text: JSON's texts may
    hold half a surrogate pair, which has no octets."""
    try:
        return text.encode() == os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _namespace(value: str, reject: _Reject) -> None:
    """The name of a file in /run/netns, and no way out of there."""
    try:
        check_name(value, NAMESPACE_LIMIT)
    except ValueError as error:
        raise reject("machine.namespace", str(error)) from None
    if value in (".", ".."):
        raise reject("machine.namespace", f"{value!r} is no name")


def _socket_path(value: str, key: str, reject: _Reject) -> None:
    if not value.startswith("/"):
        raise reject(key, f"{value!r} must be an absolute path: daemons have a folder of their own")
    length = len(os.fsencode(value))
    if length > SOCKET_PATH_LIMIT:
        raise reject(key, f"a socket's path has at most {SOCKET_PATH_LIMIT} octets, not {length}")


def _interfaces(value: object, reject: _Reject) -> tuple[Interface, ...]:
    if not isinstance(value, list) or not value:
        raise reject("interface", "at least one [[interface]] is required")
    if len(value) > INTERFACES_LIMIT:
        raise reject("interface", f"at most {INTERFACES_LIMIT} are possible")
    interfaces = tuple(_interface(item, f"interface[{n}]", reject) for n, item in enumerate(value))
    seen: set[bytes] = set()
    for n, interface in enumerate(interfaces):
        if interface.mac in seen:
            raise reject(f"interface[{n}].mac", f"{interface.mac_text} is used twice")
        seen.add(interface.mac)
    return interfaces


def _interface(item: object, where: str, reject: _Reject) -> Interface:
    if not isinstance(item, Mapping):
        raise reject(where, "must be a table")
    _only_known(item, ("mac", "addresses"), f"{where}.", reject)
    addresses = item.get("addresses")
    if not isinstance(addresses, list) or not addresses:
        raise reject(f"{where}.addresses", "must be a list of at least one address")
    prefixes = tuple(_prefix(a, f"{where}.addresses", reject) for a in addresses)
    if len(set(prefixes)) != len(prefixes):
        raise reject(f"{where}.addresses", "an address stands in it twice")
    return Interface(mac=_mac(item.get("mac"), f"{where}.mac", reject), prefixes=prefixes)


def _mac(value: object, key: str, reject: _Reject) -> bytes:
    octets = value.split(":") if isinstance(value, str) else []
    try:
        mac = bytes(int(octet, 16) for octet in octets if len(octet) == 2)
    except ValueError:
        mac = b""
    if len(mac) != 6 or len(octets) != 6:
        raise reject(key, f"{value!r} is not a MAC such as 52:54:00:00:00:01")
    if mac[0] & 1 or not any(mac):
        raise reject(key, f"{value} is a group or null address, not an interface's")
    return mac


def _prefix(value: object, key: str, reject: _Reject) -> Prefix:
    if not isinstance(value, str):
        raise reject(key, f"{value!r} is not a string")
    try:
        prefix = ip_network(value)
    except ValueError as error:
        raise reject(key, str(error)) from None
    if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local or prefix.prefixlen == 0:
        raise reject(key, f"{value} cannot be a VM's address")
    return prefix
