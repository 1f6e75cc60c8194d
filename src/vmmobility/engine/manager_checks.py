"""The manager's comparison of its binding cache with what the NVEs hold (reconciliation).

An NVE that refreshes a binding, or asks whether a redirect stands, is compared by that; whoever is
silent for long is asked (CHECK), and all are when people ask.  What differs is counted, told and,
where the manager's word decides, mended: redirects are.  Who serves a VM is never guessed.

`_question` is also how a conflicting attach is settled (manager_contests.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vmmobility.engine.binding_cache import Binding, Previous
from vmmobility.engine.manager_move import nve_of_peer
from vmmobility.engine.outputs import CommandDone, Event
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    Epoch,
    Guest,
    PhaseOption,
    Reason,
    Route,
    ServingNve,
    Sight,
    VmId,
)
from vmmobility.wire.registry import GuestLife, Phase, Purpose, Role, Status
from vmmobility.wire.values import Interface, VmKey

if TYPE_CHECKING:
    from collections import Counter

    from vmmobility.engine.binding_cache import BindingCache
    from vmmobility.engine.channel import Channel, Peer, Received
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.options import Option

QuestionKey = tuple[VmKey, str, bool]
"""VM, NVE, and whether another NVE claims the guest."""

Listener = Callable[[Message | None, float], None]
"""Told the NVE's answer; None: it gave none in time, or refused."""

# An NVE in one of these phases holds the binding (DEPARTED: until its guest's new place is known).
HOLDS = frozenset(
    {
        Phase.ATTACHING, Phase.SERVING, Phase.COPYING, Phase.CONVERGED, Phase.SWITCHED,
        Phase.DEPARTED, Phase.STOPPED,
    }
)  # fmt: skip
SERVES = frozenset({Phase.SERVING, Phase.COPYING, Phase.CONVERGED, Phase.STOPPED})
# A previous NVE in one of these has forgotten its redirect.  (In others it takes part in a move.)
WITHOUT_REDIRECT = frozenset(
    {Phase.NONE, Phase.SERVING, Phase.STOPPED, Phase.SWITCHED, Phase.DEPARTED}
)


@dataclass(slots=True)
class Question:
    """One CHECK under way."""

    deadline: float
    listeners: list[Listener]


@dataclass(slots=True)
class Survey:
    """One command of people's that compares everything."""

    waiting: int = 0
    checked: int = 0
    drift: list[dict[str, Any]] = field(default_factory=list)
    unanswered: set[str] = field(default_factory=set)


