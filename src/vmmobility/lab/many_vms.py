"""Three racks, with so many VMs in the first: `three-racks-N-vms` (light ones), `…-N-guests`.

Not here: what a fabric is (fabric.py).  Gives TOML data, so that it is read like a file.
"""

from __future__ import annotations

import re
from typing import Any

PATTERN = "three-racks-N-vms"
MOST = 250  # as many as the first rack's prefix has hosts
_NAME = re.compile(r"three-racks-(\d+)-(vms|guests)")
RACKS = ("a", "b", "c")


def is_name(name: str) -> bool:
    """Whether a fabric of that name is made here."""
    found = _NAME.fullmatch(name)
    return found is not None and 1 <= int(found[1]) <= MOST


def data(name: str) -> dict[str, Any]:
    """The fabric of that name."""
    found = _NAME.fullmatch(name)
    assert found is not None
    kind = "guest" if found[2] == "guests" else "netns"
    racks = [{"nodes": ["core", f"rack-{rack}"]} for rack in RACKS]
    hosts = [{"nodes": [f"rack-{rack}", f"nve-{rack}"]} for rack in RACKS]
    return {
        "description": f"Three racks, and {found[1]} VMs in the first",
        "router": [{"name": name} for name in ("core", *(f"rack-{rack}" for rack in RACKS))],
        "nve": [
            {"name": f"nve-{rack}", "prefixes": [f"10.{n}.0.0/24", f"fd0{n}::/64"]}
            for n, rack in enumerate(RACKS, 1)
        ],
        "manager": [{"name": "manager"}],
        "correspondent": [{"name": "near"}],
        "link": [
            *racks,
            *hosts,
            {"nodes": ["core", "manager"]},
            {"nodes": ["rack-b", "near"]},
        ],
        "vm": [
            {
                "name": f"vm{number}",
                "kind": kind,
                "home": "nve-a",
                "addresses": [f"10.1.0.{number + 4}", f"fd01::{number + 4:x}"],
            }
            for number in range(1, int(found[1]) + 1)
        ],
    }
