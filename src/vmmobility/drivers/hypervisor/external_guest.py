"""One guest that other hands run (virsh, QEMU by hand), watched over a monitor of its QEMU.

Events say when to look, and what is seen then is told: so a guest is reported as it is, whatever
was missed.  Its process is never ended.  Not here: which guests are watched (external.py), the
socket (monitor_door.py).  Rests on qmp.py.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from vmmobility.drivers.hypervisor.guest import ANNOUNCEMENT
from vmmobility.drivers.hypervisor.guest_life import HANDING_OVER, life_of
from vmmobility.drivers.hypervisor.interface import (
    GuestEvent,
    GuestReport,
    Listener,
    VmDefinition,
)
from vmmobility.drivers.hypervisor.monitor_door import Process, knock
from vmmobility.drivers.hypervisor.qmp import Event, QmpSession, event_time_ns
from vmmobility.drivers.hypervisor.settings import ExternalSettings
from vmmobility.errors import HypervisorError
from vmmobility.wire.registry import GuestLife

END_NOTICE_S = 1.0  # between a lost monitor and the end of its process
HANDING_POLL_S = 0.02
_TELLING = ("STOP", "RESUME", "MIGRATION", "SHUTDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED")
_FIGURES = {"total-time": "total_ms", "downtime": "downtime_ms", "setup-time": "setup_ms"}


class Note(Protocol):
    """Logs an event for people."""

    def __call__(self, name: str, **detail: Any) -> None: ...


class ExternalGuest:
    """begin() watches until close().  Orders raise HypervisorError naming the VM."""

    def __init__(
        self, definition: VmDefinition, listener: Listener, note: Note, settings: ExternalSettings
    ) -> None:
        self.definition = definition
        self.monitor = Path(definition.machine["qmp"])
        self._name = str(definition.vm)
        self._listener = listener
        self._note = note
        self._settings = settings
        self._session: QmpSession | None = None
        self._process: Process | None = None  # the QEMU that was last spoken to, until it has ended
        self._life = GuestLife.NONE  # as last told
        self._state = ""  # QEMU's run state when it was last looked at
        self._hears_migrations = False  # MIGRATION events are on
        self._halted = True  # it does not run, by the last event or look
        self._sent = False  # its memory has been sent away since it last ran
        self._incoming = False
        self._migrated = False  # its memory came from another host, as was seen
        self._at_ns: dict[GuestLife, int] = {}
        self._noted = ""
        self._turn = asyncio.Lock()  # who looks or orders does so alone
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Watch from now on."""
        # The root of this guest's tasks; close() cancels and awaits it.
        loop = asyncio.get_running_loop()
        self._runner = loop.create_task(self._run(), name=f"watch {self._name}")

    async def close(self) -> None:
        """Let go of the guest, leaving it as it is."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
            self._runner = None
        await self._hang_up()
        if self._process is not None:
            self._process.close()
            self._process = None

    # -- questions and orders --------------------------------------------------------------------

    async def ask(self) -> GuestLife:
        """Its life now; ARRIVED if it runs and was seen to come from another host.

        While QEMU switches it over, a moment is granted for the outcome.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.settle_s
        async with self._turn:
            await self._look_now()
            while self._handing_over and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(HANDING_POLL_S)
                await self._look_now()
            moved_in = self._life is GuestLife.RUNNING and self._migrated
            return GuestLife.ARRIVED if moved_in else self._life

    async def tell_again(self) -> None:
        """Report once more if it runs, or has departed."""
        async with self._turn:
            self._life = GuestLife.NONE
            self._wake.set()

    async def pause(self) -> None:
        """Stop its CPUs, if they run.  A waiting guest keeps waiting."""
        async with self._turn:
            await self._demand()
            await self._halt()

    async def halt_if_here(self) -> None:
        """As pause(), but nothing if no QEMU is here."""
        async with self._turn:
            await self._look_now()
            await self._halt()

    async def resume(self) -> None:
        """Let a paused guest run.  Not one that has departed: it may run elsewhere."""
        async with self._turn:
            await self._demand()
            if self._life is GuestLife.RUNNING:
                return
            if self._state != "paused":
                raise HypervisorError(
                    f"{self._name}: it is run by others, and is not paused but {self._state}",
                    "resume it by virsh or QEMU's monitor, if it runs nowhere else",
                )
            # Before the order: what we have done is not reported as somebody else's.
            self._life = GuestLife.RUNNING
            try:
                await self._execute("cont")
            finally:
                await self._look()
            await self._execute("announce-self", ANNOUNCEMENT)

    async def announce(self) -> None:
        """Let the guest (virtio) and QEMU send their announcements."""
        async with self._turn:
            await self._demand()
            await self._execute("announce-self", ANNOUNCEMENT)

    async def _demand(self) -> None:
        await self._look_now()
        if self._life is GuestLife.NONE:
            raise HypervisorError(
                f"{self._name}: no QEMU is at its monitor {self.monitor}", "start it there first"
            )

    async def _halt(self) -> None:
        if self._life is GuestLife.RUNNING:
            await self._execute("stop")
            await self._look()

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if self._session is None:
            raise HypervisorError(f"{self._name}: its monitor was lost", "see guest.unclear")
        return await self._session.execute(command, arguments, self._settings.answer_s)

    async def _query(self, command: str) -> dict[str, Any]:
        answer = await self._execute(command)
        if not isinstance(answer, dict):
            raise HypervisorError(f"{self._name}: {self.monitor} answers no QEMU: {answer!r:.80}")
        return answer

    # -- looking ---------------------------------------------------------------------------------

    @property
    def _connected(self) -> bool:
        return self._session is not None and self._session.connected

    @property
    def _handing_over(self) -> bool:
        return self._state == HANDING_OVER and self._life is GuestLife.HELD

    async def _look_now(self) -> None:
        """Look, connecting first if need be."""
        if self._connected:
            try:
                await self._look()
            except HypervisorError:
                if self._connected:
                    raise  # it does not answer
            else:
                return
        await self._connect()

    async def _look(self) -> None:
        """Ask QEMU for the guest's state, and tell what is new."""
        assert self._session is not None
        state = str((await self._query("query-status")).get("status", ""))
        migration: dict[str, Any] = {}
        if state in (HANDING_OVER, "postmigrate", "inmigrate"):
            migration = await self._query("query-migrate")
        # What came before the answer belongs before it.
        for event in self._session.pending():
            self._on_event(event)
        life = life_of(state, str(migration.get("status", "")))
        self._state, self._incoming = state, state == "inmigrate"
        if self._incoming:
            # From a file (virsh restore) it comes by no socket: a file can be restored twice.
            self._migrated = self._migrated or bool(migration.get("socket-address"))
        elif life is GuestLife.DEPARTED:
            self._migrated = False
        self._halted = life is not GuestLife.RUNNING
        if life is GuestLife.RUNNING:
            self._tell(life, GuestEvent.ARRIVED, {"migrated": self._migrated})
            if not self._hears_migrations:
                # One that came in could not be asked before: without the event its end, right after
                # it has been moved on, would pass for the end of the VM.
                await self._hear_migrations()
        elif life is GuestLife.DEPARTED:
            figures = {
                ours: migration[qemus] for qemus, ours in _FIGURES.items() if qemus in migration
            }
            self._tell(life, GuestEvent.DEPARTED, {"migration": migration.get("status"), **figures})
        else:
            self._life = life

    def _tell(self, life: GuestLife, event: GuestEvent, detail: dict[str, Any]) -> None:
        """Report, unless it was told before."""
        if self._life is life:
            return
        self._life = life
        at_ns = self._at_ns.pop(life, 0)
        vm = self.definition.vm
        self._listener(
            GuestReport(vm, event, detail, at_ns) if at_ns else GuestReport(vm, event, detail)
        )

    def _on_event(self, event: Event) -> None:
        with suppress(AttributeError, TypeError, ValueError):  # nonsense: a look says what is
            self._take_in(event["event"], event)
        self._wake.set()

    def _take_in(self, name: str, event: Event) -> None:
        if name == "RESUME":
            self._halted = self._sent = False
            self._at_ns[GuestLife.RUNNING] = event_time_ns(event)
        elif name == "STOP":
            self._halted = True
        elif name == "MIGRATION" and not self._incoming:
            self._sent = event.get("data", {}).get("status") == "completed"
            if self._sent:
                self._at_ns[GuestLife.DEPARTED] = event_time_ns(event)

    # -- the monitor -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Speak to the QEMU that is at the monitor now, if any is."""
        lost = self._session is not None
        await self._hang_up()
        if self._process is not None and await self._process.ends(END_NOTICE_S if lost else 0.0):
            self._gone()
        connection = knock(self._name, self.monitor)
        if connection is None:
            self._absent()
            return
        process = Process.of(connection)
        try:
            self._check_same(process)
            session = QmpSession(self._name, self.monitor)
        except HypervisorError:
            connection.close()
            process.close()
            raise
        if self._process is not None:
            self._process.close()
        self._process = process
        await session.open(connection, self._settings.answer_s, _TELLING)
        self._session = session
        self._hears_migrations = False
        await self._hear_migrations()
        await self._look()
        self._wake.set()

    async def _hear_migrations(self) -> None:
        """Ask for MIGRATION events.  Refused while a migration is under way: until it is over
        looks must do."""
        capability = {"capability": "events", "state": True}
        with suppress(HypervisorError):
            await self._execute("migrate-set-capabilities", {"capabilities": [capability]})
            self._hears_migrations = True

    def _check_same(self, process: Process) -> None:
        old = self._process
        if old is not None and old.lives and old.pid != process.pid:
            raise HypervisorError(
                f"{self._name}: QEMU {old.pid} lives, but QEMU {process.pid} has its monitor",
                f"end one of them; each needs a monitor of its own beside {self.monitor}",
            )

    def _absent(self) -> None:
        """Nobody listens at the monitor."""
        if self._process is None:
            self._life = GuestLife.NONE
        elif self._process.lives:
            raise HypervisorError(
                f"{self._name}: its QEMU {self._process.pid} lives, but its monitor "
                f"{self.monitor} has gone",
                "restore the socket's file, or end that QEMU",
            )
        else:
            self._gone()

    def _gone(self) -> None:
        """The process has ended."""
        assert self._process is not None
        if self._sent and self._halted and not self._incoming:
            # It was ended before it could be looked at, as virsh does after a move.
            self._tell(GuestLife.DEPARTED, GuestEvent.DEPARTED, {"migration": "completed"})
        detail = {"life": self._life.name.lower(), "pid": self._process.pid}
        self._process.close()
        self._process = None
        self._life, self._state = GuestLife.NONE, ""
        self._halted, self._sent, self._incoming, self._migrated = True, False, False, False
        self._at_ns.clear()
        self._listener(GuestReport(self.definition.vm, GuestEvent.GONE, detail))

    async def _hang_up(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # -- watching --------------------------------------------------------------------------------

    async def _run(self) -> None:
        retry_s = self._settings.retry_s
        while True:
            try:
                session = await self._attend()
                self._clear()
                if session is not None:
                    await self._follow(session)
                    if self._process is not None and self._process.lives is not None:
                        continue  # its end is awaited before the next attempt
            except HypervisorError as problem:
                self._unclear(problem)
                await self._sleep(retry_s)
                retry_s = min(2 * retry_s, self._settings.retry_most_s)
            else:
                retry_s = self._settings.retry_s
                await self._sleep(self._settings.absent_s)

    async def _sleep(self, limit_s: float) -> None:
        """Until something wants a look, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        self._wake.clear()

    async def _attend(self) -> QmpSession | None:
        """The session, connected anew if need be; None if no QEMU is here."""
        async with self._turn:
            if not self._connected:
                await self._connect()
            return self._session

    async def _follow(self, session: QmpSession) -> None:
        """Look whenever an event says so, until the monitor is lost.

        Raises HypervisorError if QEMU does not answer any more.
        """
        problems: list[HypervisorError] = []

        async def keep_looking() -> None:
            while session.connected:
                try:
                    async with self._turn:
                        if session.connected:
                            await self._look()
                except HypervisorError as problem:
                    if session.connected:
                        problems.append(problem)
                        await session.close()
                    return  # else watch() still passes on what came before the end
                await self._sleep(HANDING_POLL_S if self._handing_over else self._settings.patrol_s)

        async with asyncio.TaskGroup() as group:
            looker = group.create_task(keep_looking())
            await session.watch(self._on_event)
            looker.cancel()
        if problems:
            raise problems[0]

    def _unclear(self, problem: HypervisorError) -> None:
        """Tell people, once, why nothing is known of the guest."""
        if problem.message != self._noted:
            self._noted = problem.message
            self._tell_people("guest.unclear", reason=problem.message, remedy=problem.remedy)

    def _clear(self) -> None:
        if self._noted:
            self._noted = ""
            self._tell_people("guest.clear", monitor=str(self.monitor))

    def _tell_people(self, event: str, **detail: Any) -> None:
        vm = self.definition.vm
        self._note(event, vni=vm.vni, vm=vm.vm_id, **detail)
