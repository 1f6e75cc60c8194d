"""What every daemon is put together from: boot number, keys, peers, signals, the API's place.

Not here: the roles (manager.py, nve.py, router.py, napt.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from vmmobility import __version__
from vmmobility.daemon.api_place import ApiPlace
from vmmobility.daemon.config import Peer as PeerConfig
from vmmobility.daemon.endpoint import UdpEndpoint
from vmmobility.daemon.event_log import EventLog
from vmmobility.daemon.keys import PeerKeys, load_keys, role_text
from vmmobility.daemon.via_config import Napt
from vmmobility.drivers.dataplane import Drift
from vmmobility.engine.challenge import next_boot
from vmmobility.engine.channel import Channel, Peer
from vmmobility.engine.origin import Napts
from vmmobility.engine.outputs import Endpoint
from vmmobility.engine.peer import OriginKeys
from vmmobility.errors import ConfigError
from vmmobility.store.journal import Journal
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Address

ServeApi = Callable[[Any, ApiPlace], AbstractAsyncContextManager[None]]
"""Serves a service's API at a place while the context lasts; the command line joins the two."""


def open_store(
    state_dir: Path, check_first: Callable[[], None] | None = None
) -> tuple[Journal, dict[str, Any], int]:
    """The daemon's journal, what it held, and this start's boot number, already durable.

    check_first: called where no start is on record, before this one is; may raise.

    design: boots are in order, so the number is above every stored one.  No clock is asked: a node
    that has lost its state hears from its peers above which boot it must speak (challenge.py).
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    journal = Journal.open(state_dir)
    try:
        state = journal.load()
        if "boot" not in state and check_first is not None:
            check_first()
        boot = next_boot(int(state.get("boot", 0)), make_jitter())
        journal.append([("boot", boot)])
    except BaseException:
        journal.close()
        raise
    return journal, state, boot


def note_recovery(store: Journal, log: EventLog) -> None:
    """Say so if a crash had torn the journal's last write (nobody had been told of it)."""
    if (found := store.recovered) is not None:
        log.note("journal.recovered", file=found.where, offset=found.offset, dropped=found.dropped)


def make_peers(
    peers: Sequence[PeerConfig],
    keys_dir: Path,
    node_id: str,
    port: int,
    file: Path,
    napts: Sequence[Napt] = (),
) -> list[Peer]:
    """The engine's peers from configuration and keys, NAPT boxes last.  Raises ConfigError naming
    the pair."""
    keys = load_keys(keys_dir, node_id)

    def pair_of(name: str, role: Role) -> PeerKeys:
        pair = keys.get(name)
        if pair is None:
            raise ConfigError(
                f"{keys_dir}: no key of {node_id} and {name}, whom {file} names",
                f"make it with `vmmob key new` and copy the file to both nodes' {keys_dir.name}",
            )
        if pair.role is not role:
            raise ConfigError(
                f"{keys_dir}: {name}'s key says role {role_text(pair.role)}, {file} says "
                f"{role_text(role)}",
                "correct the configuration, or make a new key with the right role",
            )
        return pair

    def made(name: str, role: Role, hop: PeerKeys, addresses: Sequence[Address]) -> Peer:
        endpoints = tuple(Endpoint(address, port) for address in addresses)
        return Peer(name, role, endpoints, dict(hop.secrets), hop.signing)

    boxes = {napt.id: napt for napt in napts if napt.addresses}
    found = []
    for peer in peers:
        pair = pair_of(peer.id, peer.role)
        if not peer.via:
            found.append(made(peer.id, peer.role, pair, peer.addresses))
            continue
        hop = pair_of(peer.via, Role.NAPT)
        behind = made(peer.id, peer.role, hop, boxes[peer.via].addresses)
        behind.via, behind.origin = peer.via, OriginKeys(dict(pair.secrets), pair.signing)
        found.append(behind)
    for name, box in boxes.items():
        found.append(made(name, Role.NAPT, pair_of(name, Role.NAPT), box.addresses))
    return found


def pools_of(napts: Sequence[Napt]) -> Napts:
    """What the engines know of NAPT boxes: their public addresses."""
    return tuple((napt.id, napt.pool) for napt in napts)


def check_recordable(record: Path | None, peers: Sequence[Peer], file: Path) -> None:
    """Raises ConfigError where a recording is wanted and could not be replayed: the originator's
    seals of peers behind a box need their keys, which no recording has."""
    behind = next((peer for peer in peers if peer.via), None)
    if record is not None and behind is not None:
        raise ConfigError(
            f"{file}: {behind.node_id} is reached via {behind.via}, and what crosses a NAPT box "
            "cannot be recorded yet",
            "remove node.record, or --record",
        )


