"""The report for a person at a terminal of 100 columns.

Not here: where it is printed (cli/lab.py).  Rests on rich.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vmmobility.lab.moments import moments
from vmmobility.lab.report import MoveReport, Report

_BAR = 56
_GRAVE = ("stop", "failed", "aborted")


def print_report(report: Report, console: Console) -> None:
    """Print all of it."""
    console.print(Rule(Text(f"{report.scenario} on {report.fabric}")))
    for move in report.moves:
        console.print(_move(move))
    if len(report.moves) > 1:
        console.print(_summary(report))
    if report.tunnels:
        names = " and the ".join(sorted({name for _, name in report.tunnels}))
        console.print(Text(f"tunnels: the {names}", style="bold"))
    for line in rest_lines(report):
        console.print(Text(line, style="bold"))
    for failure in report.failures:
        console.print(Text(f"FAILED  {failure}", style="bold red"))
    for leftover in report.leftovers:
        console.print(Text(f"LEFT BEHIND  {leftover}", style="bold red"))
    verdict = Text("ok", style="bold green") if report.ok else Text("NOT ok", style="bold red")
    verdict.append(f"  {len(report.moves)} moves in {report.runs} run(s), "
                   f"{report.duration_s:.0f} s", style="default")  # fmt: skip
    console.print(verdict)


def _move(move: MoveReport) -> RenderableType:
    head = Text(f"move {move.number}  {move.vm}: {move.source or '?'} -> {move.target}  ",
                style="bold")  # fmt: skip
    head.append("ok" if move.ok else f"FAILED: {move.reason}",
                style="green" if move.ok else "red")  # fmt: skip
    parts: list[RenderableType] = [head, *_timeline(move), _probes(move), _facts(move), Text()]
    return Group(*parts)


def _timeline(move: MoveReport) -> list[Text]:
    """One line a phase: when, and how far along the move."""
    at = moments(move.phases, move.source, move.target)
    whole = max(at.values(), default=0.0) or 1.0
    lines = []
    for name, at_ms in at.items():
        filled = round(_BAR * max(0.0, at_ms) / whole)
        line = Text(f"  {name:<11}{at_ms:>10.1f} ms  ")
        line.append("─" * filled, style="dim")
        line.append("●", style="red" if name in _GRAVE else "cyan")
        lines.append(line)
    return lines


def _probes(move: MoveReport) -> RenderableType:
    if not move.probes:
        return Text("  no probes", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("  from")
    table.add_column("family")
    for name in ("sent", "lost", "dup", "longest gap", "beyond stop", "first echo"):
        table.add_column(name, justify="right")
    for probe in move.probes:
        table.add_row(
            f"  {probe.correspondent}", probe.family, str(probe.sent),
            Text(str(probe.lost), style="bold red" if probe.lost else "green"),
            str(probe.duplicated), _ms(probe.longest_gap_ms), _ms(probe.gap_beyond_stop_ms),
            _ms(probe.resume_to_echo_ms),
        )  # fmt: skip
    return table


def _facts(move: MoveReport) -> Text:
    tcp, guest, control = move.tcp, move.guest, move.control
    lines = [
        f"  gap      {gap_line(move)}",
        f"  tcp      {tcp.survived} of {tcp.sessions} sessions survived, "
        f"longest stall {tcp.longest_stall_ms:.0f} ms",
        f"  guest    downtime {_ms(guest.downtime_ms)}, stop to resume "
        f"{_ms(guest.stop_to_resume_ms)}, total {_ms(guest.total_ms)}, "
        + ("sound" if guest.sound else f"NOT sound: {guest.reason}"),
        f"  control  redirect {_ms(control.redirect_to_stop_ms)} before stop; registered "
        f"{_ms(control.registered_ms)} after resume, redirected {_ms(control.redirected_ms)} later",
        f"  path     {move.relayed} packets relayed, "
        f"queue peak {'-' if move.queue_peak is None else move.queue_peak}",
    ]
    return Text("\n".join(lines))


def gap_line(move: MoveReport) -> str:
    """Where the longest gap's time went."""
    worst = move.worst
    if worst is None:
        return "no probes"
    parts = worst.gap_parts
    if parts is None:
        return f"{_ms(worst.longest_gap_ms)}; stop or resume is not known"
    return (
        f"{parts.longest_ms:.1f} ms = redirect to stop {parts.held_ms:.1f} + stop to resume "
        f"{parts.stopped_ms:.1f} + resume to echo {parts.cold_ms:.1f} + else {parts.other_ms:.1f}"
    )


def _summary(report: Report) -> RenderableType:
    total = report.summary()
    median, most = total["median"], total["max"]
    return Text(
        f"all moves: {total['moves_ok']} of {total['moves']} ok, {total['sound']} sound; "
        f"{total['lost']} of {total['sent']} probes lost, {total['duplicated']} duplicated; "
        f"TCP {total['tcp_survived']} of {total['tcp_sessions']}\n"
        f"medians: gap {_ms(median['longest_gap_ms'])}, stop to resume "
        f"{_ms(median['stop_to_resume_ms'])}, downtime {_ms(median['downtime_ms'])}, "
        f"TCP stall {_ms(median['longest_stall_ms'])}, total {_ms(median['total_ms'])}\n"
        f"beyond stop to resume: p50 {_ms(median['gap_beyond_stop_ms'])}, max "
        f"{_ms(most['gap_beyond_stop_ms'])}; without resume to echo: p50 "
        f"{_ms(median['gap_without_cold_ms'])}, max {_ms(most['gap_without_cold_ms'])}",
        style="bold",
    )


def rest_lines(report: Report) -> list[str]:
    """What was found besides moves through the manager: restarts, moves by hand, all probes."""
    total = report.summary()
    lines = []
    if report.restarts:
        restarts = total["manager_restarts"]
        api, answer = restarts["restart_to_api_ms"], restarts["restart_to_first_answer_ms"]
        lines.append(
            f"restarts: {len(report.restarts)}, of the manager {restarts['count']}; fork to API "
            f"p50 {_ms(api['median'])}, max {_ms(api['max'])}; fork to first answered registration "
            f"p50 {_ms(answer['median'])}, max {_ms(answer['max'])}"
        )
    if report.by_hand:
        hand = total["by_hand"]
        gap, late = hand["longest_gap_ms"], hand["resume_to_local_ms"]
        lines.append(
            f"by hand: {hand['moves']} migrations, {hand['lost']} probes lost; gap p50 "
            f"{_ms(gap['median'])}, max {_ms(gap['max'])}; resume to local delivery p50 "
            f"{_ms(late['median'])}, max {_ms(late['max'])}"
        )
    lines += report.fabric_report.lines()
    lines += report.sizes_report.lines()
    lines += report.flows_report.lines()
    lines += report.protections_report.lines()
    if report.streams:
        every = total["streams"]
        lines.append(
            f"all probes, of resting VMs too: {every['lost']} of {every['sent']} lost, at rest "
            f"{every['lost_at_rest']} of {every['sent_at_rest']}; "
            f"TCP {every['tcp_survived']} of {every['tcp_sessions']}"
        )
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
