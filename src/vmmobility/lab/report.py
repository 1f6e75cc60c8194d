"""The report of a scenario's runs as values, and as the JSON that programs read.

Field names are docs/lab.md's contract.  Not here: how it looks (report_text.py, report_html.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from vmmobility.lab.moments import GapSplit
from vmmobility.lab.report_fabric import FabricReport
from vmmobility.lab.report_flows import FlowsReport
from vmmobility.lab.report_protections import ProtectionsReport
from vmmobility.lab.report_sizes import SizesReport

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """One correspondent's UDP probes of one family in one move's window."""

    correspondent: str
    family: str
    sent: int
    lost: int
    duplicated: int
    longest_gap_ms: float
    gap_beyond_stop_ms: float | None
    gap_start_ms: float
    resume_to_echo_ms: float | None = None
    gap_parts: GapSplit | None = None

    @property
    def gap_without_cold_ms(self) -> float | None:
        """What the network added: the gap beyond STOP to RESUME, less RESUME to the first echo."""
        if self.gap_beyond_stop_ms is None or self.gap_parts is None:
            return None
        return round(self.gap_beyond_stop_ms - self.gap_parts.cold_ms, 3)

    def as_json(self) -> dict[str, Any]:
        """The probes with what follows from them."""
        return {**asdict(self), "gap_without_cold_ms": self.gap_without_cold_ms}


@dataclass(frozen=True, slots=True)
class TcpReport:
    """All TCP sessions to the VM in one move's window."""

    sessions: int
    survived: int
    longest_stall_ms: float


@dataclass(frozen=True, slots=True)
class GuestReport:
    """What the guest went through."""

    downtime_ms: float | None
    stop_to_resume_ms: float | None
    total_ms: float | None
    cold_ms: float | None
    sound: bool
    bad_pages: int | None
    memory_pages: int | None
    cpu: float | None
    cpu_before: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ControlReport:
    """What the control plane took."""

    registered_ms: float | None
    redirected_ms: float | None
    redirect_to_stop_ms: float | None


@dataclass(frozen=True, slots=True)
class RouteReport:
    """A node's route to the VM, in ms since the move was asked for; None: beyond the window."""

    node: str
    family: str
    via: str
    text: str
    from_ms: float | None
    to_ms: float | None


