"""What QEMU calls a migration, in our words: capabilities, figures, the yank.

Not here: the order of a move (move.py, guest.py).  Rests on a monitor's `execute`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vmmobility.wire.move_terms import MoveTerms

OVER = ("completed", "failed", "cancelled")
# No return path: with it, a source that misses the destination's last word starts its guest again
# while the destination's runs.
CAPABILITIES = {"events": True, "return-path": False}


def capabilities(terms: MoveTerms) -> dict[str, bool]:
    """Both ends'.  Post-copy has a way back of its own."""
    return {**CAPABILITIES, "postcopy-ram": terms.forces}


def source_capabilities(terms: MoveTerms) -> dict[str, bool]:
    # Without it a guest that dirties nothing (a paused one) would be handed over before proceed().
    return {**capabilities(terms), "pause-before-switchover": True}


def figures(info: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a migration that has completed, of query-migrate."""
    ram = info.get("ram", {})
    return {
        "total_ms": info.get("total-time", 0),
        "downtime_ms": info.get("downtime", 0),
        "setup_ms": info.get("setup-time", 0),
        "rounds": ram.get("dirty-sync-count", 0),
        "transferred_bytes": ram.get("transferred", 0),
    }


async def set_capabilities(
    execute: Callable[[str, dict[str, Any]], Awaitable[Any]], wanted: Mapping[str, bool]
) -> None:
    """Switch migration capabilities on or off."""
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await execute("migrate-set-capabilities", {"capabilities": capabilities})


async def yank(execute: Callable[..., Awaitable[Any]]) -> None:
    """Shut the connection of a migration down, even while QEMU's main loop is blocked."""
    await execute("yank", {"instances": [{"type": "migration"}]}, out_of_band=True)


def tcp_uri(address: str, port: int) -> str:
    """QEMU's name for a TCP end."""
    return f"tcp:[{address}]:{port}" if ":" in address else f"tcp:{address}:{port}"


def listening_at(info: Mapping[str, Any]) -> tuple[str, int] | None:
    """Where an incoming QEMU listens, from query-migrate."""
    addresses = info.get("socket-address")
    if not isinstance(addresses, list) or not addresses:
        return None
    return str(addresses[0]["host"]), int(addresses[0]["port"])
