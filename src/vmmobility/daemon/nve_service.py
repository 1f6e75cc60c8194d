"""What an NVE's API serves: its VMs, commands, comparisons, alarms (api/service.NveService).

Not here: the daemon's own work (nve.py), HTTP (api/), decisions (engine/nve.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from vmmobility.daemon.alarms import nve_alarms
from vmmobility.daemon.assembly import standing_of, status_of
from vmmobility.drivers.dataplane import Traffic
from vmmobility.drivers.hypervisor import definition as definitions
from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.dataplane import Forwarding, VmDataPlane, port_name
from vmmobility.errors import BadRequest, DecodeError, NotFound, Unavailable
from vmmobility.wire.definition_keys import file_keys
from vmmobility.wire.registry import Phase
from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from vmmobility.daemon.commands import Commands
    from vmmobility.daemon.config import NveConfig
    from vmmobility.daemon.endpoint import UdpEndpoint
    from vmmobility.daemon.event_log import EventLog
    from vmmobility.daemon.pump import Pump
    from vmmobility.daemon.server_links import ServerLinks
    from vmmobility.drivers.linux.driver import LinuxDataPlane
    from vmmobility.drivers.linux.tunnels import Choice
    from vmmobility.engine.nve import NveEngine

EXTERNAL = "external"  # the kind of guests that other hands run
HERE = (Phase.SERVING, Phase.STOPPED)  # phases in which the guest's state is this node's to tell


class NveService:
    """The answers to the API; a part of NveDaemon."""

    if TYPE_CHECKING:
        engine: NveEngine
        pump: Pump
        _accelerator: str
        _commands: Commands
        _config: NveConfig
        _data_plane: LinuxDataPlane
        _endpoint: UdpEndpoint
        _log: EventLog
        _ready: bool
        _servers: ServerLinks
        _since: float

    def _check_ready(self) -> None:
        """The API's socket is taken before the kernel is touched, so it may be asked early."""
        if not self._ready:
            raise Unavailable("the NVE is starting", "ask again in a moment")

    def status(self) -> dict[str, Any]:
        self._check_ready()
        return {
            **status_of(self.engine.channel, "nve", self._since, self._endpoint, self._log),
            **standing_of(self.engine),
            "accelerator": self._accelerator,
            "relay_deaths": self._data_plane.relay_deaths,
            "dc_prefixes": [str(prefix) for prefix in self._config.dc_prefixes],
            "servers": self._servers.rows(),
            "tunnels": _tunnels(self._data_plane.tunnel_choice),
        }

    async def vms(self) -> list[dict[str, Any]]:
        self._check_ready()
        counts = await self._data_plane.traffic()
        rows = []
        for vm, entry in sorted(self.engine.entries.items()):
            if entry.is_tombstone:
                continue
            state = entry.data_plane(self._config.redirect)
            traffic = counts.get(vm, Traffic())
            rows.append(
                {
                    **self._row(vm),
                    "forwarding": state.forwarding.value,
                    "target": state.target.nve_id if state.target else None,
                    "outside": self._outside(state),
                    "traffic": {
                        "delivered": traffic.delivered,
                        "consumed": traffic.consumed,
                        "redirected": traffic.redirected,
                        "dropped": traffic.dropped,
                        "outside": traffic.outside,
                        "too_big": traffic.too_big,
                    },
                }
            )
        return rows

    def _outside(self, state: VmDataPlane) -> str | None:
        """What becomes of packets from outside the data centres, where that is not as for all."""
        apart = self._config.dc_prefixes and state.forwarding is Forwarding.REDIRECT
        return state.outside.value if apart else None

    async def start_vm(self, definition: dict[str, Any], server: str = "") -> dict[str, Any]:
        """definition: as docs/architecture.md; checked here.  Raises BadRequest or Conflict."""
        self._check_ready()
        wanted = read_definition(definition)
        if wanted.kind == EXTERNAL:
            raise BadRequest(
                f"VM {wanted.vm}: other hands start a guest of kind {EXTERNAL!r}",
                "let it be registered once it runs here: `vmmob nve expect FILE`",
            )
        await self._commands.run(
            self.pump,
            lambda number, now: self.engine.start_vm(
                number, wanted.vm, wanted.interfaces, definitions.encode(wanted), now, server
            ),
        )
        return self._row(wanted.vm)

    async def stop_vm(self, vm: VmKey) -> dict[str, Any]:
        self._check_ready()
        await self._commands.run(
            self.pump, lambda number, now: self.engine.stop_vm(number, vm, now)
        )
        return self._row(vm)

    async def relocate_vm(self, vm: VmKey, server: str) -> dict[str, Any]:
        self._check_ready()
        await self._commands.run(
            self.pump, lambda number, now: self.engine.relocate_vm(number, vm, server, now)
        )
        return self._row(vm)

    async def expect_vm(self, definition: dict[str, Any]) -> dict[str, Any]:
        """The VM with the taps that its QEMU is to open.  Raises BadRequest or Conflict."""
        self._check_ready()
        wanted = read_definition(definition)
        if wanted.kind != EXTERNAL:
            raise BadRequest(
                f"VM {wanted.vm}: a guest of kind {wanted.kind!r} is not run by other hands",
                f'start it with `vmmob nve start FILE`; or write kind = "{EXTERNAL}"',
            )
        await self._commands.run(
            self.pump,
            lambda number, now: self.engine.expect_vm(
                number, wanted.vm, wanted.interfaces, definitions.encode(wanted), now
            ),
        )
        return self._row(wanted.vm)

    async def unexpect_vm(self, vm: VmKey) -> dict[str, Any]:
        self._check_ready()
        entry = self.engine.entries.get(vm)
        if entry is None or not entry.expected:
            raise NotFound(f"VM {vm} is not expected here", "list them with `vmmob nve list`")
        await self._commands.run(
            self.pump, lambda number, now: self.engine.unexpect_vm(number, vm, now)
        )
        return self._row(vm)

    async def check(self, limit_s: float) -> dict[str, Any]:
        self._check_ready()
        found = await self._commands.run(
            self.pump, lambda number, now: self.engine.check(number, None, now), limit_s
        )
        return {**found, "repaired": sum(bool(row["repaired"]) for row in found["drift"])}

    def alarms(self) -> list[dict[str, Any]]:
        self._check_ready()
        rows = nve_alarms(self.engine, asyncio.get_running_loop().time())
        return rows + self._servers.alarms()

    def _row(self, vm: VmKey) -> dict[str, Any]:
        """What every answer about a VM holds.  ports: the names of its taps, in the order of its
        interfaces, while they exist or other hands are to open them."""
        entry = self.engine.entries.get(vm) or Entry(vm)
        plugged = entry.data_plane(self._config.redirect).plugged
        return {
            "vni": vm.vni,
            "vm": vm.vm_id,
            "phase": entry.phase.name.lower(),
            "guest": entry.guest.name.lower() if entry.phase in HERE else None,
            "expected": entry.expected,
            "epoch": entry.epoch,
            "server": entry.server or None,
            "ports": [port_name(vm, n) for n in range(len(entry.interfaces))] if plugged else [],
        }


def _tunnels(choice: Choice | None) -> dict[str, str] | None:
    """Who carries tunnelled packets, why, and what it costs."""
    if choice is None:
        return None
    return {"back_end": choice.back_end, "why": choice.why, "cost": choice.cost}


def read_definition(definition: dict[str, Any]) -> VmDefinition:
    """The API's form of a definition, checked.  Raises BadRequest."""
    try:
        return definitions.decode(json.dumps(file_keys(definition)).encode())
    except (DecodeError, ValueError) as error:
        raise BadRequest(str(error), "correct the VM's definition") from None
