"""What all parts know of a VM definition's keys: how it calls its lists (`interface` and `disk` in
files, as [[disk]], and between nodes; `interfaces` and `disks` in the API), its member number.

Not here: what a definition holds (drivers/hypervisor/definition.py).  Rests on nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PLURALS = {"interface": "interfaces", "disk": "disks"}


def api_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as the API calls its keys.  Raises ValueError if a list is there twice."""
    return _renamed(document, PLURALS)


def file_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as files call its keys.  Raises ValueError if a list is there twice."""
    return _renamed(document, {many: one for one, many in PLURALS.items()})


def _renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for before, after in names.items():
        if before in document and after in document:
            raise ValueError(f"{before} and {after} are both there: say it once")
    return {names.get(key, key): value for key, value in document.items()}


def member_of(definition: bytes) -> int:
    """The `member` of a VM's definition (JSON, as it travels between NVEs); 0: it says none."""
    try:
        member = json.loads(definition)["member"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return member if isinstance(member, int) and 0 < member <= 0xFFFF else 0
