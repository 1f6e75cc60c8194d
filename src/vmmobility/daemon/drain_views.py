"""Drains and cordons as people see them (docs/api.md).

Not here: what they do (engine/manager_drains.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmmobility.engine.manager_cordons import Cordon
from vmmobility.engine.manager_drain import ENDED, SETTLED, Drain, Stage

Row = dict[str, Any]
KINDS = ("disk", "memory")  # of what a move copies


def drain_view(drain: Drain, progress: Mapping[str, Mapping[str, Any]], wall_ns: int) -> Row:
    """One drain without its VMs.

    progress: what each move under way has copied, by the move's ID; wall_ns: CLOCK_REALTIME
    """
    ended = drain.state in ENDED
    elapsed_s = max(0.0, ((drain.ended_ns if ended else wall_ns) - drain.started_ns) / 1e9)
    counts = {stage.value: drain.count(stage) for stage in Stage}
    settled = sum(drain.count(stage) for stage in SETTLED)
    left = len(drain.vms) - settled
    return {
        "id": drain.drain_id,
        "nve": drain.nve_id,
        "to": list(drain.to),
        "parallel": drain.parallel,
        "mode": drain.mode,
        "uncordon": drain.uncordon,
        "state": drain.state.value,
        "ok": drain.ok,
        "started_ns": drain.started_ns,
        "elapsed_s": round(elapsed_s, 3),
        "rest_s": _rest_s(elapsed_s, settled, left, ended),
        "all": len(drain.vms),
        "settled": settled,
        **counts,
        "bytes": _bytes(drain, progress),
        "reasons": [
            {"vni": vm.vni, "vm": vm.vm_id, "reason": each.reason}
            for vm, each in sorted(drain.vms.items())
            if each.stage is Stage.FAILED
        ],
    }


def _rest_s(elapsed_s: float, settled: int, left: int, ended: bool) -> float | None:
    """As long as the rest takes if it goes on as it did; None while nobody can say."""
    if ended:
        return 0.0
    return round(elapsed_s / settled * left, 1) if settled else None


def _bytes(drain: Drain, progress: Mapping[str, Mapping[str, Any]]) -> Row | None:
    """What its moves under way have copied, if they say so."""
    known = [
        progress[each.move_id]
        for each in drain.vms.values()
        if each.stage is Stage.MOVING and progress.get(each.move_id)
    ]
    if not known:
        return None
    sums = {
        what: sum(int(each.get(f"{kind}_{what}") or 0) for each in known for kind in KINDS)
        for what in ("bytes", "total_bytes")
    }
    return {"copied": sums["bytes"], "total": sums["total_bytes"]}


def drain_rows(drain: Drain) -> list[Row]:
    """One row a VM."""
    return [
        {
            "vni": vm.vni,
            "vm": vm.vm_id,
            "stage": each.stage.value,
            "to": each.to or None,
            "move": each.move_id or None,
            "attempts": each.attempts,
            "reason": each.reason,
        }
        for vm, each in sorted(drain.vms.items())
    ]


def cordon_view(cordon: Cordon) -> Row:
    return {"nve": cordon.nve_id, "cordoned": True, "since_ns": cordon.since_ns}
