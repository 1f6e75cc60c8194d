"""The NVEs' counters of redirected packets, read once a second while a scenario runs.

An entry lives on for its drain time without traffic, so no packet escapes a reading a second.
Not here: the sum (measures.relayed).  Rests on the NVEs' API.
"""

from __future__ import annotations

import threading
import time

from vmmobility.errors import ApiError
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.inside import yield_the_cpu

_EVERY_S = 1.0


class TrafficPoller:
    """Reads `redirected` of one VM's entry at every NVE."""

    def __init__(self, daemons: Daemons, vms: frozenset[str]) -> None:
        self._daemons = daemons
        self._vms = vms
        self._polls: dict[str, list[tuple[int, dict[str, int]]]] = {vm: [] for vm in vms}
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic poller", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read once more and end."""
        self._stop.set()
        self._thread.join()
        self.poll()

    def polls(self, vm: str) -> list[tuple[int, dict[str, int]]]:
        """(time, NVE -> redirected packets) of every reading for that VM."""
        with self._lock:
            return list(self._polls[vm])

    def poll(self) -> None:
        """One reading of all NVEs; the run reads before every move too, so that moves differ."""
        with self._reading:  # in order of time, or a counter would seem to have gone back
            self._poll()

    def _poll(self) -> None:
        counters: dict[str, dict[str, int]] = {vm: {} for vm in self._vms}
        for node in self._daemons.fabric.of_kind("nve"):
            try:
                entries = self._daemons.ask(node.name, "GET", "/v1/vms", timeout_s=2)
            except ApiError:
                continue  # killed or starting: its counter is as it was
            for known in counters.values():
                known[node.name] = 0  # without an entry there is nothing that could count
            for entry in entries:
                if entry.get("vm") in counters:
                    redirected = int((entry.get("traffic") or {}).get("redirected", 0))
                    counters[entry["vm"]][node.name] = redirected
        with self._lock:
            for vm, values in counters.items():
                before = self._polls[vm][-1][1] if self._polls[vm] else {}
                self._polls[vm].append((time.time_ns(), {**before, **values}))

    def _run(self) -> None:
        yield_the_cpu()
        while not self._stop.wait(_EVERY_S):
            self.poll()
