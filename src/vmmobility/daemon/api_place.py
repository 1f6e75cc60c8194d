"""Where a daemon's API is served: its unix socket, and TCP addresses if it is given any.

Every error names the file, the key, what is wrong and the remedy.
Not here: serving (api/server.py), tokens (api/tokens.py).  Rests on toml_table.py.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vmmobility.daemon.toml_table import Table
from vmmobility.wire.values import Address

Note = Callable[..., None]


class Listen(NamedTuple):
    """A TCP address of an API."""

    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """[api].  listen: none is the unix socket alone; tokens: the file of those that count there."""

    listen: tuple[Listen, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tokens: Path | None = None


SOCKET_ALONE = ApiConfig()


def _unnoted(name: str, **detail: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ApiPlace:
    """All that serving an API needs beside the API.

    note: tells the daemon's log of an event; counts: of what was refused, by reason
    """

    socket: Path
    config: ApiConfig = SOCKET_ALONE
    note: Note = _unnoted
    counts: Counter[str] = field(default_factory=Counter)


def api_of(api: Table) -> ApiConfig:
    """Raises ConfigError."""
    if "listen" not in api:
        for name in ("tls_certificate", "tls_key", "tokens"):
            if name in api:
                raise api.wrong(name, "is of no use without listen", "add listen, or remove this")
        api.finish()
        return SOCKET_ALONE
    certificate, key = api.optional_path("tls_certificate"), api.optional_path("tls_key")
    if (certificate is None) is not (key is None):
        missing = "tls_certificate" if certificate is None else "tls_key"
        raise api.wrong(missing, "is missing", "TLS needs both tls_certificate and tls_key")
    if "tokens" not in api:
        remedy = "name their file, and make one: `vmmob token new NAME --role admin`"
        raise api.wrong("tokens", "is missing: nobody could ask at api.listen", remedy)
    listen = tuple(_listen(api, index, text) for index, text in enumerate(api.texts("listen")))
    if not listen:
        raise api.wrong("listen", "is empty", "give at least one ADDRESS:PORT, or remove the key")
    for index, each in enumerate(listen):
        if certificate is None and not each.address.is_loopback:
            raise api.wrong(
                f"listen[{index}]",
                f"{each} is no loopback address, and tokens would cross the network in clear",
                "add tls_certificate and tls_key, or listen at 127.0.0.1 and [::1] alone",
            )
        if each in listen[:index]:
            raise api.wrong(f"listen[{index}]", f"{each} stands here twice", "remove one")
    config = ApiConfig(listen, certificate, key, api.path("tokens"))
    api.finish()
    return config


def _listen(api: Table, index: int, text: str) -> Listen:
    host, colon, port = text.rpartition(":")
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    try:
        address = ipaddress.ip_address(inside or host)
        if (address.version == 6) is not bool(inside) or not colon:
            raise ValueError
        number = int(port) if port.isascii() and port.isdecimal() else 0
        if not 0 < number < 1 << 16:
            raise ValueError
    except ValueError:
        raise api.wrong(
            f"listen[{index}]",
            f"{text!r} is no ADDRESS:PORT",
            'write like "192.0.2.1:8749" or "[2001:db8::1]:8749"',
        ) from None
    return Listen(address, number)
