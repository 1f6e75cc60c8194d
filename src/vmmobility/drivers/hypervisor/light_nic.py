"""The network card of a light VM: a process that copies frames between two taps.

One side is the NVE's tap, opened by name in this process's own namespace; the other is the VM's
eth0, opened in the VM's namespace.  In a hot move the destination's card holds its NVE tap
unread (early packets wait in it, as with QEMU), and gets the very descriptor of eth0 from the
source's card, so that no frame in either direction is lost.  It outlives the NVE daemon, which
speaks to it by JSON lines on a unix socket (light.py).  Not a hypervisor: the VM is a namespace
and its processes never stop.  Standard library only, one thread.

    python -m vmmobility.drivers.hypervisor.light_nic SPEC      SPEC: a JSON file, see Spec
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.light_frames import announcement
from vmmobility.drivers.hypervisor.light_tap import (
    in_namespace,
    open_tap,
    pump,
    receive_descriptors,
    send_descriptors,
)

_HANDOVER_S = 5.0


_ANY = ("waiting", "running", "converged", "about-to-stop", "paused", "handed", "arrived")
# order -> the states in which it is obeyed, and those in which nothing is left to do
_ALLOWED = {
    "state": _ANY,
    "stop": _ANY,
    "announce": _ANY,
    "copy-out": ("running", "paused"),
    "switch-over": ("converged",),
    "proceed": ("about-to-stop",),
    "cancel": ("waiting", "arrived", "converged", "about-to-stop"),
    "pause": ("running",),
    "keep": ("running", "handed", "arrived"),
    "resume": ("paused", "handed"),
}
_NOTHING_TO_DO = {
    "copy-out": ("converged",),
    "switch-over": ("about-to-stop",),
    "proceed": ("handed",),
    "cancel": ("running", "paused", "handed"),
    "pause": ("paused",),
    "keep": ("paused",),
    "resume": ("running", "converged", "about-to-stop"),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """What a card is started with.

    control:   path of its unix socket          namespace: the VM's, in /run/netns
    ports:     the NVE's taps, one an interface  macs, addresses: one list an interface
    listen:    address to await a move on; empty: run at once
    vm:        VNI and VM-ID, for a daemon that knows nothing of this card
    held:      it copies no frames before it is told to
    """

    control: str
    namespace: str
    ports: list[str]
    macs: list[str]
    addresses: list[list[str]]
    listen: str = ""
    vm: tuple[int, str] = (0, "")
    held: bool = False


class Card:
    """The card: its state, its taps, its two conversations."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._selector = selectors.DefaultSelector()
        self._watched: list[Callable[[], Any]] = []
        self._outer = [open_tap(name) for name in spec.ports]
        self._inner: list[int] = []
        self._client: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._door: socket.socket | None = None
        self._buffer = b""
        self._begun_ns = 0
        self._setup_ms = 0.0
        self._held = spec.held
        self._closed = False
        self.state = "waiting" if spec.listen else self._at_rest
        self.port = 0
        self._control = _unix_server(spec.control)
        self._watch(self._control, self._accept_client)
        if spec.listen:
            self._await_move(spec.listen)
        else:
            self._take_up()
            if not self._held:
                self._copy()

    @property
    def _at_rest(self) -> str:
        """What it is when no move is under way."""
        return "paused" if self._held else "running"

    def run(self) -> None:
        """Serve until ended."""
        while self.state != "ended":
            for key, _ in self._selector.select():
                if key.data in self._watched:  # not unwatched by one before it in this batch
                    key.data()

    # --- frames --------------------------------------------------------------------------------

    def _copy(self) -> None:
        for outer, inner in zip(self._outer, self._inner, strict=True):
            self._watch(outer, partial(pump, outer, inner))
            self._watch(inner, partial(pump, inner, outer))

    def _halt(self) -> None:
        for descriptor in (*self._outer, *self._inner):
            self._unwatch(descriptor)

    def _take_up(self) -> None:
        """Hold the VM's side, unless it is held.  Raises OSError where another card does."""
        if not self._inner:
            interfaces = range(len(self._spec.ports))
            self._inner = in_namespace(
                self._spec.namespace, lambda: [open_tap(f"eth{i}") for i in interfaces]
            )

    def _let_go(self) -> None:
        """Who is paused or has ended holds nothing that another card, of a standby, may need."""
        for descriptor in self._inner:
            os.close(descriptor)
        self._inner = []

    def _end(self) -> None:
        """Let go of taps and names before anybody hears of the end: others may have them then."""
        self._halt()
        self.close()
        self._let_go()
        for descriptor in self._outer:
            os.close(descriptor)
        self._outer = []
        self.state = "ended"

    def _announce(self) -> None:
        for tap, mac, addresses in zip(
            self._outer, self._spec.macs, self._spec.addresses, strict=True
        ):
            for address in addresses:
                frame = announcement(bytes.fromhex(mac.replace(":", "")), ip_address(address))
                with contextlib.suppress(OSError):
                    os.write(tap, frame)

    # --- the daemon ----------------------------------------------------------------------------

    def _accept_client(self) -> None:
        if self._client is not None:
            self._unwatch(self._client)
            self._client.close()
        self._client, _ = self._control.accept()
        self._buffer = b""
        self._watch(self._client, self._hear_client)

    def _hear_client(self) -> None:
        client = self._client
        assert client is not None
        try:
            data = client.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._unwatch(client)
            client.close()
            self._client = None
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            error = ""
            try:
                self._obey(str(order["do"]), order)
            except OSError as problem:
                error = f"{order['do']}: {problem}"
            self._tell(answer=order["number"], error=error, state=self.state, port=self.port)

    def _tell(self, **message: Any) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.sendall(json.dumps(message).encode() + b"\n")

    def _event(self, event: str, **detail: Any) -> None:
        self._tell(event=event, time_ns=time.time_ns(), detail=detail)

    def _obey(self, do: str, order: dict[str, Any]) -> None:
        """One order; repeating it after success changes nothing, a wrong moment is an error."""
        if self.state in _NOTHING_TO_DO.get(do, ()):
            return
        if self.state not in _ALLOWED[do]:
            raise OSError(0, f"not while it is {self.state}")
        if do == "copy-out":
            self._copy_out(str(order["address"]), int(order["port"]))
        elif do == "switch-over":
            self.state = "about-to-stop"
            self._event("about-to-stop")
        elif do == "proceed":
            self._hand_over()
        elif do == "cancel" and self.state not in ("waiting", "arrived"):
            self._drop_peer()
            self.state = self._at_rest
            self._event("failed", reason="cancelled", running=not self._held)
        elif do in ("pause", "keep"):
            self._halt()
            self.state, self._held = "paused", True
            if do == "pause":
                self._let_go()
        elif do == "resume":
            self._take_up()
            self.state, self._held = "running", False
            self._copy()
            self._announce()
        elif do == "announce":
            self._announce()
        elif do in ("stop", "cancel"):
            self._end()

    # --- moving out ----------------------------------------------------------------------------

    def _copy_out(self, address: str, port: int) -> None:
        self._take_up()
        self._begun_ns = time.monotonic_ns()
        self._peer = socket.create_connection((address, port), timeout=_HANDOVER_S)
        self._setup_ms = (time.monotonic_ns() - self._begun_ns) / 1e6
        self._watch(self._peer, self._peer_spoke)
        self.state = "converged"
        self._event("progress", memory_bytes=0, memory_total_bytes=0)  # there is none to copy
        self._event("converged", remaining_bytes=0, rounds=1)

    def _peer_spoke(self) -> None:
        """Before the hand-over the destination says nothing: this is its end."""
        self._drop_peer()
        self.state = self._at_rest
        running = not self._held
        self._event("failed", reason="the destination closed the connection", running=running)

    def _hand_over(self) -> None:
        peer = self._peer
        assert peer is not None
        self._unwatch(peer)
        self._halt()
        for outer, inner in zip(self._outer, self._inner, strict=True):
            while not self._held and pump(outer, inner):
                pass  # what had come before the redirect still reaches the VM
        stop_ns = time.monotonic_ns()
        self._event("stopped")
        sure = True
        try:
            peer.settimeout(_HANDOVER_S)
            door = _ask(peer, b"go\n")
            send_descriptors(door, self._inner)
            sure = False
            done = _ask(peer, b"sent\n") == "runs"
            sure = True
        except TimeoutError:
            done = False
        except OSError:
            done, sure = False, True  # its end is closed: it will not run the VM
        self._drop_peer()
        ms = (time.monotonic_ns() - stop_ns) / 1e6
        if done:
            self.state = "handed"
            total_ms = (time.monotonic_ns() - self._begun_ns) / 1e6
            self._event(
                "completed",
                downtime_ms=round(ms, 3),
                total_ms=round(total_ms, 3),
                setup_ms=round(self._setup_ms, 3),
                rounds=1,
                transferred_bytes=0,
            )
        elif sure:
            self.state = self._at_rest
            if not self._held:
                self._copy()
            self._event("failed", reason="the destination broke off", running=not self._held)
        else:
            self.state = "paused"
            self._event("failed", reason="no word of the destination", running=False)

    def _drop_peer(self) -> None:
        if self._peer is not None:
            self._unwatch(self._peer)
            self._peer.close()
            self._peer = None

    # --- moving in -----------------------------------------------------------------------------

    def _await_move(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, 0), family=family)
        self.port = server.getsockname()[1]
        self._door = _unix_server(self._spec.control + ".door")
        self._watch(server, lambda: self._accept_peer(server))

    def _accept_peer(self, server: socket.socket) -> None:
        self._peer, _ = server.accept()
        self._unwatch(server)
        server.close()
        self._watch(self._peer, self._source_spoke)

    def _source_spoke(self) -> None:
        peer, door = self._peer, self._door
        assert peer is not None
        assert door is not None
        try:
            peer.settimeout(_HANDOVER_S)
            door.settimeout(_HANDOVER_S)
            if peer.recv(16) != b"go\n":
                raise ConnectionError("the source closed the connection")
            peer.sendall((self._spec.control + ".door\n").encode())
            passage, _ = door.accept()
            with passage:
                self._inner = receive_descriptors(passage, len(self._outer))
            if peer.recv(16) != b"sent\n":
                raise ConnectionError("the source broke off")
            peer.sendall(b"runs\n")
        except OSError as error:
            self._end()
            self._event("failed", reason=str(error), running=False)
            return
        if self._held:
            self.state = "arrived"
            self._event("resumed", held=True)
        else:
            self.state = "running"
            self._event("resumed")
            self._announce()
            self._copy()
        self._drop_peer()
        self._unlink_door()

    def _unlink_door(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None
            Path(self._spec.control + ".door").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the sockets' names, once: later on they may be another's."""
        self._unlink_door()
        if not self._closed:
            self._closed = True
            Path(self._spec.control).unlink(missing_ok=True)

    # --- the selector --------------------------------------------------------------------------

    def _watch(self, file: Any, ready: Callable[[], Any]) -> None:
        self._selector.register(file, selectors.EVENT_READ, ready)
        self._watched.append(ready)

    def _unwatch(self, file: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._watched.remove(self._selector.unregister(file).data)


def _ask(peer: socket.socket, word: bytes) -> str:
    peer.sendall(word)
    answer = b""
    while not answer.endswith(b"\n"):
        part = peer.recv(4096)
        if not part:
            raise ConnectionError("the destination closed the connection")
        answer += part
    return answer.decode().strip()


def _unix_server(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen(4)
    return server


def main(path: str) -> None:
    """Be a card until told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = Spec(**json.loads(Path(path).read_text()))
    card = Card(spec)
    try:
        card.run()
    finally:
        card.close()


if __name__ == "__main__":
    main(sys.argv[1])
