"""Tokens: who may ask an API off its unix socket, in a file that holds their hashes alone.

    {"tokens": [{"name", "role", "sha256", "created_s", "expires_s": s | null}]}

A token is 256 random bits, so one round of SHA-256 keeps it (there is nothing to guess).  Times are
seconds of CLOCK_REALTIME.  The file is for its owner alone, and is read again when it changes.  It
keeps its owner, the daemon's user, when root writes it; a new one has its folder's.
Not here: HTTP (listener.py), commands (cli/token.py).  Rests on declared.py for the roles.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmmobility.api.access import Asker
from vmmobility.api.declared import ApiRole
from vmmobility.api.schema import COUNT, NAME, body, choice, flaw, listed, nullable
from vmmobility.errors import ConfigError, Conflict, NotFound, Unauthorized, Unavailable
from vmmobility.wire.formats import check_name

PREFIX = "vmmob_"  # so that people, and scanners for leaked secrets, know one
BITS = 256
MOST_OCTETS = 1 << 20  # of the file
ROLES = {role.text: role for role in ApiRole}
_REMEDY = "make one with `vmmob token new NAME --role read|operate|admin`"
_FILE = body(
    {
        "tokens": listed(
            body(
                {
                    "name": NAME,
                    "role": choice(*ROLES),
                    "sha256": {"type": "string", "minLength": 64, "maxLength": 64},
                    "created_s": COUNT,
                    "expires_s": nullable(COUNT),
                }
            )
        )
    }
)


@dataclass(frozen=True, slots=True)
class Token:
    name: str
    role: str
    sha256: str
    created_s: int
    expires_s: int | None = None

    def has_expired(self, now_s: float) -> bool:
        return self.expires_s is not None and self.expires_s <= now_s


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


# --- the file ---


def read_tokens(path: Path) -> list[Token]:
    """Raises ConfigError; a file that is not there holds none."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MOST_OCTETS + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "check its rights") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: others can read or write it", f"chmod 600 {path}")
    try:
        value: Any = json.loads(data) if len(data) <= MOST_OCTETS else None
    except (ValueError, RecursionError):
        value = None
    wrong = flaw(value, _FILE)
    if wrong:
        raise ConfigError(f"{path}: no file of tokens: {wrong}", "restore it, or make a new one")
    return [Token(**row) for row in value["tokens"]]


def add_token(
    path: Path, name: str, role: ApiRole, now_s: float, expires_s: float | None
) -> tuple[str, Token]:
    """A new one: its secret, which is nowhere else from now on, and its row.  Raises Conflict."""
    secret = PREFIX + secrets.token_urlsafe(BITS // 8)
    end = None if expires_s is None else int(expires_s)
    token = Token(check_name(name), role.text, hashed(secret), int(now_s), end)
    with _changing(path) as tokens:
        if any(each.name == name for each in tokens):
            raise Conflict(
                f"{path}: there is a token {name} already",
                f"choose another name, or `vmmob token revoke {name}` first",
            )
        tokens.append(token)
    return secret, token


def revoke_token(path: Path, name: str) -> Token:
    """Raises NotFound."""
    with _changing(path) as tokens:
        for index, each in enumerate(tokens):
            if each.name == name:
                return tokens.pop(index)
        raise NotFound(f"{path}: there is no token {name}", "see `vmmob token list`")


@contextmanager
def _changing(path: Path) -> Iterator[list[Token]]:
    """The tokens, written back if the body ends well; one change at a time."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        tokens = read_tokens(path)
        yield tokens
        _write(path, tokens)
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    keeper = os.stat(path if path.exists() else path.parent)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if os.geteuid() == 0:  # nobody else can give a file away
            os.fchown(descriptor, keeper.st_uid, keeper.st_gid)
        json.dump({"tokens": [asdict(token) for token in tokens]}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


# --- asking ---


class TokenDesk:
    """Says who has sent a token.  clock: seconds of CLOCK_REALTIME."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._tokens: list[Token] = []

    def asker(self, secret: str) -> Asker:
        """Raises Unauthorized; Unavailable while the file is wrong: then nobody is let in."""
        self._refresh()
        digest, found = hashed(secret), None
        for token in self._tokens:
            # Every one is looked at, each for as long: time tells nothing of them.
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            raise Unauthorized("this token is not known, or was revoked", _REMEDY)
        if found.has_expired(self._clock()):
            raise Unauthorized(f"the token {found.name} has expired", _REMEDY)
        return Asker(found.name, ROLES[found.role], by_token=True)

    def _refresh(self) -> None:
        seen: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            now = os.stat(self._path)
            seen = (now.st_mtime_ns, now.st_ino, now.st_size, now.st_mode, now.st_ctime_ns)
        if seen == self._seen:
            return
        self._seen, self._tokens = None, []
        try:
            self._tokens = read_tokens(self._path)
        except ConfigError as error:
            raise Unavailable(f"tokens cannot be read: {error.message}", error.remedy) from None
        self._seen = seen