def reload_keys(
    channel: Channel,
    keys_dir: Path,
    set_secrets: Callable[[str, dict[int, bytes], int], None] | None = None,
) -> None:
    """Take new keys of known peers (rotation).  Raises ConfigError and then changes nothing."""
    keys = load_keys(keys_dir, channel.node_id)
    for name, peer in channel.peers.items():
        if name not in keys:
            raise ConfigError(
                f"{keys_dir}: the key of {channel.node_id} and {name} is gone",
                "put it back; to shut the peer out, remove it from the configuration and restart",
            )
        if keys[name].role is not peer.role:
            raise ConfigError(
                f"{keys_dir}: {name}'s key now says role {role_text(keys[name].role)}, "
                f"not {role_text(peer.role)}",
                "a role is changed by a new key, a new configuration and a restart",
            )
    for name, pair in keys.items():
        (set_secrets or channel.set_secrets)(name, dict(pair.secrets), pair.signing)


def on_hangup(
    channel: Channel,
    keys_dir: Path,
    log: EventLog,
    set_secrets: Callable[[str, dict[int, bytes], int], None] | None = None,
) -> None:
    """SIGHUP: take new keys, and go on in the log file that now has the name.

    set_secrets: takes a peer's new ones, where the channel alone is not enough
    """
    try:
        log.reopen()
        reload_keys(channel, keys_dir, set_secrets)
        log.note("keys.reloaded")
    except ConfigError as error:
        log.note("keys.refused", reason=str(error))


def note_drift(log: EventLog, counts: Counter[str], drift: Drift, **where: str) -> None:
    """Count and tell what other hands have changed in the kernel.  where: on which node."""
    counts["drift.kernel"] += 1
    vm = {"vm": drift.vm.vm_id, "vni": drift.vm.vni} if drift.vm else {}
    log.note("drift", **where, **drift_words(drift), **vm)


def drift_words(drift: Drift) -> dict[str, Any]:
    """What differed, as the log and the API tell it; not where."""
    return {
        "what": "kernel",
        "expected": "as wanted",
        "found": f"{drift.item}: {drift.found}",
        "repaired": drift.repaired,
    }


def flush_kernel(state_dir: Path, remove_all: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Remove everything of ours from this host's kernel, while no daemon runs on that state."""

    async def remove() -> None:
        store, _, _ = open_store(state_dir)  # refuses while the daemon runs
        try:
            await remove_all()
        finally:
            store.close()

    asyncio.run(remove())


def make_jitter() -> random.Random:
    """The randomness that engines are given: attach-ids, tickets and jitter from the system."""
    return random.SystemRandom()


class Stopped(Exception):
    """Ends a daemon's task group in order."""


def run_to_end(daemon: Coroutine[Any, Any, None]) -> None:
    """Run a daemon whose tasks are a group; of several errors the first is told."""
    try:
        asyncio.run(daemon)
    except ExceptionGroup as errors:
        raise _first(errors) from errors


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    """The one error that people should read."""
    inner = errors.exceptions[0]
    return _first(inner) if isinstance(inner, ExceptionGroup) else inner


@contextlib.contextmanager
def on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT stop, SIGHUP reloads the keys, while the context lasts."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def status_of(
    channel: Channel, role: str, since: float, endpoint: UdpEndpoint, log: EventLog
) -> dict[str, Any]:
    """The part of GET /v1/status that every role has."""
    return {
        "node": channel.node_id,
        "role": role,
        "version": __version__,
        "boot": channel.boot,
        "uptime_s": round(time.monotonic() - since, 3),
        "drops": dict(channel.drops),
        "unsent": endpoint.unsent,
        "log_lines_lost": log.lost,
    }


class _Counting(Protocol):
    """Both engines."""

    @property
    def channel(self) -> Channel: ...
    @property
    def counts(self) -> Counter[str]: ...


def standing_of(engine: _Counting) -> dict[str, Any]:
    """The part of GET /v1/status that tells of differences found and of peers to be proven."""
    return {
        "counts": dict(engine.counts),
        "unproven": [name for name, peer in engine.channel.peers.items() if not is_proven(peer)],
    }


def is_proven(peer: Peer) -> bool:
    """Whether the peer's messages are acted on: it has once answered a challenge, or its last boot
    and counter are on record."""
    return peer.window.boot > 0
