"""Pairwise keys: one TOML file a pair of nodes, the same on both, never readable by others.

    # DIR/manager--nve-a.toml
    signs = 1                        # the key that signs; every key here is accepted

    [[node]]
    name = "manager"
    role = "manager"

    [[node]]
    name = "nve-a"
    role = "nve"

    [[key]]
    id = 1
    secret = "64 hexadecimal digits"
    created = 2026-01-01T00:00:00Z

A role is bound to the key: what a peer may ask for is written here, not in its messages.
Not here: signing and checking (wire/authentication.py).  Rests on tomllib and wire.registry.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tomllib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmmobility.daemon.toml_table import Table
from vmmobility.errors import ConfigError
from vmmobility.wire.formats import check_name
from vmmobility.wire.registry import Role

MAX_NODE_NAME = 32  # octets: the Sender of the Authentication option
SECRET_SIZE = 32  # octets
MAX_KEYS = 2  # live for rotation
ROLES = {role.name.lower().replace("_", "-"): role for role in Role}


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """What this node shares with one peer.  secrets: by key id; signing: the id that signs."""

    peer: str
    role: Role  # the peer's
    secrets: dict[int, bytes] = field(repr=False)
    signing: int


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    role: Role

    def __str__(self) -> str:
        return f"{self.name}:{role_text(self.role)}"


@dataclass(frozen=True, slots=True)
class Key:
    id: int
    secret: bytes = field(repr=False)
    created: datetime


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A pair's file.  nodes: in alphabetical order; keys: oldest first; signs: a key's id."""

    nodes: tuple[Node, Node]
    keys: tuple[Key, ...]
    signs: int

    def peer_of(self, name: str) -> Node | None:
        """The other node, or None if this pair does not name the node."""
        first, second = self.nodes
        return {first.name: second, second.name: first}.get(name)


def role_text(role: Role) -> str:
    return role.name.lower().replace("_", "-")


def parse_node(text: str) -> Node:
    """`NAME:ROLE`.  Raises ConfigError."""
    name, _, role = text.rpartition(":")
    if role not in ROLES:
        raise ConfigError(f"{text!r}: no role {role!r}", f"write NAME:ROLE; roles: {_roles()}")
    try:
        return Node(check_name(name, MAX_NODE_NAME), ROLES[role])
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}", "choose another node name") from None


def pair_path(directory: Path, first: str, second: str) -> Path:
    """Where a pair's file stands: names in alphabetical order."""
    return directory / "{}--{}.toml".format(*sorted((first, second)))


def _roles() -> str:
    return ", ".join(ROLES)


# --- reading ---


def load_keys(directory: Path, node_id: str) -> dict[str, PeerKeys]:
    """The keys that this node shares, peer -> keys.  Pairs of other nodes are left out.

    Raises ConfigError on a missing folder, a file that others can read, or a wrong key.
    """
    found: dict[str, PeerKeys] = {}
    for _, pair in list_pairs(directory):
        peer = pair.peer_of(node_id)
        if peer is not None:
            shared = {key.id: key.secret for key in pair.keys}
            found[peer.name] = PeerKeys(peer.name, peer.role, shared, pair.signs)
    return found


def list_pairs(directory: Path) -> list[tuple[Path, KeyFile]]:
    """Every pair in the folder, by file name.  Raises ConfigError."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".toml"))
    except OSError as error:
        raise ConfigError(
            f"{directory}: no folder of keys: {error.strerror}",
            "make keys with `vmmob key new A:ROLE B:ROLE --dir DIR`, or change keys_dir",
        ) from None
    return [(directory / name, read_pair(directory / name)) for name in names]


def read_pair(path: Path) -> KeyFile:
    """One pair's file, checked.  Raises ConfigError naming file, key and remedy."""
    table = Table(path, _parse(path, _read_private(path)))
    nodes = [_node(entry) for entry in table.tables("node")]
    keys = [_key(entry) for entry in table.tables("key")]
    signs = table.integer("signs", 1, (1 << 32) - 1)
    table.finish()
    if len(nodes) != 2 or nodes[0].name == nodes[1].name:
        raise table.wrong("node", "a pair has two [[node]] of different names")
    first, second = sorted(nodes, key=lambda node: node.name)
    if path.name != pair_path(path.parent, first.name, second.name).name:
        expected = pair_path(path.parent, first.name, second.name).name
        raise table.wrong("node", f"the file's name is not {expected}", "rename the file")
    ids = [key.id for key in keys]
    if not 1 <= len(keys) <= MAX_KEYS or len(set(ids)) != len(ids):
        raise table.wrong("key", f"a pair has 1 to {MAX_KEYS} [[key]] of different ids")
    if signs not in ids:
        raise table.wrong("signs", f"no key has the id {signs}", f"use one of {ids}")
    return KeyFile((first, second), tuple(keys), signs)


