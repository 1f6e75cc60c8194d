"""One machine of a World: what outlives its daemon, and the engine of the daemon it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.engine.fake_hypervisor import Hypervisor
from tests.engine.fake_kernel import Kernel
from vmmobility.engine.capacity import UNKNOWN, HostCapacity, ServerRoom
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.nve import NveEngine
from vmmobility.engine.router import RouterEngine
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Nve

MANAGER = "manager"


@dataclass
class Node:
    """One machine.  life: counts daemon starts; what belongs to an earlier life is void."""

    node_id: str
    role: Role
    nve: Nve
    home: tuple[Any, ...]
    kernel: Kernel
    hypervisor: Hypervisor | None = None
    capacity: HostCapacity = UNKNOWN  # what VMs may have of the machine
    rooms: tuple[ServerRoom, ...] = ()  # of its servers, where it stands apart
    disk: dict[str, Any] = field(default_factory=dict)
    boot: int = 0
    life: int = 0
    manager: ManagerEngine | None = None
    edge: NveEngine | None = None
    router: RouterEngine | None = None
    box: NaptEngine | None = None
    starts: int = 0
    wake: int = 0
    carried: int = 0
    counting: bool = False
    fail_persist: bool = False
    tear_persist: bool = False  # the next one is durable, and the daemon dies before it knows
    rate: float = 1.0  # of its clock, against the world's
    synced: float = 0.0  # when the last record under way is durable: they keep their order

    @property
    def engine(self) -> ManagerEngine | NveEngine | RouterEngine | NaptEngine | None:
        return self.manager or self.edge or self.router or self.box
