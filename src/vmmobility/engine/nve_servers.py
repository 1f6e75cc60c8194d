"""At which of its servers an NVE that stands apart has each VM (Figure 1 of the draft).

Not here: what a server's guest is told (its orders name the server), circuits (drivers/linux).
"""

from __future__ import annotations

from collections import Counter

from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.capacity import resources_of
from vmmobility.engine.nve_parts import NveParts
from vmmobility.engine.nve_transitions import Trigger
from vmmobility.wire.options import AtServer, Option, ServerOption
from vmmobility.wire.values import VmKey


class NveServers(NveParts):
    """Placement at servers; a part of NveEngine.  Without servers every VM is at the NVE itself."""

    def places(self) -> dict[VmKey, tuple[str, ...]]:
        """The servers that each VM may be at, the one where it should be first: who is asked for
        its guest after a start."""
        return {
            entry.vm: tuple(filter(None, (entry.server, entry.server_to)))
            for entry in self.entries.values()
            if entry.server
        }

    def used_vcpus(self) -> dict[str, int]:
        """Of the guests at each server, by their definitions."""
        used: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.server and (entry.leftover or not entry.is_tombstone):
                used[entry.server] += resources_of(entry.definition).vcpus
        return dict(used)

    def _place(self, entry: Entry, wanted: str = "") -> None:
        """The VM comes here: at the server that is wanted, else at the one with the fewest.

        What may still be of it stays where it is: it is ended there first, and by the same name.
        """
        if entry.started or entry.leftover:
            return
        servers = self.settings.servers
        if not servers:
            entry.server = ""
        elif wanted or entry.server not in servers:
            load = Counter(
                other.server for other in self.entries.values() if not other.is_tombstone
            )
            entry.server = wanted or min(servers, key=lambda name: load[name])

    def _misplaced(self, entry: Entry, wanted: str) -> tuple[str, str] | None:
        """What is wrong with a server that people have named, and the remedy."""
        if not wanted:
            return None
        if wanted not in self.settings.servers:
            return self._not_a_server(wanted), "see [[server]] in its configuration"
        if (entry.started or entry.leftover) and wanted != entry.server:
            where = entry.server or "this NVE's own host"
            return f"VM {entry.vm} is at {where}", "stop it there first"
        return None

    def _not_a_server(self, name: str) -> str:
        its = self.settings.servers
        had = f"its servers are {', '.join(its)}" if its else "its guests are on its own host"
        return f"this NVE has no server {name!r}: {had}"

    def _no_such_server(self, entry: Entry, trigger: Trigger, named: ServerOption) -> str:
        """Why a VM of the manager's cannot be at the server that it names, in words; "" if it can.

        What may still be of it elsewhere is ended there first: it cannot come to another one yet.
        """
        if named.name not in self.settings.servers:
            return self._not_a_server(named.name)
        kept = trigger is Trigger.PREPARE_IN and (entry.started or entry.leftover)
        if kept and named.strict and entry.server != named.name:
            return f"what is left of it is still being ended at {entry.server}: try again"
        return ""

    def _server_options(self, entry: Entry) -> tuple[Option, ...]:
        """Where it is, for the manager."""
        return (AtServer(entry.server),) if entry.server else ()
