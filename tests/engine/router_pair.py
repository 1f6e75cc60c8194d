"""A manager and a router that speak to each other, and a kernel that tells rows: for CHECK.

Not here: whole domains (network.py).
"""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network
from typing import Any

from tests.engine.line import SECRET, carried_out
from vmmobility.engine.binding_update_list import make_nve, nve_to_json
from vmmobility.engine.channel import Peer
from vmmobility.engine.fabric_routes import Sight as Seen
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.outputs import CommandDone, Endpoint, Explain, Output, Send
from vmmobility.engine.router import RouterEngine, RouterSettings
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, decode_part
from vmmobility.wire.options import Option
from vmmobility.wire.registry import Purpose, Role
from vmmobility.wire.values import Address, Interface, VmKey

VM = VmKey(0, "vm-1")
ETH0 = Interface(b"\x52\x54\0\0\0\x01", (ip_network("10.1.0.5/32"), ip_network("fd01:1::5/128")))
V4, V6 = ip_address("10.1.0.5"), ip_address("fd01:1::5")
NVE_B = make_nve("nve-b", (ip_address("10.0.2.2"), ip_address("fd00:0:2::2")))
PLACES = {"manager": Endpoint(ip_address("10.0.9.2"), 8747),
          "tor": Endpoint(ip_address("10.0.2.1"), 8747),
          "nve": Endpoint(ip_address("10.0.1.2"), 8747)}  # fmt: skip
ROUTE = {
    "epoch": 7,
    "state": "ANNOUNCE",
    "interfaces": [{"mac": ETH0.mac_text, "addresses": [str(p) for p in ETH0.prefixes]}],
    "serving": nve_to_json(NVE_B),
    "previous": None,
}


def peer(node: str, role: Role) -> Peer:
    return Peer(node, role, (PLACES[node],), {1: SECRET}, 1)


def row(prefix: str, table: int, hops: int = 1, **more: Any) -> dict[str, Any]:
    """One row as the kernel's driver shows it."""
    return {
        "priority": 78, "only": "", "table": table, "prefix": prefix, "metric": 7,
        "protocol": 77, "kind": "unicast", "ours": table == 7701,
        "next_hops": [{"interface": f"eth{n}", "gateway": "10.0.2.2"} for n in range(hops)],
        "leads": False, **more,
    }  # fmt: skip


class Pair:
    """A manager and a router that have proven themselves, and a kernel that tells rows."""

    def __init__(self, *, known: bool = True, asker: Role = Role.MANAGER) -> None:
        self.now = 0.0
        self.cut = False
        route = {"route/0/vm-1": ROUTE} if known else {}
        self.router = RouterEngine(
            RouterSettings("tor"),
            [peer("manager", asker)],
            {"boot": 1, "mark/manager": [1, 0], **route},
            1,
            random.Random(1),
        )
        state = {"boot": 1, "mark/tor": [1, 0]}
        self.manager = ManagerEngine(
            ManagerSettings("manager"),
            [peer("tor", Role.DEFAULT_ROUTER), peer("nve", Role.NVE)],
            state,
            1,
            random.Random(2),
            self.now,
        )
        self.rows = [row("10.1.0.5/32", 7701, leads=True)]
        self.sight: Seen | None = Seen(direct=True, covered=False)
        self.error = ""
        self.explains: list[Explain] = []
        self.heard: list[Message] = []
        self.done: dict[int, CommandDone] = {}

    def settle(self) -> None:
        """Carry all that leaves."""
        while True:
            left: list[tuple[ManagerEngine | RouterEngine, Output]]
            left = [(self.manager, o) for o in carried_out(self.manager.outbox, {})]
            left += [(self.router, o) for o in carried_out(self.router.outbox, {})]
            for engine, output in left:
                self._carry(engine, output)
            if not left:
                return

    def _carry(self, engine: ManagerEngine | RouterEngine, output: Output) -> None:
        if isinstance(output, Send) and not self.cut:
            self.heard.append(decode_part(output.data, TRAILER).message)
            other: ManagerEngine | RouterEngine
            other, node = (
                (self.router, "manager") if engine is self.manager else (self.manager, "tor")
            )
            if output.destination.address != PLACES["nve"].address:
                other.datagram_received(output.data, PLACES[node], None, self.now)
        elif isinstance(output, Explain):
            self.explains.append(output)
            sight = self.sight if output.watched is not None else None
            self.router.explained(output.number, self.rows, sight, self.error, self.now)
        elif isinstance(output, CommandDone):
            self.done[output.command] = output

    def ask(self, vm: VmKey | None = VM, address: Address = V4, *nodes: str) -> dict[str, Any]:
        """What the manager hands over of the router's answer."""
        self.manager.ask_nodes(1, vm, address, nodes or ("tor",), 5.0, self.now)
        self.settle()
        return dict(self.done[1].result["answers"])

    def request(self, *options: Option) -> list[Message]:
        """What the router answers to a CHECK of these options."""
        replies: list[Message] = []
        self.manager.channel.request(
            self.manager.channel.peers["tor"], Purpose.CHECK, options, self.now,
            lambda reply, at: replies.append(reply),
        )  # fmt: skip
        self.settle()
        return replies
