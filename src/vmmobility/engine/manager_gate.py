"""What follows from what routers see: the gate of Section 7.2, and when redirects may end.

Not here: what routers are told (manager_fabric.py), the steps of a move (manager_moves.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.binding_cache import Previous
from vmmobility.engine.fabric_record import FabricEntry, RouterSite
from vmmobility.engine.manager_move import Release, nve_of_peer
from vmmobility.engine.manager_transitions import Happening, MoveState
from vmmobility.engine.outputs import Event
from vmmobility.wire.registry import Role, RouteState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel, Peer
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox
    from vmmobility.wire.values import Nve, VmKey

# In these a move waits for its routers.
GATED = frozenset({MoveState.ANNOUNCING, MoveState.WITHDRAWING})
_S, _M = RouteState, MoveState


class ManagerGate:
    """Sights of routers; the base of ManagerFabric."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        _current: dict[VmKey, Move]
        _follow_routes: Callable[[Binding, float], None]
        _turning: Callable[[Binding], Move | None]
        _begin_withdrawal: Callable[[VmKey, float], object]
        _is_routed_to: Callable[..., bool]
        _may_withdraw: Callable[[Move], bool]
        _hold: Callable[[Move, Binding, float], bool]
        _let_go: Callable[[Move, Binding, float], bool]
        _still_held: Callable[[Move], list[str]]
        _redirect_previous: Callable[[Binding, float], None]
        _doubt_left: Callable[[float], float]
        _save_binding: Callable[[Binding], None]
        _learn_home: Callable[[Binding], None]
        _ask_relay: Callable[[Move, float], None]
        _save_move: Callable[[Move], None]
        _mates: Callable[[VmKey], tuple[VmKey, ...]]
        _has_mate: Callable[[VmKey, str], bool]

        def _happen(self, move: Move, happening: Happening, now: float, why: str = "") -> None: ...

    _fabric: dict[VmKey, FabricEntry]
    _sites: dict[str, RouterSite]

    # ---- the gate ------------------------------------------------------------------------------

    def _prepare_fabric(self, move: Move, now: float) -> None:
        """Entering ANNOUNCING: the fabric may turn once the destination sends on what it gets."""
        move.deadline = now + self.settings.gate_s
        self._ask_relay(move, now)

    def _announce(self, move: Move, now: float) -> None:
        """It does."""
        move.relaying = True
        self._save_move(move)
        self._turn_fabric(move, now)

    def _turn_fabric(self, move: Move, now: float) -> None:
        """Entering WITHDRAWING, and in ANNOUNCING when the destination relays."""
        move.deadline = now + self.settings.gate_s
        binding = self.cache.bindings.get(move.vm)
        if binding is not None:
            if move.state is _M.ANNOUNCING:
                self._spread_net(binding, move, now)
            self._follow_routes(binding, now)
            self._try_gate(move, now)

    def _spread_net(self, binding: Binding, move: Move, now: float) -> None:
        """A word of the source's routers that they announce no more may overtake that of the
        destination's that they do, and then the covering prefix leads: so the home's NVE redirects
        before anything is withdrawn."""
        home = binding.home
        if home is not None and home.nve_id != move.destination.nve_id:
            self._learn_home(binding)
            self._redirect_previous(binding, now)

    def _is_net_spread(self, binding: Binding) -> bool:
        net = binding.previous.get(binding.home.nve_id) if binding.home else None
        return net is None or net.acknowledged >= binding.epoch

    def _try_gate(self, move: Move, now: float) -> None:
        """Go on if the routers have done their part and the fabric leads there."""
        binding = self.cache.bindings.get(move.vm)
        if binding is None or move.state not in GATED:
            return
        if move.state is _M.ANNOUNCING and not move.relaying:
            return
        if move.release is Release.HOLDING and not self._hold(move, binding, now):
            return
        withdraws = move.state is _M.WITHDRAWING and not binding.at_home
        if withdraws and not self._may_withdraw(move):
            return
        early = move.state is _M.ANNOUNCING and not binding.at_home
        led = self._is_routed_to(move.destination, at_home=move.home)
        letting_go = move.release in (Release.NEAR, Release.BORDERS, Release.ALL)
        if self._waits_for(move, with_sight=led and not early and not letting_go):
            return
        if move.state is _M.ANNOUNCING and not self._is_net_spread(binding):
            return
        if move.state is _M.WITHDRAWING and not self._let_go(move, binding, now):
            return
        self._routed(move, now)

    def _routed(self, move: Move, now: float) -> None:
        """Go on; whatever still holds by policy lets go when the destination delivers."""
        self._happen(move, Happening.ROUTED, now)
        binding = self.cache.bindings.get(move.vm)
        if binding is not None:
            self._follow_routes(binding, now)

    def _silent(self, move: Move) -> frozenset[str]:
        """The routers that have not answered what they were told last."""
        entry = self._fabric.get(move.vm)
        told = entry.routers.items() if entry else ()
        return frozenset(name for name, one in told if not one.acknowledged)

    def _waits_for(self, move: Move, *, with_sight: bool) -> list[str]:
        """The routers for which a move waits; for none that is silent, once that is policy."""
        entry, ends = self._fabric.get(move.vm), (move.source, move.destination)
        if entry is None:
            return []
        found = self._unready(entry, move.destination, ends, with_sight=with_sight)
        return [name for name in found if name not in move.silent]

    def _unready(
        self, entry: FabricEntry, goal: Nve, ends: Sequence[Nve], *, with_sight: bool
    ) -> list[str]:
        """Routers that have not done what they were told, or where the fabric leads elsewhere.

        A router that only watches counts by its sight alone.  The border router of a data centre
        of none of `ends` does not count while it watches or holds to the old place: what it leads
        there comes to a border router that does.  Nor does one that still leads to none of `ends`.
        """
        known = {nve.nve_id for nve in ends}
        found = []
        for name, told in entry.routers.items():
            idle = told.lead is None or told.lead.state in (_S.WATCH, _S.KEEP)
            if told.lead is None or (idle and self._is_elsewhere(name, ends)):
                continue
            if told.target is not None and told.target.nve_id not in known:
                continue
            does = told.lead.state is not _S.WATCH
            meant = told.lead.serving.nve_id == goal.nve_id
            if (does and not told.acknowledged) or (with_sight and meant and not told.direct):
                found.append(name)
        return found

    def _is_elsewhere(self, name: str, ends: Sequence[Nve]) -> bool:
        """Whether it is the border router of a data centre where none of `ends` is."""
        site = self._sites.get(name)
        if site is None or not site.border or not site.dc:
            return False
        return all(site.dc not in self._centres(nve) for nve in ends)

    # ---- the routers of a configuration ----------------------------------------------------------

    def _load_sites(self) -> None:
        self._sites = {site.router_id: site for site in self.settings.routers}
        self._silent_routers: set[str] = set()
        self._borders = [site for site in self._sites.values() if site.border]
        self._routers: dict[str, list[str]] = {}
        for site in self._sites.values():
            for nve_id in dict.fromkeys(site.serves):
                self._routers.setdefault(nve_id, []).append(site.router_id)

    def routers_of(self, nve_id: str) -> list[str]:
        """The default routers of an NVE."""
        return self._routers.get(nve_id, [])

    def _border_routers(self, centres: set[str] | None = None) -> list[str]:
        """All, or those of these data centres."""
        return [s.router_id for s in self._borders if centres is None or s.dc in centres]

    def _centres(self, nve: Nve) -> set[str]:
        return {self._sites[name].dc for name in self.routers_of(nve.nve_id)}

    def _gate_timeout(self, move: Move, now: float) -> None:
        """Section 7.2 has the VM wait for the route; for how long, and what then, is policy."""
        binding = self.cache.bindings.get(move.vm)
        early = move.state is _M.ANNOUNCING and binding is not None and not binding.at_home
        if early and move.relaying and not self._waits_for(move, with_sight=False):
            self._routed(move, now)  # only its home's NVE does not answer
            return
        announced = move.release is not Release.HOLDING
        unready = self._waits_for(move, with_sight=announced and not early)
        unready += self._still_held(move)
        lost = move.state is _M.ANNOUNCING and not move.relaying
        waits = ", ".join(dict.fromkeys([move.destination.nve_id] if lost else unready))
        detail = {"vm": move.vm.vm_id, "vni": move.vm.vni, "move": move.move_id, "routers": waits}
        self.outbox.emit(Event("gate.timeout", {**detail, "policy": self.settings.gate_policy}))
        if lost or self.settings.gate_policy != "proceed":
            # Nothing may lead to a destination that has not said that it sends on what it gets.
            self._happen(move, Happening.TIMEOUT, now, waits)
            return
        if move.state is _M.WITHDRAWING or move.release is Release.HOLDING:
            move.release, move.silent = Release.FORCED, self._silent(move)
        self._routed(move, now)

    # ---- where routers may still lead ------------------------------------------------------------

    def _may_lead(self, vm: VmKey, nve_id: str, now: float) -> bool:
        """Whether a router may still lead to that NVE, for it has not yet done what it was told
        last - or this manager has lost its records, and has not heard of all routes yet."""
        if self._doubt_left(now) and self.routers_of(nve_id):
            return True
        entry = self._fabric.get(vm)
        routers = entry.routers.values() if entry else ()
        return any(nve.nve_id == nve_id for told in routers for nve in told.may_lead_to)

    def _is_led_to(self, vm: VmKey, peer: Peer, now: float) -> bool:
        """Whether an NVE that asks about a move which this manager does not know must not forget
        the VM, for routers may lead there: it redirects, once somebody is known to have the VM."""
        binding, node = self.cache.bindings.get(vm), peer.node_id
        if not self._may_lead(vm, node, now):
            return False
        if binding is None or binding.ending:
            return binding is None
        if binding.nve.nve_id == node or binding.is_full(node):
            return False
        if node not in binding.previous:
            binding.previous[node] = Previous(nve_of_peer(peer))
            self._save_binding(binding)
            self._redirect_previous(binding, now)
        return True

    def _learn_led(self, binding: Binding, now: float) -> None:
        """NVEs to which routers may still lead, that have not yet heard of the VM's end there, or
        of a move's: they redirect."""
        entry = self._fabric.get(binding.vm)
        led = [n for t in entry.routers.values() for n in t.may_lead_to] if entry else []
        for nve in (*led, *self._behind_silent_routers(now)):
            peer = self.channel.peers.get(nve.nve_id)
            known = nve.nve_id in (binding.nve.nve_id, *binding.previous)
            if (
                peer is not None
                and peer.role is Role.NVE
                and not known
                and not self._has_mate(binding.vm, nve.nve_id)
                and not binding.is_full(nve.nve_id)
            ):
                binding.previous[nve.nve_id] = Previous(nve)

    def _note_router(self, node: str, *, silent: bool) -> None:
        """A node has, or has not, answered a question; NVEs do not count here."""
        if silent and node in self._sites:
            self._silent_routers.add(node)
        else:
            self._silent_routers.discard(node)

    def _behind_silent_routers(self, now: float) -> list[Nve]:
        """After a loss of records: a router that has not spoken yet may lead to each of these."""
        if not self._doubt_left(now):
            return []
        peers = self.channel.peers
        silent = [
            site
            for name, site in self._sites.items()
            if name in self._silent_routers or peers[name].last_heard is None
        ]
        served = dict.fromkeys(nve_id for site in silent for nve_id in site.serves)
        return [nve_of_peer(peers[nve_id]) for nve_id in served if nve_id in peers]

    def _redirects_on(self, move: Move, now: float) -> bool:
        """Whether the destination of a move that is off redirects, as a previous NVE, for its
        routers may still lead there.  That ends its part in the move, too."""
        binding, node = self.cache.bindings.get(move.vm), move.destination.nve_id
        if binding is None or binding.ending or binding.nve.nve_id == node:
            return False
        known = binding.previous.get(node)
        if known is not None and known.acknowledged:
            return False  # it did before the move, and falls back to that
        if not self._may_lead(move.vm, node, now) or (known is None and binding.is_full(node)):
            return False
        if known is None:
            binding.previous[node] = Previous(move.destination)
            self._save_binding(binding)
            self._redirect_previous(binding, now)
        return True

    # ---- what the fabric means for redirects ---------------------------------------------------

    def _is_direct(self, binding: Binding) -> bool | None:
        """Whether every router that was asked sees the fabric lead to the serving NVE, and none
        leads elsewhere itself; None: not all have said so yet, and those that have do."""
        entry, serving = self._fabric.get(binding.vm), binding.nve.nve_id
        told = [t for t in entry.routers.values() if t.lead is not None] if entry else []
        astray = any(nve.nve_id != serving for t in told for nve in t.may_lead_to)
        if not told or astray or any(t.direct is False for t in told):
            return False
        return None if any(t.direct is None for t in told) else True

    def _begin_fabric(self, binding: Binding, before: Binding | None, now: float) -> None:
        """A new binding: its routers, and its home's NVE, which may have let its redirect go."""
        moved = before is not None and before.nve.nve_id != binding.nve.nve_id
        routed = self._is_routed_to(binding.nve, at_home=binding.at_home)
        alone = not self._mates(binding.vm)  # else the other members hold the net
        if moved and alone and routed and self._borders and not self._is_direct(binding):
            self._begin_withdrawal(binding.vm, now)  # the fabric has yet to turn
        self._follow_routes(binding, now)
        self._learn_led(binding, now)
        binding.fabric_direct = self._is_direct(binding) is True
        if self._sites and not binding.fabric_direct:
            self._learn_home(binding)

    def _senders(self, binding: Binding) -> list[Nve]:
        """NVEs that redirect to the serving one, or may at any time: its home's, if the fabric
        leads there."""
        home, previous = binding.home, list(binding.previous_nves)
        known = {binding.nve.nve_id, *binding.previous}
        return [*previous, home] if self._sites and home and home.nve_id not in known else previous

    def _follow_fabric(self, binding: Binding, now: float) -> None:
        """Invariant 8: a redirect goes when the fabric is confirmed direct - and comes back if it
        is so no more."""
        direct = self._is_direct(binding)
        if direct is None or self._turning(binding):
            return
        if not direct and binding.home is not None and binding.fabric_direct:
            self._learn_home(binding)
        if direct != binding.fabric_direct:
            binding.fabric_direct = direct
            self._redirect_previous(binding, now)
