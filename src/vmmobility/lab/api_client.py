"""The lab's way to the daemons' APIs: JSON over HTTP over a unix socket.

Not here: what the requests mean (docs/api.md).  Rests on http.client.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from vmmobility.errors import ApiError


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(path: Path, method: str, target: str, body: Any = None, timeout_s: float = 10.0) -> Any:
    """One request; the answer's JSON.  ApiError if no daemon answers or it refuses."""
    connection = _UnixConnection(path, timeout_s)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, target, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(f"{path}: {type(error).__name__}: {error}", "is the daemon running?") \
            from error  # fmt: skip
    finally:
        connection.close()
    try:
        value = json.loads(content) if content else None
    except ValueError:
        value = None
    if answer.status >= 400:
        known = value if isinstance(value, dict) else {}
        message = known.get("error", f"status {answer.status}")
        raise ApiError(f"{method} {target}: {message}", str(known.get("remedy", "")))
    return value
