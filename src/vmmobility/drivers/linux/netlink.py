"""A hand-packed netlink socket: many messages a send, an ACK read for each, errors kept apart.

Not here: what the messages say (rtnetlink.py).  Rests on the socket module alone; pyroute2 is
some hundred times slower on this path (lab notes: 2.7k routes a second against 324k).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from vmmobility.errors import DataPlaneError

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_DUMP_INTR = 0x10
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 18
_BATCH_MESSAGES = 200
"""Messages a send; their ACKs (at most some 100 octets each) must fit the receive buffer."""
_DUMP_TRIES = 5

Attributes = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Request:
    """One netlink message: its type, flags beyond REQUEST and ACK, and its body."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """The kernel's answer to a request that it did not do: errno (positive) and its words."""

    number: int
    words: str

    def __str__(self) -> str:
        name = errno.errorcode.get(self.number)
        words = self.words or (os.strerror(self.number) if name else "unknown error")
        return f"{words} [{name or self.number}]"


def attribute(kind: int, value: bytes) -> bytes:
    """One rtattr: length, type, value, padded to four octets."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def u32(kind: int, value: int) -> bytes:
    """An attribute that holds an unsigned 32-bit number in host order."""
    return attribute(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


_LITTLE = struct.pack("=H", 1) == b"\x01\x00"


def parse_attributes(data: bytes) -> Attributes:
    """The attributes of `data` by type (flag bits stripped); a broken tail is left out."""
    found: Attributes = {}
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def number(value: bytes) -> int:
    """A number in host order of any length."""
    return int.from_bytes(value, "little" if _LITTLE else "big")


class Netlink:
    """A netlink socket, bound to the network namespace in which it was made.

    Every call blocks, but only for the kernel's own work (some microseconds a message).
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.settimeout(5.0)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; what was installed stays."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def batch(self, requests: Sequence[Request]) -> list[Refusal | None]:
        """Send the requests in order; answers one outcome a request, None where it was done.

        One refusal does not stop the others.  Raises DataPlaneError only if the socket fails.
        """
        outcomes: list[Refusal | None] = []
        for start in range(0, len(requests), _BATCH_MESSAGES):
            outcomes.extend(self._send_batch(requests[start : start + _BATCH_MESSAGES]))
        return outcomes

    def _send_batch(self, requests: Sequence[Request]) -> list[Refusal | None]:
        first = self._sequence + 1
        packed = b"".join(self._pack(r.kind, r.flags | NLM_F_ACK, r.body) for r in requests)
        outcomes: list[Refusal | None] = [None] * len(requests)
        left = len(requests)
        try:
            self._socket.send(packed)
            while left:
                for kind, _, sequence, body in self._receive():
                    index = sequence - first
                    if kind == NLMSG_ERROR and 0 <= index < len(requests):
                        outcomes[index] = _refusal(body)
                        left -= 1
        except OSError as error:
            raise DataPlaneError(
                f"netlink: {error}", "the kernel's answer is lost: resynchronise"
            ) from error
        return outcomes

    def get(self, kind: int, body: bytes) -> bytes | Refusal:
        """One request that is answered by one message: its body, or the refusal."""
        self._socket.send(self._pack(kind, 0, body))
        wanted = self._sequence
        while True:
            for answer, _, sequence, content in self._receive():
                if sequence != wanted:
                    continue
                if answer == NLMSG_ERROR:
                    return _refusal(content) or Refusal(errno.ENODATA, "no answer")
                return content

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages of a dump; a dump that changed underway is read again."""
        for _ in range(_DUMP_TRIES):
            answers = self._dump_once(kind, body)
            if answers is not None:
                return answers
        raise DataPlaneError("netlink: the dump kept changing", "resynchronise later")

    def _dump_once(self, kind: int, body: bytes) -> list[bytes] | None:
        self._socket.send(self._pack(kind, NLM_F_DUMP, body))
        wanted = self._sequence
        answers: list[bytes] = []
        steady = True
        while True:
            for answer, flags, sequence, content in self._receive():
                if sequence != wanted:
                    continue
                steady = steady and not flags & NLM_F_DUMP_INTR
                if answer == NLMSG_DONE:
                    return answers if steady else None
                if answer == NLMSG_ERROR:
                    refusal = _refusal(content)
                    raise DataPlaneError(f"netlink: dump of type {kind} refused: {refusal}")
                answers.append(content)

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        padding = b"\0" * (-len(body) % 4)
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        return header + body + padding

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return split_messages(self._socket.recv(_RECEIVE_BYTES))


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of one datagram as (type, flags, sequence, body)."""
    offset, end = 0, len(data)
    while offset + _HEADER.size <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > end:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _refusal(body: bytes) -> Refusal | None:
    """Read an NLMSG_ERROR body: None for an ACK, else errno and the extended ACK's words."""
    code = -int.from_bytes(body[:4], "little" if _LITTLE else "big", signed=True)
    if code == 0:
        return None
    words = ""
    if len(body) >= 20:
        # Without NETLINK_CAP_ACK the refused request is echoed before the attributes.
        echoed = number(body[4:8])
        found = parse_attributes(body[4 + ((echoed + 3) & ~3) :])
        words = found.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return Refusal(code, words)
