"""A run of `vmmob` as tests see it, its commands by the daemon that they ask, and a definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

MANAGER_COMMANDS = (["vm", "list"], ["vm", "show", "vm1"], ["show", "bindings"],
                    ["show", "nves"], ["show", "moves"], ["manager", "status"],
                    ["show", "onboarded"], ["show", "alarms"], ["check"],
                    ["group", "list"],
                    ["trace", "10.1.0.5"],
                    ["move", "vm1", "nve-b"])  # fmt: skip
NVE_COMMANDS = (["nve", "list"], ["nve", "status"], ["nve", "check"], ["nve", "alarms"],
                ["show", "tunnels"], ["nve", "stop", "vm1"])  # fmt: skip

TOML = """
vm_id = "vm1"
kind = "qemu"
vcpus = 2
memory_mib = 64
[machine]
kernel = "/boot/vmlinuz"
[[interface]]
mac = "52:54:00:00:00:01"
addresses = ["10.1.0.5", "fd01::5"]
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vmmob = Callable[..., Ran]
