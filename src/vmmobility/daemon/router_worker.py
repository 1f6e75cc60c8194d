"""The router's worker: the newest state a VM, applied in batches; sights when the fabric changes.

Not here: what the state should be (engine/router.py), how it is made (drivers/router_plane.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vmmobility.daemon.plane_worker import PlaneWorker
from vmmobility.drivers.dataplane import Drift
from vmmobility.drivers.router_plane import RouterPlane
from vmmobility.engine.fabric_routes import Sight, VmRoutes
from vmmobility.engine.outputs import SetRoutes
from vmmobility.errors import DataPlaneError
from vmmobility.wire.values import VmKey

NOT_SEEN = Sight(direct=False, covered=False)


class RouterWorker(PlaneWorker):
    """Takes an engine's states.

    applied(vm, tag, failures, sight): the answer to each state
    sighted(sights): how the fabric leads the VMs of watched(), after each change of it
    drifted, trouble, check_s: a PlaneWorker's
    """

    _plane: RouterPlane

    def __init__(
        self,
        plane: RouterPlane,
        watched: Callable[[], list[VmRoutes]],
        applied: Callable[[VmKey, int, Sequence[str], Sight], None],
        sighted: Callable[[Mapping[VmKey, Sight]], None],
        drifted: Callable[[Drift], None],
        trouble: Callable[[str], None],
        check_s: float,
    ) -> None:
        super().__init__(plane, drifted, trouble, check_s)
        self._watched = watched
        self._applied = applied
        self._sighted = sighted
        self._states: dict[VmKey, SetRoutes] = {}
        self._fabric_changed = False

    def set(self, output: SetRoutes) -> None:
        """The newest state of a VM; an older one that has not begun is not wanted any more."""
        self._states[output.state.vm] = output
        self._wake.set()

    def look(self) -> None:
        """The fabric has changed: what is watched is looked at once more."""
        self._fabric_changed = True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._plane.watch(self.look)
        await super().run()

    async def _work(self) -> None:
        if self._states:
            await self._apply()
        if self._fabric_changed:
            self._fabric_changed = False
            self._sighted(self._plane.sights(self._watched()))

    async def _apply(self) -> None:
        outputs, self._states = list(self._states.values()), {}
        failed: dict[VmKey, list[str]] = {}
        states = [output.state for output in outputs]
        try:
            for failure in await self._plane.apply(states):
                failed.setdefault(failure.vm, []).append(f"{failure.item}: {failure.reason}")
        except (DataPlaneError, OSError) as error:
            failed = {state.vm: [str(error)] for state in states}
        sights = self._plane.sights(states)
        for output in outputs:
            vm = output.state.vm
            self._applied(vm, output.tag, failed.get(vm, []), sights.get(vm, NOT_SEEN))