class ManagerChecks:
    """Comparisons; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        counts: Counter[str]
        _current: dict[VmKey, Move]
        _save_binding: Callable[[Binding], None]
        _redirect_previous: Callable[[Binding, float], None]
        _off_record: Callable[[VmKey, Sequence[Interface], str], str]
        _heed_epoch: Callable[[Message, float], None]
        _has_mate: Callable[[VmKey, str], bool]

    _questions: dict[QuestionKey, Question]

    # ---- questions -----------------------------------------------------------------------------

    def _question(
        self,
        vm: VmKey,
        node: str,
        now: float,
        listener: Listener,
        claim: GuestLife | None = None,
    ) -> None:
        """Ask a node how it stands with a VM; the listener is told, once, within ask_s.

        node:  an NVE or a router
        claim: what another NVE says of its guest; the answer is then about the guest alone, and
        does not wait for a comparison with the kernel.
        """
        peer = self.channel.peers.get(node)
        if peer is None or not peer.endpoints:
            listener(None, now)
            return
        key = (vm, node, claim is not None)
        question = self._questions.setdefault(key, Question(now + self.settings.ask_s, []))
        question.listeners.append(listener)
        self.channel.request(
            peer,
            Purpose.CHECK,
            [VmId(vm)] if claim is None or peer.role is not Role.NVE else [VmId(vm), Guest(claim)],
            now,
            partial(self._answered, key),
            subject=_subject(key),
        )

    def _answered(self, key: QuestionKey, reply: Message, now: float) -> None:
        asked = self._questions.pop(key, None)
        if asked is None:
            return
        by_nve = self.channel.peers[key[1]].role is Role.NVE
        wanted = (Guest, PhaseOption, Epoch) if by_nve else (Route, Epoch)
        tells = reply.status.accepted and all(reply.find(option) for option in wanted)
        if tells:
            self._heed_epoch(reply, now)
            if by_nve:
                self._confirm(key[0], key[1], reply)
        for listener in asked.listeners:
            listener(reply if tells else None, now)

    def _confirm(self, vm: VmKey, node: str, reply: Message) -> None:
        binding = self.cache.bindings.get(vm)
        if binding is not None and binding.nve.nve_id == node:
            binding.sure = binding.sure or reply.need(PhaseOption).phase in SERVES

    def _question_timer(self, now: float) -> None:
        for key, asked in list(self._questions.items()):
            if asked.deadline <= now:
                del self._questions[key]
                self.channel.withdraw_subject(self.channel.peers[key[1]], _subject(key))
                for listener in asked.listeners:
                    listener(None, now)

    # ---- when ----------------------------------------------------------------------------------

    def check(self, command: int, now: float) -> None:
        """Ask every NVE about every binding.  Ends with CommandDone: checked, drift, unanswered."""
        survey = Survey()
        pairs = [
            (binding.vm, node)
            for binding in self.cache.bindings.values()
            for node in (binding.nve.nve_id, *binding.previous)
        ]
        survey.waiting = survey.checked = len(pairs)
        for vm, node in pairs:
            self._question(vm, node, now, partial(self._surveyed, command, survey, vm, node))
        if not pairs:
            self._survey_done(command, survey)

    def _surveyed(
        self, command: int, survey: Survey, vm: VmKey, node: str, reply: Message | None, now: float
    ) -> None:
        if reply is None:
            survey.unanswered.add(node)
        else:
            survey.drift += self._compare(vm, node, reply, now)
        survey.waiting -= 1
        if not survey.waiting:
            self._survey_done(command, survey)

    def _survey_done(self, command: int, survey: Survey) -> None:
        result = {
            "checked": survey.checked,
            "drift": survey.drift,
            "unanswered": sorted(survey.unanswered),
        }
        self.outbox.emit(CommandDone(command, result))

    def _check_silent(self, now: float) -> None:
        """Those who have not shown by themselves that they hold what they should."""
        for binding in self.cache.bindings.values():
            if binding.ending or binding.vm in self._current:
                continue
            if now - binding.heard > max(self.settings.check_s, binding.lifetime_s):
                self._check_one(binding.vm, binding.nve.nve_id, now)
            for node, previous in binding.previous.items():
                if now - previous.heard > 2 * self.settings.check_s:
                    self._check_one(binding.vm, node, now)

    def _check_one(self, vm: VmKey, node: str, now: float) -> None:
        if (vm, node, False) not in self._questions:
            self._question(vm, node, now, partial(self._compared, vm, node))

    def _compared(self, vm: VmKey, node: str, reply: Message | None, now: float) -> None:
        if reply is not None:
            self._compare(vm, node, reply, now)

    if TYPE_CHECKING:
        _routes_lost: Callable[[str, float], None]

    def _peer_lost_state(self, peer: Peer, now: float) -> None:
        """It came back without its memory: what it held for us is looked at now."""
        self._routes_lost(peer.node_id, now)
        for binding in self.cache.bindings.values():
            node = peer.node_id
            if node == binding.nve.nve_id or node in binding.previous:
                self._check_one(binding.vm, node, now)

    # ---- what differs --------------------------------------------------------------------------

    def _compare(self, vm: VmKey, node: str, reply: Message, now: float) -> list[dict[str, Any]]:
        binding = self.cache.bindings.get(vm)
        if binding is None or binding.ending or vm in self._current:
            return []
        words = reply.find(Reason)
        rows = [self._row(vm, node, "node", "as listed", words.text, True)] if words else []
        if node == binding.nve.nve_id:
            return rows + self._compare_serving(binding, reply)
        previous = binding.previous.get(node)
        if previous is not None:
            return rows + self._compare_previous(binding, previous, reply, now)
        return rows

    def _compare_serving(self, binding: Binding, reply: Message) -> list[dict[str, Any]]:
        phase = reply.need(PhaseOption).phase
        if phase in HOLDS:
            return []
        node = binding.nve.nve_id
        if not binding.lost:
            binding.lost = True
            detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": node}
            self.outbox.emit(Event("binding.lost", detail))
        return [self._differs(binding.vm, node, "binding", "serving", phase.name.lower(), False)]

    def _compare_previous(
        self, binding: Binding, previous: Previous, reply: Message, now: float
    ) -> list[dict[str, Any]]:
        previous.heard = now
        if previous.acknowledged < binding.epoch:
            return []  # it is being told
        phase, target = reply.need(PhaseOption).phase, reply.find(ServingNve)
        if phase is Phase.REDIRECTING:
            leads_to = target.nve.nve_id if target else "nowhere"
            if leads_to == binding.nve.nve_id and reply.epoch >= binding.epoch:
                return []
            found = f"to {leads_to}, epoch {reply.epoch}"
        elif phase in WITHOUT_REDIRECT:
            found = phase.name.lower()
        else:
            return []
        wanted = f"to {binding.nve.nve_id}, epoch {binding.epoch}"
        row = self._differs(binding.vm, previous.nve.nve_id, "redirect", wanted, found, True)
        self._tell_anew(binding, previous, now)
        return [row]

    def _tell_anew(self, binding: Binding, previous: Previous, now: float) -> None:
        previous.acknowledged = 0
        self._save_binding(binding)
        self._redirect_previous(binding, now)

    def _differs(
        self, vm: VmKey, node: str, what: str, expected: str, found: str, repaired: bool
    ) -> dict[str, Any]:
        """A difference, counted and told; the row that people see."""
        self.counts[f"drift.{what}"] += 1
        row = self._row(vm, node, what, expected, found, repaired)
        self.outbox.emit(Event("drift", dict(row)))
        return row

    @staticmethod
    def _row(
        vm: VmKey, node: str, what: str, expected: str, found: str, repaired: bool
    ) -> dict[str, Any]:
        return {
            "vm": vm.vm_id,
            "vni": vm.vni,
            "nve": node,
            "what": what,
            "expected": expected,
            "found": found,
            "repaired": repaired,
        }

    # ---- an NVE asks whether what it holds still stands ------------------------------------------

    def _standing(self, received: Received, phase: Phase, now: float) -> None:
        """REFRESH with a phase: from an NVE that redirects, or whose guest has departed."""
        message, node = received.message, received.peer.node_id
        binding = self.cache.bindings.get(message.vm)
        self._heed_epoch(message, now)
        if binding is None:
            # An attach may be on its way to a manager that has lost its state.
            status = Status.TRY_AGAIN if self._relearning(now) else Status.UNKNOWN_BINDING
            self.channel.reply(received, status, [VmId(message.vm)])
            return
        options: list[Option] = [VmId(binding.vm), Epoch(binding.epoch), ServingNve(binding.nve)]
        if node == binding.nve.nve_id:
            if phase is Phase.DEPARTED and not binding.departed:
                binding.departed = True
                detail = {"vm": binding.vm.vm_id, "vni": binding.vm.vni, "nve": node}
                self.outbox.emit(Event("binding.departed", detail))
            elif phase is Phase.REDIRECTING and not self._moving(binding.vm, now):
                # In a switch, perhaps, that this manager has forgotten; not if it was set back
                # further and another NVE serves: that one is named to it as soon as it attaches.
                self.channel.reply(received, Status.UNKNOWN_BINDING, options)
                return
            self.channel.reply(received, Status.ACCEPTED, options)
            return
        if node not in binding.previous and self._has_mate(binding.vm, node):
            # Packets of their address are another member's there: that redirect must go.
            self.channel.reply(received, Status.UNKNOWN_BINDING, [VmId(binding.vm)])
            return
        self._still_previous(binding, received, now)
        if binding.fabric_direct:
            options.append(Sight(direct=True, covered=False))
        self.channel.reply(received, Status.ACCEPTED, options)

    def _still_previous(self, binding: Binding, received: Received, now: float) -> None:
        node, epoch = received.peer.node_id, received.message.epoch
        phase = received.message.need(PhaseOption).phase
        previous = binding.previous.get(node)
        if previous is None:
            not_its = self._off_record(binding.vm, binding.interfaces, node)
            if binding.ending or binding.is_full(node) or not_its:
                return
            self._differs(binding.vm, node, "redirect", "none", f"epoch {epoch}", True)
            previous = binding.previous[node] = Previous(nve_of_peer(received.peer))
            self._tell_anew(binding, previous, now)
        elif previous.acknowledged >= binding.epoch > epoch:
            wanted = f"epoch {binding.epoch}"
            self._differs(binding.vm, node, "redirect", wanted, f"epoch {epoch}", True)
            self._tell_anew(binding, previous, now)
        elif previous.acknowledged >= binding.epoch and phase is Phase.DEPARTED:
            self._tell_anew(binding, previous, now)  # its guest has passed through since
        previous.heard = now

    if TYPE_CHECKING:

        def _relearning(self, now: float) -> bool: ...

    def _moving(self, vm: VmKey, now: float) -> bool:
        """Whether a move of it is under way, or might have been when the records were lost."""
        return vm in self._current or self._relearning(now)


def _subject(key: QuestionKey) -> tuple[VmKey, str]:
    return (key[0], "contest" if key[2] else "check")
