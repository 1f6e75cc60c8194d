"""Schemas of what the API takes and gives: a part of JSON Schema 2020-12, and what breaks one.

They stand in the OpenAPI description as they are written here.  `flaw` knows the keywords in
KEYWORDS and no other; a test sees to it that no schema has another.
Not here: which schemas there are (manager_schemas.py, node_schemas.py).  Rests on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

KEYWORDS = frozenset(
    {
        "$ref", "type", "properties", "required", "additionalProperties", "items", "enum",
        "minimum", "maximum", "minLength", "maxLength", "maxItems", "description",
    }
)  # fmt: skip
REFERENCE = "#/components/schemas/"

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
VNI: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 24) - 1}
ANYTHING: Schema = {}

NAMED: dict[str, Schema] = {}
"""The schemas that others refer to by name."""

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_WORDS = {
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An answer's object.  Clients must bear keys that they do not know."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def body(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """A request's object: a key that is not known is refused."""
    return {**record(required, optional), "additionalProperties": False}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def table(value: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": value}


def choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    kinds = {**schema, "type": [schema["type"], "null"]}
    return {**kinds, "enum": [*schema["enum"], None]} if "enum" in schema else kinds


def named(name: str, schema: Schema) -> Schema:
    """Keep a schema under a name; what stands for it elsewhere."""
    assert NAMED.get(name, schema) == schema, f"two schemas are called {name}"
    NAMED[name] = schema
    return {"$ref": REFERENCE + name}


def resolved(schema: Schema) -> Schema:
    """The schema itself, where this is a name."""
    while "$ref" in schema:
        schema = NAMED[schema["$ref"].removeprefix(REFERENCE)]
    return schema


def flaw(value: object, schema: Schema, where: str = "", *, closed: bool = False) -> str:
    """What is wrong, the place first; "" if nothing is.

    closed: an object has no key but those of its schema, whatever the schema allows
    """
    schema = resolved(schema)
    kinds = schema.get("type", list(_KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is_a(value, kind) for kind in kinds):
        return f"{_place(where)}is not {' or '.join(_WORDS[kind] for kind in kinds)}"
    if "enum" in schema and value not in schema["enum"]:
        known = ", ".join(str(each) for each in schema["enum"])
        return f"{_place(where)}{value!r:.80} is none of {known}"
    if isinstance(value, dict):
        return _flaw_in_object(value, schema, where, closed)
    if isinstance(value, list):
        return _flaw_in_list(value, schema, where, closed)
    return _out_of_bounds(value, schema, where)


def _is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _out_of_bounds(value: object, schema: Schema, where: str) -> str:
    if isinstance(value, str):
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if len(value) < least or (most is not None and len(value) > most):
            end = f" to {most}" if most is not None else " or more"
            return f"{_place(where)}has {len(value)} characters, not {least}{end}"
    elif isinstance(value, int | float):
        least, most = schema.get("minimum"), schema.get("maximum")
        low = least is not None and not value >= least
        high = most is not None and not value <= most
        if low or high or value != value:
            end = f" to {most}" if most is not None else " or more"
            return f"{_place(where)}{value} is not {least}{end}"
    return ""


def _flaw_in_list(value: Sequence[object], schema: Schema, where: str, closed: bool) -> str:
    if len(value) > schema.get("maxItems", len(value)):
        return f"{_place(where)}has more than {schema['maxItems']} entries"
    for index, item in enumerate(value):
        wrong = flaw(item, schema.get("items", ANYTHING), f"{where}[{index}]", closed=closed)
        if wrong:
            return wrong
    return ""


def _flaw_in_object(value: Mapping[str, object], schema: Schema, where: str, closed: bool) -> str:
    known: Mapping[str, Schema] = schema.get("properties", {})
    described = "properties" in schema or "additionalProperties" in schema
    more = schema.get("additionalProperties", not (closed and described))
    for key in schema.get("required", ()):
        if key not in value:
            return f"{_place(where)}{key!r} is missing"
    for key, item in value.items():
        inner = f"{where}.{key}" if where else key
        if key not in known and more is False:
            return f"{_place(where)}unknown field {key!r:.80}"
        wanted = known[key] if key in known else (more if isinstance(more, Mapping) else ANYTHING)
        wrong = flaw(item, wanted, inner, closed=closed)
        if wrong:
            return wrong
    return ""
