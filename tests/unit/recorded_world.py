"""The virtual-time World with every engine recorded: a file for each start of each node.

Not here: what is asked of the recordings (test_recording*.py, cli/test_replay.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.network import MANAGER, Node, Weather, World
from vmmobility.daemon.recording.inputs import Origin
from vmmobility.daemon.recording.reading import open_recording
from vmmobility.daemon.recording.recorder import Recorder
from vmmobility.daemon.recording.replay import Replay
from vmmobility.drivers.dataplane import Traffic
from vmmobility.engine.napt import NaptEngine
from vmmobility.engine.router import RouterEngine
from vmmobility.wire.registry import Role

MOST = 256 << 20
VM = vm_key("vm1")
LOSSY = Weather(loss=0.15, repetition=0.15, delay_s=(0.001, 0.03))


class RecordedWorld(World):
    """A crash leaves a recording as kill -9 does; close() ends those of who still lives."""

    def __init__(self, folder: Path, most_octets: int = MOST, **options: Any) -> None:
        self.folder = folder
        self.most_octets = most_octets
        self.recorders: dict[str, Recorder] = {}
        self.notes: list[tuple[str, dict[str, Any]]] = []
        super().__init__(**options)

    def note(self, name: str, **detail: Any) -> None:
        self.notes.append((name, detail))

    def _make_engine(self, node: Node) -> None:
        super()._make_engine(node)
        engine = node.engine
        assert engine is not None
        assert not isinstance(engine, RouterEngine | NaptEngine)
        peers = [self._peer(node.node_id, other) for other in engine.channel.peers]
        state = json.loads(json.dumps(node.disk))
        origin = Origin(node.role, engine.settings, peers, state, node.boot, self.now)
        path = self.folder / f"{node.node_id}-{node.starts}.jsonl"
        recorder = self.recorders[node.node_id] = Recorder(
            path, self.most_octets, origin, self.note
        )
        tee: Any = recorder.tee(origin.make(recorder.randomness))
        if node.role is Role.MANAGER:
            node.manager = tee
        else:
            node.edge = tee
            count_in_drivers_words(tee)

    def close(self) -> None:
        for name, recorder in self.recorders.items():
            if self.nodes[name].engine is not None:
                recorder.close()

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


def count_in_drivers_words(tee: Any) -> None:
    """The fake kernel has counters of its own; the engine is told the driver's, as in a daemon."""
    traffic, counted = tee.traffic, tee.traffic_counted

    def words(counters: Any) -> Traffic:
        return Traffic(counters.delivered, redirected=counters.redirected)

    tee.traffic = lambda counts, now: traffic({vm: words(c) for vm, c in counts.items()}, now)
    tee.traffic_counted = lambda vm, label, c, now: counted(vm, label, words(c), now)


def lossy_move_with_a_crash(folder: Path, seed: int = 3) -> RecordedWorld:
    """A VM starts and moves over a bad network; the manager and then the destination crash."""
    world = RecordedWorld(folder, seed=seed, weather=LOSSY)
    world.start_vm(VM, "a", interfaces_of("vm1", 1, 2))
    world.run(3)
    world.senders.add(("a", VM))
    world.move(VM, "b")
    world.run(0.3)
    world.crash(MANAGER)
    world.run(0.5)
    world.restart(MANAGER)
    world.run(20)
    world.restart("b")
    world.run(60)
    world.close()
    return world


def replayed(path: Path) -> Replay:
    """The whole file, replayed."""
    with open_recording(path) as recording:
        run = Replay(recording)
        for _ in run.run():
            pass
    return run


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines())
