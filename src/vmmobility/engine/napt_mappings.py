"""A NAPT box's mappings: whose private address is which public one, durable before it is used.

An NVE's locator and a VM's address each have a whole public address (basic NAT, RFC 3022, 2.1):
tunnels have no ports.  A mapping that has ended keeps its public address through a quarantine, and
lives again if its VM is heard of in that time.
Not here: one mapping as a value (napt_mapping.py), what the data plane holds of it
(napt_desired.py), messages (napt_translate.py), other boxes (napt_boxes.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from vmmobility.engine.napt_mapping import LocatorMapping, VmMapping, from_json, to_json, words
from vmmobility.engine.napt_pool import AddressPool
from vmmobility.engine.napt_settings import NaptSettings
from vmmobility.engine.outputs import Event, Outbox
from vmmobility.wire.registry import Status
from vmmobility.wire.values import VmKey

SILENT_S = 150.0  # a manager that lives is heard at every refresh of a VM: two are missing


class NaptRefused(Exception):
    """A message that cannot be sent on; its sender is told why."""

    def __init__(self, status: Status, words: str) -> None:
        super().__init__(words)
        self.status = status


class Mappings:
    """All of one box.

    version: rises with every change of what the data plane should hold
    over:    private addresses that are translated no more by this public one, and whose flows by it
             are to be forgotten; None: all flows
    """

    def __init__(
        self, settings: NaptSettings, state: Mapping[str, Any], outbox: Outbox, now: float
    ) -> None:
        self.settings = settings
        self.locators: dict[str, LocatorMapping] = {}
        self.vms: dict[tuple[VmKey, IPv4Address], VmMapping] = {}
        self.version = 0
        self.over: list[tuple[IPv4Address, IPv4Address | None]] = []
        self._heard_at, self._closed_until = now, now
        self.pool = AddressPool(settings, state, outbox)
        self._outbox = outbox
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            if kind == "locator":
                locator = LocatorMapping(
                    rest, IPv4Address(value["private"]), IPv4Address(value["public"])
                )
                if locator.public in self.pool:
                    self.locators[rest] = locator
                else:
                    self._drop_loaded(locator)
            elif kind == "map":
                found = from_json(rest, value)
                wait = settings.quarantine_s if found.ended else settings.mapping_s
                found.due = now + wait  # a restart grants the whole time anew, to lingering, too
                found.lingers = now + settings.linger_s if value.get("lingers") else 0.0
                self.vms[found.vm, found.private] = found
                if found.owner == settings.box_id and found.public not in self.pool:
                    self._drop_loaded(found)
                elif (
                    found.ended or not found.is_translated
                ):  # the flows of it may have outlived a crash
                    self.over.append((found.private, found.public))

    def _drop_loaded(self, mapping: LocatorMapping | VmMapping) -> None:
        """`pool` has changed: what is not in it, nobody would believe, nor is it routed here."""
        why = f"{mapping.public} is no more in the pool"
        self.over.append((mapping.private, mapping.public))
        if isinstance(mapping, VmMapping):
            self._forget(mapping)
            self._changed("mapping.ended", reason=why, **words(mapping))
        else:
            self._outbox.record(f"locator/{mapping.nve_id}", None)
            at = {"private": str(mapping.private), "public": str(mapping.public)}
            self._changed("mapping.ended", reason=why, nve=mapping.nve_id, **at)

    # ---- looking up ----------------------------------------------------------------------------

    def of_vm(self, vm: VmKey) -> list[VmMapping]:
        return [m for m in self.vms.values() if m.vm == vm]

    def by_public(self, public: IPv4Address) -> VmMapping | None:
        return next((m for m in self.vms.values() if m.public == public and not m.ended), None)

    def user_of(self, private: IPv4Address) -> str:
        """What has the private address here, in words; "" if nothing that is known."""
        for mapping in self.vms.values():
            if mapping.private == private and not mapping.ended:
                return f"VM {mapping.vm}"
        for locator in self.locators.values():
            if locator.private == private:
                return f"NVE {locator.nve_id}"
        return ""

    def is_inside(self, address: IPv4Address) -> bool:
        return any(address in network for network in self.settings.inside)

    # ---- making and ending ---------------------------------------------------------------------

    def locator(self, nve_id: str, private: IPv4Address, now: float) -> IPv4Address:
        """The public address of an NVE's locator, made if need be.  Raises NaptRefused."""
        known = self.locators.get(nve_id)
        if known is not None and known.private == private:
            return known.public
        user = self.user_of(private)
        if user:
            raise NaptRefused(
                Status.ADDRESS_IN_USE,
                f"{self.settings.box_id}: {private} of NVE {nve_id} is {user}'s",
            )
        public = known.public if known else self._free(f"NVE {nve_id}", now)
        if known is not None:  # its tunnels' flows would lead what comes to where it was
            self.over.append((known.private, known.public))
        self.locators[nve_id] = LocatorMapping(nve_id, private, public)
        value = {"private": str(private), "public": str(public)}
        self._outbox.record(f"locator/{nve_id}", value)
        self._changed("mapping.made", nve=nve_id, private=str(private), public=str(public))
        return public

    def address(self, vm: VmKey, private: IPv4Address, now: float) -> VmMapping:
        """The mapping of a VM's address, made or brought back to life.  Raises NaptRefused."""
        known = self.vms.get((vm, private))
        if known is not None and not known.ended:
            return known
        user = self.user_of(private)
        if user:
            raise NaptRefused(
                Status.ADDRESS_IN_USE, f"{self.settings.box_id}: {private} of VM {vm} is {user}'s"
            )
        if known is not None:
            known.ended = False
            self.touch(known, now)
            self.save(known)
            self._changed("mapping.revived", **words(known))
            return known
        made = VmMapping(vm, private, self._free(f"VM {vm}", now), self.settings.box_id, ours=True)
        return self.add(made, now)

    def add(self, mapping: VmMapping, now: float) -> VmMapping:
        self.vms[mapping.vm, mapping.private] = mapping
        self.touch(mapping, now)
        self.save(mapping)
        self._changed("mapping.made", **words(mapping))
        return mapping

    def manager_heard(self, now: float) -> None:
        """A message of a manager has crossed.  After a silence of it every mapping has its whole
        time anew: what the manager knows of VMs could not cross meanwhile."""
        if self._is_silent(now):
            for mapping in self.vms.values():
                self.touch(mapping, now)
        self._heard_at = now

    def _is_silent(self, now: float) -> bool:
        return now - self._heard_at > min(SILENT_S, self.settings.mapping_s / 2)

    def take_up(self, mapping: VmMapping, now: float) -> bool:
        """A mapping of this box's own, which it knows no more.  False: it cannot be: something else
        has its public or its private address, or these are none of this box's."""
        known = (mapping.vm, mapping.private) in self.vms
        used = mapping.public in self._taken() or self.user_of(mapping.private)
        own = mapping.public in self.pool and self.is_inside(mapping.private)
        if known or used or not own:
            return False
        self.add(mapping, now)
        return True

    def touch(self, mapping: VmMapping, now: float, seconds: float = 0.0) -> None:
        """Something was heard of it: it lives on.  What has ended does not begin again by that."""
        if mapping.ended:
            return
        mapping.due = max(mapping.due, now + max(self.settings.mapping_s, seconds))

    def note(self, mapping: VmMapping, **values: Any) -> None:
        """Change and save it, if anything differs."""
        if any(getattr(mapping, name) != value for name, value in values.items()):
            for name, value in values.items():
                setattr(mapping, name, value)
            self.save(mapping)
            self._changed("mapping.changed", **words(mapping))

    def try_out(self, mapping: VmMapping, tried: bool) -> None:
        """The data plane is to hold what another box hands over, before it is this box's."""
        if mapping.tried is not tried:
            mapping.tried = tried
            self.version += 1

    def end(self, mapping: VmMapping, why: str, now: float) -> None:
        """It is over: its owner keeps the address in quarantine, others forget it."""
        if mapping.is_translated:
            self.over += [(mapping.private, None), (mapping.private, mapping.public)]
        mapping.ended, mapping.lingers, mapping.tried, mapping.stays = True, 0.0, False, ""
        if mapping.owner == self.settings.box_id:
            mapping.ours, mapping.here, mapping.holder, mapping.moving = True, False, "", False
            mapping.due = now + self.settings.quarantine_s
            self.save(mapping)
        else:
            self._forget(mapping)
        self._changed("mapping.ended", reason=why, **words(mapping))

    def discard(self, mapping: VmMapping, why: str) -> None:
        """It was never anybody's: it is forgotten without a quarantine."""
        if mapping.is_translated:
            self.over += [(mapping.private, None), (mapping.private, mapping.public)]
        mapping.ended = True
        self._forget(mapping)
        self._changed("mapping.ended", reason=why, **words(mapping))

    def expire(self, now: float) -> list[VmMapping]:
        """Those whose time is over.  What has ended and waited is forgotten here; a mapping that a
        move needs gets more time, and all have it while no manager is heard (fail static)."""
        over = []
        for mapping in [m for m in self.vms.values() if m.due <= now]:
            if mapping.ended:
                self._forget(mapping)
                self._outbox.emit(Event("mapping.free", words(mapping)))
            elif mapping.moving:
                mapping.moving, mapping.due = False, now + self.settings.move_s
                self.save(mapping)
            elif self._is_silent(now):
                mapping.due = now + SILENT_S
            else:
                over.append(mapping)
        return over

    def let_go(self, mapping: VmMapping, now: float) -> None:
        """Another box has it now: what still comes here is translated a little longer."""
        self.note(mapping, ours=False, lingers=now + self.settings.linger_s)

    def lingered(self, now: float) -> list[VmMapping]:
        """Those that were handed over and are translated here no more from now on."""
        found = [m for m in self.vms.values() if 0 < m.lingers <= now]
        for mapping in found:
            mapping.lingers = 0.0
            self.save(mapping)
            self._changed("mapping.gone", **words(mapping))
        gone = [m for m in found if not m.is_translated]
        for mapping in gone:
            mapping.forgetting = True
        return gone

    def forgotten(self, mapping: VmMapping) -> None:
        """Its flows have been forgotten, or need not be."""
        mapping.forgetting = False
        self.version += 1

    def next_due(self) -> float | None:
        mappings = self.vms.values()
        due = [m.due for m in mappings] + [m.lingers for m in mappings if m.lingers]
        return min(due, default=None)

    def save(self, mapping: VmMapping) -> None:
        self._outbox.record(mapping.key, to_json(mapping))

    def _forget(self, mapping: VmMapping) -> None:
        self.vms.pop((mapping.vm, mapping.private), None)
        self.pool.give_back(mapping.public)
        self._outbox.record(mapping.key, None)

    def _changed(self, event: str, **detail: Any) -> None:
        self.version += 1
        self._outbox.emit(Event(event, detail))

    def _taken(self) -> set[IPv4Address]:
        taken = {m.public for m in self.vms.values()}
        return taken | {m.public for m in self.locators.values()}

    def free_addresses(self) -> int:
        """How many public addresses nobody has."""
        taken = self._taken()
        return sum(a not in taken for a in self.pool)

    def nothing_new(self, until: float) -> None:
        """The record was lost: what it gave out is not known before then, and no address is."""
        self._closed_until = until

    def _free(self, whose: str, now: float) -> IPv4Address:
        if now < self._closed_until:
            wait = math.ceil(self._closed_until - now)
            raise NaptRefused(
                Status.TRY_AGAIN,
                f"{self.settings.box_id}: no public address for {whose} yet: its record was lost, "
                f"and other boxes tell first which are in use: try again in {wait} s",
            )
        free = self.pool.choose(self._taken())
        if free is None:
            pools = ", ".join(map(str, self.settings.pool)) or "none"
            waiting = sum(m.ended for m in self.vms.values())
            raise NaptRefused(
                Status.INSUFFICIENT_RESOURCES,
                f"{self.settings.box_id}: no public address for {whose}: pool {pools} is exhausted"
                + (f" ({waiting} in quarantine)" if waiting else ""),
            )
        return free
