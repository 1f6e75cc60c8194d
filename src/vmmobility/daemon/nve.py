"""The NVE daemon: engine, journal, endpoint, kernel, hypervisors and its API.

Assembly only.  Guests, routes and the relay outlive it (fail static); `vmmob nve flush` removes
what it has put into the kernel.  Not here: decisions (engine/nve.py), what the API
serves (nve_service.py), HTTP (api/).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from vmmobility.daemon.api_place import ApiPlace
from vmmobility.daemon.assembly import (
    ServeApi,
    Stopped,
    check_recordable,
    flush_kernel,
    make_peers,
    note_drift,
    note_recovery,
    on_hangup,
    on_signals,
    open_store,
    pools_of,
    run_to_end,
)
from vmmobility.daemon.commands import Commands
from vmmobility.daemon.config import NveConfig, load_nve
from vmmobility.daemon.data_plane_worker import DataPlaneWorker
from vmmobility.daemon.disk_owners import refuse_others_disks
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.hypervisor_config import hypervisors
from vmmobility.daemon.hypervisor_desk import HypervisorDesk
from vmmobility.daemon.nve_service import NveService
from vmmobility.daemon.pump import Pump
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import NotRecording, Recorder, open_recorder
from vmmobility.daemon.server_links import ServerLinks, ends_of
from vmmobility.daemon.stream_certificates import tell_certificates
from vmmobility.drivers.dataplane import Drift, Traffic
from vmmobility.drivers.hypervisor.accelerator import choose_accelerator
from vmmobility.drivers.hypervisor.interface import GuestReport, VmDefinition
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.host_capacity import measure
from vmmobility.drivers.linux.link_watch import LinkWatch
from vmmobility.drivers.linux.settings import LinuxSettings
from vmmobility.drivers.linux.survivors import held_taps
from vmmobility.engine.capacity import UNKNOWN, resources_of
from vmmobility.engine.dataplane import outside_of
from vmmobility.engine.nve import NveEngine, NveSettings
from vmmobility.engine.outputs import (
    Audit,
    CommandDone,
    CountTraffic,
    HypervisorOrder,
    MeasureHost,
    Order,
    Output,
    SetDataPlane,
)
from vmmobility.errors import ConfigError, StoreError, VmMobilityError
from vmmobility.wire.registry import Role
from vmmobility.wire.values import VmKey

TELL_TIME_S = 60.0  # clocks are set: an engine is told the time so often


class NveDaemon(NveService):
    """One NVE put together, and what its API serves (api/service.NveService)."""

    def __init__(self, config: NveConfig, log: EventLog, group: asyncio.TaskGroup) -> None:
        self._config = config
        self._log = log
        self._group = group
        self._since = time.monotonic()
        self._commands = Commands()
        self._accelerator: str = (
            config.hypervisor.accelerator
            if config.hypervisor.accelerator != "auto"
            else "not probed yet"
        )
        self._data_plane = LinuxDataPlane(
            LinuxSettings(
                config.nve.ipv4,
                config.nve.ipv6,
                config.state_dir / "dataplane",
                dc_prefixes=config.dc_prefixes,
                tunnel=config.tunnel,
                servers=ends_of(config.servers),
            ),
            on_failure=lambda what: log.note("data-plane.failure", reason=what),
        )
        self._hypervisors = hypervisors(
            config.hypervisor, config.state_dir / "guests", self._guest_report, log.note
        )
        self._servers = ServerLinks(
            config, log, self._guest_report, self._data_plane.circuit, self._measure
        )
        self._desk = HypervisorDesk(
            self._hypervisors,
            group,
            self._order_done,
            log.note,
            self._servers.drivers,
            self._refuse,
        )
        self._worker = DataPlaneWorker(
            self._data_plane,
            self._applied,
            self._counted,
            self._polled,
            self._audited,
            self._drifted,
            self._wants_traffic,
            lambda what: log.note("data-plane.failure", reason=what),
            config.timers.check_s,
        )
        self._links = LinkWatch(self._worker.look)
        self._endpoint = UdpEndpoint(config.locators, config.port)
        self._recorder: Recorder | NotRecording = NotRecording()
        self._ready = False
        self._early: list[GuestReport] = []  # of guests that are found at the start
        self._spare_orphans = False
        self._measuring: asyncio.Task[None] | None = None
        self._time_told_at = 0.0
        self._measure_again = False

    def prepare(self, store: Any, state: Mapping[str, Any], boot: int) -> None:
        """Engine, pump and addresses; nothing in the kernel is touched yet."""
        config, timers = self._config, self._config.timers
        settings = NveSettings(
            config.nve,
            home_prefixes=config.home_prefixes,
            lifetime_s=timers.lifetime_s,
            drain_s=timers.drain_s,
            check_s=timers.check_s,
            redirect_alarm_s=timers.redirect_alarm_s,
            policy=config.redirect,
            dc_prefixes=config.dc_prefixes,
            retransmission=timers.retransmission,
            napts=pools_of(config.napts),
            heartbeat_s=timers.heartbeat_s,
            servers=tuple(server.name for server in config.servers),
        )
        managers = make_peers(
            config.managers,
            config.keys_dir,
            config.node_id,
            config.port,
            config.file,
            config.napts,
        )
        check_recordable(config.record, managers, config.file)
        # A journal that is new or was torn may lack guests that live here and serve.
        self._spare_orphans = "boot" not in state or store.recovered is not None
        now = asyncio.get_running_loop().time()
        origin = Origin(Role.NVE, settings, managers, state, boot, now)
        self._recorder = open_recorder(
            config.record, config.record_mib << 20, origin, self._log.note
        )
        self.engine = self._recorder.tee(
            NveEngine(settings, managers, state, boot, self._recorder.randomness)
        )
        self.pump = Pump(self.engine, store, self._endpoint, self._log, self._perform)
        self._endpoint.bind()

    async def begin(self) -> None:
        """Resync the kernel, find the guests again, and begin to speak."""
        await self._data_plane.start()
        tell_certificates(self._config, self._log.note)
        if (choice := self._data_plane.tunnel_choice) is not None:
            self._log.note("tunnels", back_end=choice.back_end, reason=choice.why)
        for failure in await self._data_plane.resync(self.engine.desired()):
            self._log.note("data-plane.failure", vm=str(failure.vm), reason=failure.reason)
        known = self.engine.definitions()
        self._servers.begin(self._group)
        running = await self._desk.adopt(known, self.engine.places())
        await self._desk.sweep(known, spare=self._spare_orphans)
        self._look_at_locators()
        self.pump.open()
        self._links.open()
        self._group.create_task(self._worker.run(), name="data plane")
        self._group.create_task(self._probe(), name="accelerator")
        self._tell_time()
        self.pump.input(lambda now: self.engine.started(running, now))
        self._servers.sweep(self._group, self._sweep_server)
        self._ready = True
        self._measure()
        for report in self._early:
            self._guest_report(report)

    async def _sweep_server(self, name: str) -> None:
        known = self.engine.definitions()
        await self._desk.sweep_server(name, known, spare=self._spare_orphans)

    def _look_at_locators(self) -> None:
        """What this node itself says to a sender goes by a tunnel, too, if a peer redirects it."""
        own = [ip_network(locator) for locator in self._config.locators]
        for prefix in outside_of(own, self._config.dc_prefixes):
            self._log.note(
                "dc-prefixes.lack",
                prefixes=[str(prefix)],
                words="this NVE's own locator: other NVEs drop its errors where they tunnel",
            )

    async def end(self) -> None:
        """Let go of everything, leaving guests, routes and the relay as they are."""
        if hasattr(self, "pump"):
            self.pump.close()
        self._links.close()
        self._recorder.close()
        for hypervisor in self._hypervisors.values():
            await hypervisor.close()
        await self._data_plane.close()

    def reload(self) -> None:
        on_hangup(self.engine.channel, self._config.keys_dir, self._log)
        try:
            self._servers.reload()
        except ConfigError as error:
            self._log.note("keys.refused", reason=str(error))

    async def _probe(self) -> None:
        """The accelerator is probed before the first guest needs it."""
        with contextlib.suppress(VmMobilityError):
            self._accelerator = await choose_accelerator(
                self._config.hypervisor.accelerator,
                self._config.hypervisor.qemu.binary,
                self._config.state_dir / "guests",
            )

    # ---- the engine's outputs, and their answers -------------------------------------------------

    def _perform(self, output: Output) -> None:
        match output:
            case SetDataPlane():
                self._worker.set(output)
            case CountTraffic():
                self._worker.count(output)
            case Audit():
                self._worker.audit(output)
            case HypervisorOrder():
                self._desk.take(output)
            case MeasureHost():
                self._measure()
            case CommandDone():
                self._commands.done(output)
            case _:
                raise AssertionError(f"an NVE has no {type(output).__name__}")

    def _tell_time(self) -> None:
        """At the start, and with a heartbeat once a minute: clocks are set."""
        self._time_told_at = time.monotonic()
        self.pump.input(lambda now: self.engine.tell_time(time.time_ns(), now))

    def _refuse(self, definition: VmDefinition, place: str | None) -> None:
        folder = self._config.hypervisor.disks or self._config.state_dir / "guests" / "disks"
        refuse_others_disks(definition, place, self.engine.entries.values(), folder)

    def _measure(self) -> None:
        """In a thread: a file system may hang, and heartbeats must not."""
        if time.monotonic() - self._time_told_at >= TELL_TIME_S:
            asyncio.get_running_loop().call_soon(self._tell_time)  # an engine is not called from it
        self._measure_again = True
        if self._ready and (self._measuring is None or self._measuring.done()):
            self._measuring = self._group.create_task(self._measure_on(), name="capacity")

    async def _measure_on(self) -> None:
        while self._measure_again:
            self._measure_again = False
            await self._measured()

    async def _measured(self) -> None:
        if self._config.servers:
            rooms = await self._servers.rooms(self.engine.used_vcpus())
            self.pump.input(lambda now: self.engine.host_measured(UNKNOWN, now, rooms))
            return
        definitions = self.engine.definitions().values()
        used = sum(resources_of(definition).vcpus for definition in definitions)
        disks = self._config.hypervisor.disks or self._config.state_dir
        found = await asyncio.to_thread(measure, self._config.capacity, disks, used)
        self.pump.input(lambda now: self.engine.host_measured(found, now))

    def _applied(self, vm: VmKey, tag: int, failures: Sequence[str]) -> None:
        self.pump.input(lambda now: self.engine.data_plane_applied(vm, tag, failures, now))

    def _counted(self, vm: VmKey, label: str, traffic: Traffic) -> None:
        self.pump.input(lambda now: self.engine.traffic_counted(vm, label, traffic, now))

    def _polled(self, counts: Mapping[VmKey, Traffic]) -> None:
        self.pump.input(lambda now: self.engine.traffic(counts, now))

    def _audited(self, vm: VmKey, drift: Sequence[str]) -> None:
        self.pump.input(lambda now: self.engine.audited(vm, drift, now))

    def _drifted(self, drift: Drift) -> None:
        """Of the node's own, or of nobody: no engine's entry is concerned."""
        note_drift(self._log, self.engine.counts, drift, nve=self._config.node_id)

    def _wants_traffic(self) -> bool:
        return self.engine.wants_traffic

    def _order_done(self, vm: VmKey, order: Order, result: Mapping[str, Any], error: str) -> None:
        self.pump.input(lambda now: self.engine.order_done(vm, order, result, error, now))

    def _guest_report(self, report: GuestReport) -> None:
        if not self._ready:
            self._early.append(report)
            return
        detail = {**report.detail, "at_ns": report.time_ns}
        self.pump.input(
            lambda now: self.engine.guest_report(report.vm, report.event.value, detail, now)
        )

    def vm_count(self) -> int:
        """VMs that live here, are prepared, expected or redirected; tombstones apart."""
        return sum(not entry.is_tombstone for entry in self.engine.entries.values())


def refuse_lost_guests(file: Path) -> None:
    """An empty journal beside living guests is a lost one: a resync would take their taps.

    Raises StoreError naming them.
    """
    if held := held_taps():
        names = ", ".join(map(str, held))
        raise StoreError(
            f"{file}: the journal is empty, but guests that it should know live here: {names}",
            "restore state_dir from its backup; or end these guests and run "
            f"`vmmob nve flush --config {file}`",
        )


async def serve(config: NveConfig, serve_api: ServeApi) -> None:
    """Run the NVE until a signal, or the error that ended it."""
    store, state, boot = open_store(config.state_dir, partial(refuse_lost_guests, config.file))
    log = EventLog(config.node_id, config.log_file)
    note_recovery(store, log)
    try:
        async with asyncio.TaskGroup() as group:
            daemon = NveDaemon(config, log, group)
            try:
                daemon.prepare(store, state, boot)
                with on_signals(daemon.pump.stop, daemon.reload):
                    # Address and socket come first: a daemon started by mistake beside another
                    # must not find out after it has resynced the kernel to its own empty state.
                    async with serve_api(daemon, ApiPlace(config.api_socket, note=log.note)):
                        await daemon.begin()
                        log.note("started", role="nve", boot=boot, vms=daemon.vm_count())
                        await daemon.pump.run()
                log.note("stopped")
            finally:
                await daemon.end()
            raise Stopped
    except* Stopped:
        pass
    finally:
        store.close()
        log.close()


def run(path: Path, serve_api: ServeApi, record: Path | None = None) -> None:
    """`vmmob nve run`: raises VmMobilityError with a remedy for whatever is wrong.

    record: where to record, whatever the configuration says
    """
    config = load_nve(path)
    run_to_end(serve(replace(config, record=record or config.record), serve_api))


def flush(path: Path) -> None:
    """`vmmob nve flush`: remove everything of ours from this host's kernel."""
    config = load_nve(path)
    settings = LinuxSettings(config.nve.ipv4, config.nve.ipv6, config.state_dir / "dataplane")
    flush_kernel(config.state_dir, lambda: LinuxDataPlane(settings).remove_all())
