"""What a report says of packet sizes: what passed in each phase of a move, who said what did not.

Values and their lines for people.  The fields' meaning is in docs/lab.md.  Not here: how they are
found (sizes.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SizeError:
    """The last ICMP error about the smallest packet of a phase that did not pass.

    source: its address, JSON's `from`      node: the fabric's node that has that address, or ""
    """

    kind: str
    source: str
    node: str
    mtu: int

    def as_json(self) -> dict[str, Any]:
        """With the names of the format."""
        return {"kind": self.kind, "from": self.source, "node": self.node, "mtu": self.mtu}


@dataclass(frozen=True, slots=True)
class SizeReport:
    """What of one correspondent's packets passed to a VM in one phase of a move, in one family.

    largest_octets: of those that were echoed, IP header included; None: none was
    silent:         packets of which neither an echo nor an error came
    """

    run: int
    move: int
    correspondent: str
    vm: str
    family: str
    phase: str
    sent: int
    echoed: int
    told: int
    silent: int
    largest_octets: int | None
    error: SizeError | None

    def as_json(self) -> dict[str, Any]:
        """With the names of the format."""
        return {**asdict(self), "error": self.error.as_json() if self.error else None}


@dataclass(frozen=True, slots=True)
class BulkReport:
    """One correspondent's bulk TCP session to a VM over a run, in one family."""

    run: int
    correspondent: str
    vm: str
    family: str
    octets: int
    survived: bool
    longest_stall_ms: float


@dataclass(frozen=True, slots=True)
class SizesReport:
    """All of them, over all runs.

    silent: of all packets of known size, in a phase or between two
    """

    sizes: tuple[SizeReport, ...] = ()
    bulk: tuple[BulkReport, ...] = ()
    sent: int = 0
    silent: int = 0

    def __add__(self, other: SizesReport) -> SizesReport:
        return SizesReport(
            self.sizes + other.sizes, self.bulk + other.bulk,
            self.sent + other.sent, self.silent + other.silent,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """The report's keys of them."""
        return {
            "packet_sizes": [one.as_json() for one in self.sizes],
            "bulk": [asdict(one) for one in self.bulk],
        }

    def summary(self) -> dict[str, Any]:
        """Totals."""
        return {
            "sent": self.sent,
            "silent": self.silent,
            "bulk_sessions": len(self.bulk),
            "bulk_survived": sum(one.survived for one in self.bulk),
            "bulk_octets": sum(one.octets for one in self.bulk),
        }

    def lines(self) -> list[str]:
        """For people: one line a move, correspondent and family, then the totals."""
        if not self.sizes and not self.bulk:
            return []
        total = self.summary()
        return [
            *self._moves(),
            f"packets of known size: {total['sent']}, {total['silent']} without echo or error; "
            f"bulk TCP: {total['bulk_survived']} of {total['bulk_sessions']} sessions survived, "
            f"{total['bulk_octets'] / 1e6:.1f} MB",
        ]

    def _moves(self) -> Iterator[str]:
        rows: dict[tuple[int, str, str, str], list[SizeReport]] = {}
        for one in self.sizes:
            rows.setdefault((one.move, one.correspondent, one.vm, one.family), []).append(one)
        for (move, correspondent, vm, family), phases in rows.items():
            passed = ", ".join(f"{one.phase} {one.largest_octets or '-'}" for one in phases)
            errors = dict.fromkeys(one.error for one in phases if one.error is not None)
            told = [f"{e.mtu} by {e.source}" + f" ({e.node})" * bool(e.node) for e in errors]
            end = f"; told {', '.join(told)}" if told else ""
            yield f"largest packet, move {move}, {correspondent} to {vm} {family}: {passed}{end}"