@dataclass(frozen=True, slots=True)
class MoveReport:
    """One move; its window runs from its request to the next one's."""

    number: int
    run: int
    vm: str
    source: str
    target: str
    mode: str
    ok: bool
    reason: str
    expected: str
    started_ns: int
    window_ms: float
    probes: tuple[ProbeReport, ...]
    tcp: TcpReport
    guest: GuestReport
    control: ControlReport
    queue_peak: int | None
    relayed: int
    phases: tuple[dict[str, Any], ...]
    routes: tuple[RouteReport, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> ProbeReport | None:
        """The probes with the longest gap."""
        return max(self.probes, key=lambda probe: probe.longest_gap_ms, default=None)

    @property
    def gap_beyond_stop_ms(self) -> float | None:
        """The longest gap of all its probes less STOP to RESUME."""
        return self.worst.gap_beyond_stop_ms if self.worst else None

    @property
    def gap_without_cold_ms(self) -> float | None:
        """The same without the cold part."""
        return self.worst.gap_without_cold_ms if self.worst else None

    def as_json(self) -> dict[str, Any]:
        """The move with the names of the format."""
        data = asdict(self)
        data["probes"] = [probe.as_json() for probe in self.probes]
        data["gap_beyond_stop_ms"] = self.gap_beyond_stop_ms
        data["gap_without_cold_ms"] = self.gap_without_cold_ms
        data["from"], data["to"] = data.pop("source"), data.pop("target")
        return data


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What one correspondent and one VM had of each other over a whole run, in one family.

    sent_at_rest, lost_at_rest: of the probes sent while no move of the VM was under way
    """

    run: int
    correspondent: str
    vm: str
    family: str
    sent: int
    lost: int
    sent_at_rest: int
    lost_at_rest: int
    duplicated: int
    longest_gap_ms: float
    tcp_survived: bool
    longest_stall_ms: float


@dataclass(frozen=True, slots=True)
class RestartReport:
    """A daemon started again; all times since its process was forked, None if it never came.

    asked_ms: the first request that reached its host      answer_ms: the first that it accepted
    """

    run: int
    node: str
    started_ns: int
    api_ms: float
    message_ms: float | None
    asked_ms: float | None
    answer_ms: float | None


@dataclass(frozen=True, slots=True)
class HandMoveReport:
    """A migration by hand; its window runs to the next one of the VM.  None: not seen."""

    run: int
    vm: str
    source: str
    target: str
    ok: bool
    started_ns: int
    total_ms: float
    stop_to_resume_ms: float | None
    resume_to_local_ms: float | None
    resume_to_redirect_ms: float | None
    sent: int
    lost: int
    longest_gap_ms: float
    tcp_survived: bool

    def as_json(self) -> dict[str, Any]:
        """With the names of the format."""
        data = asdict(self)
        data["from"], data["to"] = data.pop("source"), data.pop("target")
        return data


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `vmmob lab run` found out.

    tunnels: (NVE, who carried its tunnelled packets: "kernel" or "relay")
    """

    scenario: str
    description: str
    fabric: str
    runs: int
    started_ns: int
    duration_s: float
    failures: tuple[str, ...]
    leftovers: tuple[str, ...]
    moves: tuple[MoveReport, ...]
    steps: tuple[dict[str, Any], ...] = ()
    streams: tuple[StreamReport, ...] = ()
    restarts: tuple[RestartReport, ...] = ()
    by_hand: tuple[HandMoveReport, ...] = ()
    manager: str = ""
    tunnels: tuple[tuple[str, str], ...] = ()
    fabric_report: FabricReport = field(default_factory=FabricReport)
    sizes_report: SizesReport = field(default_factory=SizesReport)
    drains: tuple[dict[str, Any], ...] = ()
    flows_report: FlowsReport = field(default_factory=FlowsReport)
    protections_report: ProtectionsReport = field(default_factory=ProtectionsReport)

    @property
    def ok(self) -> bool:
        """All steps went as the scenario wants it, and nothing of ours is left."""
        return not self.failures and not self.leftovers

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "format": FORMAT,
            "scenario": self.scenario,
            "description": self.description,
            "fabric": self.fabric,
            "ok": self.ok,
            "runs": self.runs,
            "started_ns": self.started_ns,
            "duration_s": round(self.duration_s, 3),
            "failures": list(self.failures),
            "leftovers": list(self.leftovers),
            "tunnels": dict(self.tunnels),
            "summary": self.summary(),
            "moves": [move.as_json() for move in self.moves],
            "steps": list(self.steps),
            "streams": [asdict(stream) for stream in self.streams],
            "restarts": [asdict(restart) for restart in self.restarts],
            "by_hand": [move.as_json() for move in self.by_hand],
            "drains": list(self.drains),
            **self.fabric_report.as_json(),
            **self.sizes_report.as_json(),
            **self.flows_report.as_json(),
            **self.protections_report.as_json(),
        }

    def summary(self) -> dict[str, Any]:
        """Totals over all moves, medians and maxima of what varies."""
        probes = [probe for move in self.moves for probe in move.probes]
        return {
            "moves": len(self.moves),
            "moves_ok": sum(move.ok for move in self.moves),
            "sound": sum(move.guest.sound for move in self.moves),
            "sent": sum(probe.sent for probe in probes),
            "lost": sum(probe.lost for probe in probes),
            "duplicated": sum(probe.duplicated for probe in probes),
            "tcp_sessions": sum(move.tcp.sessions for move in self.moves),
            "tcp_survived": sum(move.tcp.survived for move in self.moves),
            "relayed": sum(move.relayed for move in self.moves),
            "median": self._over(median),
            "max": self._over(_maximum),
            "streams": self._all_streams(),
            "manager_restarts": self._manager_restarts(),
            "by_hand": self._all_by_hand(),
            "fabric": self.fabric_report.summary(),
            "packet_sizes": self.sizes_report.summary(),
        }

    def _all_streams(self) -> dict[str, Any]:
        """Every probe of every run, whether its VM moved or rested."""
        return {
            "sent": sum(stream.sent for stream in self.streams),
            "lost": sum(stream.lost for stream in self.streams),
            "sent_at_rest": sum(stream.sent_at_rest for stream in self.streams),
            "lost_at_rest": sum(stream.lost_at_rest for stream in self.streams),
            "tcp_sessions": len(self.streams),
            "tcp_survived": sum(stream.tcp_survived for stream in self.streams),
        }

    def _manager_restarts(self) -> dict[str, Any]:
        """From the manager's fork to its first answers."""
        mine = [restart for restart in self.restarts if restart.node == self.manager]
        answers = [restart.answer_ms for restart in mine]
        return {
            "count": len(mine),
            "restart_to_api_ms": _two(restart.api_ms for restart in mine),
            "restart_to_first_answer_ms": _two(answers),
        }

    def _all_by_hand(self) -> dict[str, Any]:
        """Over the migrations by hand."""
        return {
            "moves": len(self.by_hand),
            "lost": sum(move.lost for move in self.by_hand),
            "longest_gap_ms": _two(move.longest_gap_ms for move in self.by_hand),
            "stop_to_resume_ms": _two(move.stop_to_resume_ms for move in self.by_hand),
            "resume_to_local_ms": _two(move.resume_to_local_ms for move in self.by_hand),
        }

    def _over(self, figure: Callable[[Iterable[float | None]], float | None]) -> dict[str, Any]:
        """One figure of what varies: over the probes of all moves, or over the moves."""
        moves = self.moves
        probes = [probe for move in moves for probe in move.probes]
        return {
            "longest_gap_ms": figure(max_gap(move) for move in moves),
            "gap_beyond_stop_ms": figure(probe.gap_beyond_stop_ms for probe in probes),
            "gap_without_cold_ms": figure(probe.gap_without_cold_ms for probe in probes),
            "cold_ms": figure(probe.resume_to_echo_ms for probe in probes),
            "longest_stall_ms": figure(move.tcp.longest_stall_ms for move in moves),
            "downtime_ms": figure(move.guest.downtime_ms for move in moves),
            "stop_to_resume_ms": figure(move.guest.stop_to_resume_ms for move in moves),
            "total_ms": figure(move.guest.total_ms for move in moves),
            "registered_ms": figure(move.control.registered_ms for move in moves),
            "redirected_ms": figure(move.control.redirected_ms for move in moves),
            "redirect_to_stop_ms": figure(move.control.redirect_to_stop_ms for move in moves),
            "queue_peak": figure(move.queue_peak for move in moves),
        }


def _two(values: Iterable[float | None]) -> dict[str, float | None]:
    known = list(values)
    return {"median": median(known), "max": _maximum(known)}


def max_gap(move: MoveReport) -> float | None:
    """The longest gap of all the move's probes."""
    return max((probe.longest_gap_ms for probe in move.probes), default=None)


def median(values: Iterable[float | None]) -> float | None:
    """The middle of those that are known."""
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None


def _maximum(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
