"""Files that are generated from the typed models and committed; tests fail when they drift."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from angelshare.config import json_schema
from angelshare.energy.sidecar import json_schema as sidecar_schema
from angelshare.files import publish_bytes


def contents() -> dict[str, str]:
    """What each generated file must hold, by its path from the checkout's root."""
    schema = json_schema()
    return {
        "config/schemas/config.schema.json": _json(schema),
        "config/schemas/energy_sidecar.schema.json": _json(sidecar_schema()),
        "config/README.md": "\n".join(_reference(schema)) + "\n",
    }


def write_all(root: Path) -> list[Path]:
    """Write every generated file under ``root``; return their paths."""
    paths = []
    for name, text in contents().items():
        publish_bytes(root / name, text.encode())
        paths.append(root / name)
    return paths


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _reference(schema: dict[str, Any]) -> Iterator[str]:
    """The configuration reference: a heading per section, a table row per key."""
    yield "# Configuration"
    yield ""
    yield (
        "`config.yaml` is the embedded default; `grids/` holds others, used instead of it with "
        "`--configfile`. "
        "Generated from `angelshare.config` by `make schemas`."
    )
    for section, field in schema["properties"].items():
        yield from ("", f"## {section}", "", field.get("description", ""), "")
        for name in _models(field):
            yield from _model_table(name, schema["$defs"][name], schema["$defs"])


def _model_table(name: str, model: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    """One model's keys as a table, then the models nested in it."""
    yield f"**{name}**: {model.get('description', '').splitlines()[0] if model else ''}"
    yield from ("", "| key | type | default | meaning |", "| --- | --- | --- | --- |")
    required = model.get("required", [])
    nested: list[str] = []
    for key, field in model.get("properties", {}).items():
        default = "required" if key in required else _cell(json.dumps(field.get("default")))
        meaning = " ".join(field.get("description", "").split())
        inner = _models(field)
        if inner:
            default = "required" if key in required else "see below"
        yield f"| `{key}` | {_cell(_type(field))} | {default} | {_cell(meaning)} |"
        nested.extend(inner)
    yield ""
    for inner_name in dict.fromkeys(nested):
        yield from _model_table(inner_name, models[inner_name], models)


def _models(field: dict[str, Any]) -> list[str]:
    """The names of the models a field refers to, however deep."""
    found = []
    if "$ref" in field:
        found.append(field["$ref"].rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        found.extend(name for option in field.get(key, []) for name in _models(option))
    for key in ("items", "additionalProperties"):
        if isinstance(field.get(key), dict):
            found.extend(_models(field[key]))
    return list(dict.fromkeys(found))


def _type(field: dict[str, Any]) -> str:
    """A short name of a field's type with its bounds."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(_type(option) for option in field[key])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map to {_type(field['additionalProperties'])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return " ".join([str(field.get("type", "any")), *bounds])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
