"""How far a copy has come, told to the manager once a second: figures for people.

Nothing rests on it: it is not durable, a new figure is dropped while an older one is on its way,
and it ends with the copy.  Not here: what the manager acts on (nve_moves.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.nve_parts import NveParts
from vmmobility.wire.options import Epoch, Measurements, PhaseOption, Ticket, VmId
from vmmobility.wire.registry import Phase, Purpose

PROGRESS_KEYS = ("disk_bytes", "disk_total_bytes", "memory_bytes", "memory_total_bytes")


class NveProgress(NveParts):
    """Reports of how far a copy has come; a part of NveEngine."""

    def _tell_progress(self, entry: Entry, detail: Mapping[str, Any], now: float) -> None:
        copying = entry.phase in (Phase.COPYING, Phase.CONVERGED) and entry.ticket
        subject = (entry.vm, "progress")
        figures = {key: detail[key] for key in PROGRESS_KEYS if isinstance(detail.get(key), int)}
        if not copying or not figures or self.channel.is_asking(self.manager, subject):
            return
        self.channel.request(
            self.manager,
            Purpose.SWITCH,
            [
                VmId(entry.vm),
                Epoch(entry.move_epoch),
                PhaseOption(Phase.COPYING),
                Ticket(entry.ticket),
                Measurements(json.dumps(figures, separators=(",", ":")).encode()),
            ],
            now,
            lambda reply, at: None,
            subject=subject,
        )

    def _end_progress(self, entry: Entry) -> None:
        """The copy is over: nobody asks any more how far it has come."""
        self.channel.withdraw_subject(self.manager, (entry.vm, "progress"))
