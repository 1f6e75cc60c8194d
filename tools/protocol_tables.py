"""Write the registry tables of docs/protocol.md from the code; `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.  What a number means is the
comment on its line in wire/registry.py.

    python tools/protocol_tables.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from vmmobility.engine import manager_transitions, nve_transitions  # noqa: E402
from vmmobility.engine.manager import RIGHTS as MANAGER_RIGHTS  # noqa: E402
from vmmobility.engine.nve import RIGHTS as NVE_RIGHTS  # noqa: E402
from vmmobility.engine.relay_channel import BOX_RIGHTS  # noqa: E402
from vmmobility.engine.router import RIGHTS as ROUTER_RIGHTS  # noqa: E402
from vmmobility.wire.authentication import DATA, SENDER  # noqa: E402
from vmmobility.wire.options import AUTHENTICATION_TYPE, OPTIONS, RECEIVER_TYPE  # noqa: E402
from vmmobility.wire.registry import (  # noqa: E402
    DROP_REASONS,
    CopyStorage,
    GuestLife,
    GuestState,
    Kind,
    Mobility,
    OnTimeout,
    Phase,
    Purpose,
    Role,
    RouteState,
    Status,
)

PAGE = ROOT / "docs" / "protocol.md"
EXAMPLE = "deregistration: request"
_MEMBER = re.compile(r"^    (\w+) = \d+(?:  # (.+))?$", re.MULTILINE)


def _rows(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def numbers(registry: type[IntEnum]) -> str:
    """A table of an enumeration: number, name, the comment on its line."""
    meaning = dict(_MEMBER.findall(inspect.getsource(registry)))
    return _rows(
        ("Number", "Name", "Meaning"), [(m.value, f"`{m.name}`", meaning[m.name]) for m in registry]
    )


def option_types() -> str:
    rows = [
        (
            d.number, f"`0x{d.wire_type:04X}`", d.name, "yes" if d.must_understand else "no",
            "yes" if d.repeatable else "no",
            str(d.octets[0]) if d.octets[0] == d.octets[1] else f"{d.octets[0]}–{d.octets[1]}",
        )
        for d in OPTIONS
    ]  # fmt: skip
    trailers = ((AUTHENTICATION_TYPE, "Authentication", DATA), (RECEIVER_TYPE, "Receiver", SENDER))
    for number, name, size in trailers:
        rows.append((number, f"`0x{number | 0x8000:04X}`", name, "yes", "no", str(size)))
    head = ("Type", "On the wire", "Name", "U", "Repeatable", "Octets of data")
    return _rows(head, sorted(rows))


def drop_reasons() -> str:
    return _rows(
        ("Reason", "Meaning"), [(f"`{name}`", text) for name, text in DROP_REASONS.items()]
    )


def rights() -> str:
    """Receiver x purpose -> the roles that may send it."""

    def cell(table: Mapping[Purpose, frozenset[Role]], purpose: Purpose) -> str:
        if purpose is Purpose.CHALLENGE:  # the channel's own, whatever the roles
            return "any peer"
        return ", ".join(f"`{r.name}`" for r in sorted(table.get(purpose, ()))) or "–"

    receivers = (MANAGER_RIGHTS, NVE_RIGHTS, ROUTER_RIGHTS, BOX_RIGHTS)
    rows: list[tuple[object, ...]] = [
        (f"`{p.name}`", *(cell(table, p) for table in receivers)) for p in Purpose
    ]
    by = ("a `MANAGER`", "an `NVE`", "a router", "a `NAPT`")
    return _rows(("Request", *(f"received by {who} from" for who in by)), rows)


def example() -> str:
    """One datagram of docs/vectors, 16 octets a line, in a frame."""
    content = json.loads((ROOT / "docs" / "vectors" / "registrations.json").read_text("utf-8"))
    vector = next(v for v in content["vectors"] if v["name"] == EXAMPLE)
    octets = bytes.fromhex(vector["datagrams"][0])
    lines = [octets[at : at + 16].hex(" ") for at in range(0, len(octets), 16)]
    return "\n".join(("```", f"key {vector['key']}", "", *lines, "```", ""))


TABLES: dict[str, Callable[[], str]] = {
    "kinds": lambda: numbers(Kind),
    "purposes": lambda: numbers(Purpose),
    "phases": lambda: numbers(Phase),
    "statuses": lambda: numbers(Status),
    "mobility": lambda: numbers(Mobility),
    "roles": lambda: numbers(Role),
    "guests": lambda: numbers(GuestLife),
    "on-timeouts": lambda: numbers(OnTimeout),
    "copy-storages": lambda: numbers(CopyStorage),
    "guest-states": lambda: numbers(GuestState),
    "routes": lambda: numbers(RouteState),
    "options": option_types,
    "drops": drop_reasons,
    "rights": rights,
    "manager-machine": manager_transitions.picture,
    "nve-machine": nve_transitions.picture,
    "example": example,
}


def filled(page: str) -> str:
    """The page with every table made anew.  Raises KeyError for a name that is none."""
    return re.sub(
        r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n" + found[3],
        page,
        flags=re.DOTALL,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check = parser.parse_args().check
    page = PAGE.read_text("utf-8")
    missing = [name for name in TABLES if f"<!-- table: {name} -->" not in page]
    if missing:
        sys.stderr.write(f"docs/protocol.md has no table: {', '.join(missing)}\n")
        return 1
    if filled(page) == page:
        return 0
    if not check:
        PAGE.write_text(filled(page), "utf-8")
        return 0
    sys.stderr.write("docs/protocol.md differs from the code; run tools/protocol_tables.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
