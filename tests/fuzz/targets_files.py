"""Fuzz targets of files that people or other nodes write: configurations, keys, VMs, the lab's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets_store import folder
from vmmobility.cli.definition_file import read_definition
from vmmobility.daemon import config, config_files, keys
from vmmobility.daemon.config_template import template
from vmmobility.drivers.hypervisor import definition
from vmmobility.errors import ConfigError, DecodeError, LabError, VmMobilityError
from vmmobility.lab import fabric, logbook, scenario
from vmmobility.wire.registry import Role

VM = b"""vm_id = "web-1"
vni = 0
kind = "qemu"
vcpus = 2
memory_mib = 256
[machine]
kernel = "/boot/vmlinuz"
append = "console=ttyS0"
[[interface]]
mac = "52:54:00:00:00:01"
addresses = ["10.1.0.5/32", "fd01::5/128"]
"""


def _words(error: VmMobilityError) -> str:
    """The error's kind, without the values that differ each time."""
    said = error.message.rsplit(": ", 1)[-1]
    return type(error).__name__ + ": " + "".join(c for c in said if c.isalpha() or c == " ")[:24]


def _file(
    name: str, read: Callable[[Path], object], kind: type[VmMobilityError], data: bytes
) -> str:
    path = folder() / name
    path.write_bytes(data)
    path.chmod(0o600)
    try:
        read(path)
    except kind as error:
        refusal: VmMobilityError = error
    else:
        return "value"
    assert refusal.message, "an error without words"
    assert refusal.remedy, "an error without a remedy"
    return _words(refusal)


def definition_json(data: bytes) -> str:
    try:
        found = definition.decode(data)
    except DecodeError as error:
        return _words(error)
    again = definition.encode(found)
    assert definition.decode(again) == found, "it changed"
    assert definition.encode(definition.decode(again)) == again
    return "value"


def log_line(data: bytes) -> str:
    return "none" if logbook.parse(data, "nve-a") is None else "event"


def _definitions() -> Iterator[bytes]:
    path = folder() / "seed.toml"
    path.write_bytes(VM)
    yield definition.encode(definition.load(path))


def _pairs() -> Iterator[bytes]:
    place = folder() / "keys"
    manager, nve = keys.Node("manager", Role.MANAGER), keys.Node("nve-a", Role.NVE)
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    path, _ = keys.create(place, nve, manager, moment)
    yield path.read_bytes()
    keys.rotate(path, moment)
    yield path.read_bytes()


def _templates(*roles: str) -> Iterator[bytes]:
    yield from (template(role).encode() for role in roles)


def _built_in(files: Iterable[Path]) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in files)


def _text(
    name: str, file: str, read: Callable[[Path], object], kind: type[VmMobilityError],
    made: Callable[[], Iterable[bytes]],
) -> Target:  # fmt: skip
    words = (b"[[peer]]\n", b"[node]\n", b'id = "x"\n', b"= 5\n", b"= []\n", b'= ""\n', b"= {}\n",
             b"[[interface]]\n", b"= inf\n", b"= 1979-05-27\n")  # fmt: skip
    return Target(name, partial(_file, file, read, kind), made, words, longest=6000, weight=0.3)


TARGETS = (
    Target("definition-json", definition_json, lambda: _definitions(),
           (b'"interface"', b'"machine"', b'"vni":', b'"addresses":[')),
    _text("definition-file", "vm.toml", definition.load, ConfigError, lambda: [VM]),
    _text("vm-toml", "cli.toml", read_definition, ConfigError, lambda: [VM]),
    _text("vm-json", "cli.json", read_definition, ConfigError, _definitions),
    _text("manager-config", "manager.toml", config.load_manager, ConfigError,
          lambda: _templates("manager")),
    _text("nve-config", "nve.toml", config.load_nve, ConfigError, lambda: _templates("nve")),
    _text("any-config", "any.toml", config_files.load, ConfigError,
          lambda: _templates("manager", "nve")),
    _text("keys", "manager--nve-a.toml", keys.read_pair, ConfigError, _pairs),
    _text("fabric", "fabric.toml", fabric.load_fabric, LabError,
          lambda: _built_in(fabric.built_in().values())),
    _text("scenario", "scenario.toml", scenario.load_scenario, LabError,
          lambda: _built_in(scenario.built_in().values())),
    Target("log-line", log_line,
           lambda: [b'{"ts_ns":17,"node":"nve-a","event":"drop","vm":"v","vni":0,"move":"m"}'],
           (b'"ts_ns":', b'"event":')),
)  # fmt: skip
