"""FakeNaptPlane: the NAPT box's in-memory twin, with failures to inject and packets to send.

It passes the same contract tests as drivers/linux (tests/contract/test_napt_plane.py).  Packets are
calls: `outgoing` and `incoming` answer how a packet leaves the box, and flows come of them.
Not here: time (a flow ends by drop_flows only), routes, hairpinning, TCP's states.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.napt_plane import NaptFailure, NaptUsage
from vmmobility.drivers.napt_state import count_flows, flow_item, settle
from vmmobility.engine.napt_plane import Flow, NaptState
from vmmobility.errors import DataPlaneError, EnvironmentProblem

End = tuple[IPv4Address, int]

_TIMEOUT_S = 300
_LIMIT = 1 << 16
_PARTS = (
    "inside", "exempt", "static", "outward", "departing", "ports", "pool", "detours", "publics"
)  # fmt: skip


class FakeNaptPlane:
    """A NAPT box without a kernel.

    held:        what the box translates by; None where nothing of ours is installed
    flows:       translated flows that are alive
    applied:     every state given to apply or resync, in order
    writes:      how often what is held was changed
    unreachable: boxes that no route leads to: their detours fail
    missing:     start() fails and names this
    """

    def __init__(self) -> None:
        self.held: NaptState | None = None
        self.flows: list[Flow] = []
        self.applied: list[NaptState] = []
        self.writes = 0
        self.unreachable: Collection[IPv4Address] = ()
        self.missing = ""
        self._desired: NaptState | None = None
        self._dropped: dict[str, int] = {}
        self._failing: list[tuple[str, str]] = []
        self._started = False

    # -- for tests ----------------------------------------------------------------------------

    def fail_next(self, item: str, reason: str = "injected") -> None:
        """Refuse the next rule set (`rules`), the next flow whose name begins with `item`, or to
        forget an address's flows the next time (`drop 10.1.0.5`: a DataPlaneError)."""
        self._failing.append((item, reason))

    def outgoing(self, protocol: int, private: End, remote: End) -> End | None:
        """A packet from inside: what its source is when it leaves; None: dropped and counted."""
        state = self.held or NaptState()
        if any(private[0] == detour.private for detour in state.detours):
            return private
        for flow in self.flows:
            if (flow.protocol, flow.private, flow.remote) == (protocol, private, remote):
                return flow.public
        if any(remote[0] in prefix for prefix in (*state.exempt, *state.inside)):
            return private
        public = self._mapped(state, protocol, private)
        if public is None:
            if not any(private[0] in prefix for prefix in state.inside):
                return private
            public = self._from_pool(state, protocol, private, remote)
        if public is not None:
            self.flows.append(Flow(protocol, private, public, remote, True, _TIMEOUT_S))
        return public

    @staticmethod
    def _mapped(state: NaptState, protocol: int, private: End) -> End | None:
        for static in (*state.static, *state.outward):
            if static.private == private[0]:
                return static.public, private[1]
        for port in state.ports:
            if (port.protocol, port.private, port.private_port) == (protocol, *private):
                return port.public, port.public_port
        return None

    def _from_pool(self, state: NaptState, protocol: int, private: End, remote: End) -> End | None:
        if not state.pool:
            self._drop("no_pool")
            return None
        first, last = state.pool_ports
        public = state.pool[int(private[0]) % len(state.pool)]
        same = [f.public[1] for f in self.flows
                if f.outgoing and (f.protocol, f.private) == (protocol, private)
                and f.public[0] == public]  # fmt: skip
        kept = [private[1]] if first <= private[1] <= last else []
        for port in (*same, *kept, *range(first, last + 1)):
            if not self._taken(protocol, (public, port), remote):
                return public, port
        self._drop("exhausted")
        return None

    def _taken(self, protocol: int, public: End, remote: End) -> bool:
        wanted = (protocol, public, remote)
        return any((f.protocol, f.public, f.remote) == wanted for f in self.flows)

    def incoming(self, protocol: int, remote: End, public: End) -> End | None:
        """A packet from outside: whom it reaches inside; None: dropped and counted."""
        for flow in self.flows:
            if (flow.protocol, flow.public, flow.remote) == (protocol, public, remote):
                return flow.private
        state = self.held or NaptState()
        private: End | None = None
        for static in state.static:
            if static.public == public[0]:
                private = static.private, public[1]
        for port in state.ports:
            if (port.protocol, port.public, port.public_port) == (protocol, *public):
                private = port.private, port.private_port
        if private is None:
            self._drop("unmapped")
            return None
        self.flows.append(Flow(protocol, private, public, remote, False, _TIMEOUT_S))
        return private

    def _drop(self, why: str) -> None:
        self._dropped[why] = self._dropped.get(why, 0) + 1

    # -- NaptPlane ----------------------------------------------------------------------------

    async def start(self) -> None:
        """See NaptPlane.start; fails while `missing` names something."""
        if self.missing:
            raise EnvironmentProblem(f"{self.missing} is missing", f"install {self.missing}")
        self._started = True

    def _check_started(self) -> None:
        if not self._started:
            raise DataPlaneError("the NAPT data plane is not started", "call start() first")

    async def resync(self, desired: NaptState) -> Sequence[NaptFailure]:
        """See NaptPlane.resync."""
        return await self.apply(desired)

    async def apply(self, desired: NaptState) -> Sequence[NaptFailure]:
        """See NaptPlane.apply."""
        self._check_started()
        self.applied.append(desired)
        return self._make(desired)

    def _make(self, desired: NaptState) -> list[NaptFailure]:
        self._desired = desired
        state, failures = settle(desired)
        failures += [
            NaptFailure(f"detour {one.private}", f"no route leads to the box {one.box}")
            for one in state.detours
            if one.box in self.unreachable
        ]
        if reason := self._refusal("rules"):
            return [*failures, NaptFailure("rules", reason)]
        if self.held != state:
            self.held = state
            self.writes += 1
        return failures

    def _refusal(self, item: str) -> str:
        for number, (name, reason) in enumerate(self._failing):
            if item.startswith(name):
                del self._failing[number]
                return reason
        return ""

    async def audit(self) -> Sequence[Drift]:
        """See NaptPlane.audit."""
        self._check_started()
        if self._desired is None:
            return []
        wanted, _ = settle(self._desired)
        held = self.held
        if held == wanted:
            return []
        found = (
            [Drift(None, "table vmmob_napt", "is gone")]
            if held is None
            else [
                Drift(None, f"elements {name}", "are not as they should be")
                for name in _PARTS
                if getattr(held, name) != getattr(wanted, name)
            ]
        )
        self._make(self._desired)
        return [replace(drift, repaired=self.held == wanted) for drift in found]

    async def export_flows(self, private: IPv4Address) -> tuple[Flow, ...]:
        """See NaptPlane.export_flows."""
        self._check_started()
        own = [flow for flow in self.flows if flow.private[0] == private]
        return tuple(sorted(own, key=lambda f: (f.protocol, f.outgoing, f.private, f.public)))

    async def import_flows(self, flows: Sequence[Flow]) -> Sequence[NaptFailure]:
        """See NaptPlane.import_flows."""
        self._check_started()
        failures = []
        for flow in flows:
            if reason := self._refusal(flow_item(flow)) or self._bring_in(flow):
                failures.append(NaptFailure(flow_item(flow), reason))
        return failures

    def _bring_in(self, flow: Flow) -> str:
        ends = (flow.protocol, flow.remote)
        for other in list(self.flows):
            if (other.protocol, other.remote) != ends:
                continue
            if other.private == flow.private and other.public == flow.public:
                return ""
            if other.public == flow.public and other.private[0] != flow.private[0]:
                public, port = flow.public
                return f"{public} port {port} is in use for {other.private[0]} here"
            if flow.private == other.private or flow.public == other.public:
                self.flows.remove(other)
        self.flows.append(flow)
        return ""

    async def drop_flows(self, private: IPv4Address, public: IPv4Address | None = None) -> int:
        """See NaptPlane.drop_flows."""
        self._check_started()
        if reason := self._refusal(f"drop {private}"):
            raise DataPlaneError(reason)
        before = len(self.flows)
        self.flows = [
            flow
            for flow in self.flows
            if flow.private[0] != private or public not in (None, flow.public[0])
        ]
        return before - len(self.flows)

    async def usage(self) -> NaptUsage:
        """See NaptPlane.usage."""
        self._check_started()
        counted = count_flows(settle(self._desired or NaptState())[0], self.flows)
        return replace(
            counted,
            flows=len(self.flows),
            limit=_LIMIT,
            no_pool=self._dropped.get("no_pool", 0),
            exhausted=self._dropped.get("exhausted", 0),
            unmapped=self._dropped.get("unmapped", 0),
        )

    async def close(self) -> None:
        """See NaptPlane.close."""
        self._started = False
        self._desired = None

    async def remove_all(self) -> None:
        """See NaptPlane.remove_all."""
        self.held = None
        self.flows = []
        self._dropped = {}
        await self.close()
