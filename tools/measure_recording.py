"""What recording costs: a manager's refreshes, from datagram to reply, with and without it.

    .venv/bin/python tools/measure_recording.py [REFRESHES]

Each refresh goes through the engine as the pump takes it: the datagram, a flush, the record is
durable, a flush with the reply, a flush without outputs.  Prints microseconds a refresh (the least
of nine runs each) and octets of recording a refresh.  Not here: sockets, journal.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.recorder import open_recorder
from vmmobility.engine.channel import Peer
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.outputs import Endpoint, Persist, Send
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import AttachId, Epoch, InterfaceGroup, ServingNve, VmId
from vmmobility.wire.registry import MAX_DATAGRAM, UDP_PORT, Kind, Purpose, Role
from vmmobility.wire.values import Interface, Nve, VmKey

SECRET = bytes(range(32))
NVE = Nve("nve-a", None, ip_address("fd00::a"))  # type: ignore[arg-type]
SOURCE = Endpoint(ip_address("fd00::a"), UDP_PORT)
LOCAL = ip_address("fd00::99")
VM = VmKey(0, "vm1")
RUNS = 9


def sealed(number: int, purpose: Purpose, options: Sequence[Any]) -> bytes:
    message = Message(Kind.REQUEST, purpose, number, tuple(options), 30)
    (datagram,) = encode_parts(message, MAX_DATAGRAM, TRAILER)
    return seal(datagram, Seal("nve-a", 1, 1, number), SECRET)


def datagrams(count: int) -> list[bytes]:
    """One attach, then refreshes."""
    interface = Interface(b"\2\0\0\0\0\1", (ip_network("fd01::5/128"),))
    attach = (VmId(VM), InterfaceGroup(interface), ServingNve(NVE), AttachId(7))
    refresh = (VmId(VM), AttachId(7), Epoch(1))
    return [
        sealed(1, Purpose.ATTACH, attach),
        *(sealed(n, Purpose.REFRESH, refresh) for n in range(2, count + 2)),
    ]


def run(messages: list[bytes], place: Path | None) -> tuple[float, int]:
    """Processor seconds for all messages, and octets recorded."""
    peers = [Peer("nve-a", Role.NVE, (SOURCE,), {1: SECRET}, 1)]
    state = {"mark/nve-a": [1, 0]}
    origin = Origin(Role.MANAGER, ManagerSettings("manager"), peers, state, 2, 0.0)
    recorder = open_recorder(place, 1 << 40, origin, lambda name, **detail: None)
    randomness: random.Random = recorder.randomness
    engine = recorder.tee(ManagerEngine(ManagerSettings("manager"), peers, state, 2, randomness, 0))
    replies = 0
    begun = time.process_time()
    for number, data in enumerate(messages):
        engine.datagram_received(data, SOURCE, LOCAL, number * 1e-6)
        while outputs := engine.flush():
            for output in outputs:
                if isinstance(output, Persist):
                    engine.persisted(output.number)
                replies += isinstance(output, Send)
    took = time.process_time() - begun
    recorder.close()
    assert replies == len(messages), replies
    return took, place.stat().st_size if place else 0


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    messages = datagrams(count)
    with tempfile.TemporaryDirectory() as folder:
        plain = min(run(messages, None)[0] for _ in range(RUNS))
        runs = [run(messages, Path(folder) / str(n)) for n in range(RUNS)]
    recorded, octets = min(runs)
    for name, seconds in (("without recording", plain), ("with recording", recorded)):
        sys.stdout.write(f"{name:<18} {seconds / len(messages) * 1e6:7.1f} µs a refresh\n")
    sys.stdout.write(f"{'recorded':<18} {octets / len(messages):7.0f} octets a refresh\n")


if __name__ == "__main__":
    main()
