"""What a run has found besides its moves: every stream, the restarts, the migrations by hand.

Not here: moves through the manager (findings.py), the arithmetic (counting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vmmobility.lab.by_hand import HandMove
from vmmobility.lab.control_capture import Captured
from vmmobility.lab.correspondents import FAMILY_NAMES
from vmmobility.lab.counting import Window, count_outside, count_tcp, count_udp
from vmmobility.lab.lab_run import LabRun
from vmmobility.lab.logbook import LogEvent
from vmmobility.lab.marks import Restart
from vmmobility.lab.report import HandMoveReport, RestartReport, StreamReport
from vmmobility.wire.registry import Purpose
from vmmobility.wire.values import FAMILIES

_REGISTRATIONS = (Purpose.ATTACH, Purpose.REFRESH, Purpose.DEREGISTER)


def stream_reports(run: LabRun) -> list[StreamReport]:
    """Every correspondent's streams to every VM, over the whole run."""
    window = Window(0, run.ended_ns)
    found = []
    for pair in run.probes.pairs:
        for version in FAMILIES:
            record = run.probes.udp(pair, version)
            udp = count_udp(record, window)
            resting = count_outside(record, run.moving(pair.vm), run.ended_ns)
            tcp = count_tcp(run.probes.tcp(pair, version), window)
            found.append(
                StreamReport(
                    run.number, pair.correspondent, pair.vm, FAMILY_NAMES[version], udp.sent,
                    udp.lost, *resting, udp.duplicated, udp.longest_gap_ms, tcp.survived,
                    tcp.longest_stall_ms,
                )
            )  # fmt: skip
    return found


def restart_reports(run: LabRun) -> list[RestartReport]:
    """How long each restarted daemon took to speak, and to answer."""
    messages = run.lab.captured()
    return [_restart(run, restart, messages) for restart in run.marks.restarts]


def _restart(run: LabRun, restart: Restart, messages: list[Captured]) -> RestartReport:
    own = {
        str(a.ip) for a in run.lab.fabric.first_end(run.lab.daemons.place(restart.node)).addresses
    }
    ends = [r.forked_ns for r in run.marks.restarts
            if r.node == restart.node and r.forked_ns > restart.forked_ns]  # fmt: skip
    window = Window(restart.forked_ns, min(ends, default=run.ended_ns))

    def since(which: Callable[[Captured], bool]) -> float | None:
        times = [m.at_ns for m in messages if window.holds(m.at_ns) and which(m)]
        return _ms(min(times) - restart.forked_ns) if times else None

    return RestartReport(
        run=run.number,
        node=restart.node,
        started_ns=restart.forked_ns,
        api_ms=_ms(restart.api_ns - restart.forked_ns),
        message_ms=since(lambda m: m.source in own),
        asked_ms=since(lambda m: m.destination in own and not m.is_reply),
        answer_ms=since(
            lambda m: m.source in own and m.accepts and m.purpose in _REGISTRATIONS
        ),
    )  # fmt: skip


def hand_move_reports(run: LabRun) -> list[HandMoveReport]:
    """Every migration by hand, with what the correspondents felt until the VM's next one."""
    events = run.lab.logbook.events()
    return [_hand_move(run, move, events) for move in run.hand_moves]


def _hand_move(run: LabRun, move: HandMove, events: list[LogEvent]) -> HandMoveReport:
    later = [m.started_ns for m in run.hand_moves
             if m.vm == move.vm and m.started_ns > move.started_ns]  # fmt: skip
    window = Window(move.started_ns, min(later, default=run.ended_ns))
    udp, tcp = [], []
    for pair in run.probes.pairs:
        for version in FAMILIES if pair.vm == move.vm else ():
            udp.append(count_udp(run.probes.udp(pair, version), window))
            tcp.append(count_tcp(run.probes.tcp(pair, version), window))
    stopped, resumed = move.stopped_ns, move.resumed_ns

    def since_resume(node: str, forwarding: str) -> float | None:
        times = [at for at in _turns(events, move.vm, node, forwarding) if window.holds(at)]
        return None if resumed is None or not times else _ms(min(times) - resumed)

    known = stopped is not None and resumed is not None
    return HandMoveReport(
        run=run.number,
        vm=move.vm,
        source=move.source,
        target=move.target,
        ok=move.ok,
        started_ns=move.started_ns,
        total_ms=_ms(move.ended_ns - move.started_ns),
        stop_to_resume_ms=_ms((resumed or 0) - (stopped or 0)) if known else None,
        resume_to_local_ms=since_resume(move.target, "local"),
        resume_to_redirect_ms=since_resume(move.source, "redirect"),
        sent=sum(count.sent for count in udp),
        lost=sum(count.lost for count in udp),
        longest_gap_ms=max((count.longest_gap_ms for count in udp), default=0.0),
        tcp_survived=all(count.survived for count in tcp),
    )


def _turns(events: list[LogEvent], vm: str, node: str, forwarding: str) -> Iterator[int]:
    """When that node's kernel began to forward the VM's packets so."""
    wanted = ("forwarding", vm, node, forwarding)
    for event in events:
        if (event.name, event.vm, event.node, event.fields.get("forwarding")) == wanted:
            yield event.at_ns


def _ms(nanoseconds: float) -> float:
    return round(nanoseconds / 1e6, 3)