def _node(table: Table) -> Node:
    name = table.name("name", MAX_NODE_NAME)
    role = ROLES[table.choice("role", tuple(ROLES))]
    table.finish()
    return Node(name, role)


def _key(table: Table) -> Key:
    number = table.integer("id", 1, (1 << 32) - 1)
    text = table.text("secret")
    created = table.timestamp("created")
    table.finish()
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_SIZE:
        # The text itself is never shown.
        raise table.wrong("secret", f"not {2 * SECRET_SIZE} hexadecimal digits", "make a new key")
    return Key(number, secret, created)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{path}: others can read or write this key (mode {mode:04o})",
                    f"`chmod 600 {path}`, then rotate the key if somebody may have read it",
                )
            return file.read()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            "check its owner, or make it with `vmmob key new`",
        ) from None


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # tomllib raises both, and its own
        raise ConfigError(f"{path}: no TOML: {error}", "restore it from the other node") from None


# --- making and turning over ---


def create(directory: Path, first: Node, second: Node, now: datetime) -> tuple[Path, bool]:
    """The pair's file, and whether it was made; a pair that is there is kept.

    Raises ConfigError if it is there with other roles, or cannot be written.
    """
    if first.name == second.name:
        raise ConfigError(f"{first.name}: a pair has two different nodes", "name two nodes")
    path = pair_path(directory, first.name, second.name)
    nodes = (first, second) if first.name < second.name else (second, first)
    if path.exists():
        present = read_pair(path)
        if present.nodes != nodes:
            there = " and ".join(map(str, present.nodes))
            raise ConfigError(
                f"{path}: is already the key of {there}",
                "remove the file on both nodes first if the roles are to change",
            )
        return path, False
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot be made: {error.strerror}", "choose another --dir"
        ) from None
    _write(path, KeyFile(nodes, (_new_key(1, now),), 1))
    return path, True


def rotate(path: Path, now: datetime) -> KeyFile:
    """Add the next key; the old one still signs.  Raises ConfigError if two are live."""
    pair = read_pair(path)
    if len(pair.keys) == MAX_KEYS:
        raise ConfigError(
            f"{path}: has two live keys already", "activate the new one and retire the old one"
        )
    last = pair.keys[-1].id
    number = last + 1 if last + 1 < 1 << 32 else 1
    return _write(path, replace(pair, keys=(*pair.keys, _new_key(number, now))))


def activate(path: Path) -> KeyFile:
    """Sign with the newest key; without effect if it signs already.  Raises ConfigError."""
    pair = read_pair(path)
    newest = pair.keys[-1].id
    return pair if pair.signs == newest else _write(path, replace(pair, signs=newest))


def retire(path: Path) -> KeyFile:
    """End the old key.  Raises ConfigError if there is none, or if it still signs."""
    pair = read_pair(path)
    if len(pair.keys) == 1:
        raise ConfigError(f"{path}: has one key only", "rotate first: `vmmob key rotate FILE`")
    if pair.signs != pair.keys[-1].id:
        raise ConfigError(
            f"{path}: the old key still signs", "activate the new one first, on both nodes"
        )
    return _write(path, replace(pair, keys=pair.keys[-1:]))


def _new_key(number: int, now: datetime) -> Key:
    return Key(number, secrets.token_bytes(SECRET_SIZE), now.astimezone(UTC).replace(microsecond=0))


def _toml_string(text: str) -> str:
    # A checked name is printable: only these two have a meaning inside a TOML string.
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def _text(pair: KeyFile) -> str:
    lines = [
        "# A pairwise key of vmmobility: the same file on both nodes, mode 0600.",
        "# Change it with `vmmob key`.",
        f"signs = {pair.signs}",
    ]
    for node in pair.nodes:
        lines += ["", "[[node]]", f"name = {_toml_string(node.name)}"]
        lines += [f'role = "{role_text(node.role)}"']
    for key in pair.keys:
        created = key.created.strftime("%Y-%m-%dT%H:%M:%SZ")
        lines += ["", "[[key]]", f"id = {key.id}", f'secret = "{key.secret.hex()}"']
        lines += [f"created = {created}"]
    return "\n".join(lines) + "\n"


def _write(path: Path, pair: KeyFile) -> KeyFile:
    """Replace the file as one step, so that a daemon that reads now gets the old or the new."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_text(pair))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}", "check the folder's owner and space"
        ) from None
    return pair
