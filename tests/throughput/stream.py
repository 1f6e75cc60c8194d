"""One TCP stream for some seconds, both of its ends as programs: `receive` and `send`.

`receive ADDRESS` prints "ready", then the octets that came and the seconds they took.  Not here:
where they run (path.py), what is made of it (__main__.py).
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 5001
CHUNK = 1 << 20
PATIENCE_S = 60.0


def receive(address: str) -> None:
    """Take one stream to its end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(PATIENCE_S)
        listener.bind((address, PORT))
        listener.listen(1)
        print("ready", flush=True)
        stream, _ = listener.accept()
    buffer, total, begun, last = bytearray(CHUNK), 0, 0.0, 0.0
    with stream:
        stream.settimeout(PATIENCE_S)
        while count := stream.recv_into(buffer):
            last = time.monotonic()
            begun = begun or last
            total += count
    print(total, last - begun, flush=True)


def send(address: str, seconds: float) -> None:
    """As much as goes in that time."""
    with socket.create_connection((address, PORT), PATIENCE_S) as stream:
        end = time.monotonic() + seconds
        data = bytes(CHUNK)
        while time.monotonic() < end:
            stream.send(data)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], float(sys.argv[3]))
