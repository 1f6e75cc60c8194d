"""A manager that is asked by its URL: with a token, by TLS unless it is on this machine.

Not here: the requests (client.py).  Rests on nothing but the errors.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vmmobility.errors import ConfigError

MOST_OCTETS = 4096  # of a token's file


@dataclass(frozen=True, slots=True)
class Remote:
    """url: as https://HOST:PORT; token: the secret itself; ca: whom to trust, None is the system's
    authorities."""

    url: str
    token: str
    ca: Path | None = None

    def trust(self) -> ssl.SSLContext:
        """Raises ConfigError."""
        try:
            return ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.ca}: no certificate: {error}", "name the authority's, PEM: --ca FILE"
            ) from None

    def __str__(self) -> str:
        return self.url


def remote_of(url: str, token_file: Path | None, ca: Path | None) -> Remote:
    """Raises ConfigError for what is no URL, no token, or a token that would cross in clear."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/"):
        raise ConfigError(f"{url!r} is no URL of a manager", "write https://HOST:PORT")
    if parts.scheme == "http" and not _is_here(host):
        raise ConfigError(
            f"{url}: a token would cross the network in clear", "use https://, or ask on that host"
        )
    if token_file is None:
        raise ConfigError(f"{url}: there is no token to send", "--token-file FILE")
    shown = f"[{host}]" if ":" in host else host
    base = f"{parts.scheme}://{shown}" + (f":{port}" if port else "")
    return Remote(base, read_token(token_file), ca)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """The token in a file, the only thing in it.  Raises ConfigError."""
    try:
        with path.open(encoding="ascii") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(MOST_OCTETS).strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", "write the token into it, mode 0600"
        ) from None
    except ValueError:
        text, mode = "", 0o600
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: others can read or write it", f"chmod 600 {path}")
    if not text or any(not 0x21 <= ord(character) <= 0x7E for character in text):
        raise ConfigError(f"{path}: holds no token", "write what `vmmob token new` printed")
    return text
