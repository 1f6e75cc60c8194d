"""A VM definition's file (TOML or JSON) as the API's JSON body.

Not here: what a definition must hold, which the daemons say.  Rests on wire/definition_keys.py.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from vmmobility.errors import ConfigError
from vmmobility.wire.definition_keys import api_keys


def read_definition(path: Path) -> dict[str, Any]:
    """Raises ConfigError if the file is no TOML or JSON, or names no VM.

    In TOML an interface is an [[interface]], a disk a [[disk]].
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", "name a VM definition"
        ) from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: no {kind}: {error}", "correct that line") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: no JSON object", "write {…}")
    try:
        value = api_keys(value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", "remove one of them") from None
    if not isinstance(value.get("vm_id"), str) or not value["vm_id"]:
        raise ConfigError(f"{path}: vm_id: is missing or no text", 'add vm_id = "NAME"')
    # A TOML date is no JSON; the daemon then says what is wrong with its text.
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain
