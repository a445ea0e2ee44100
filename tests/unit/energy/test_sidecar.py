"""The sidecar's schema is the contract's, generated from the types, and has not drifted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from angelshare.energy.sidecar import Record, json_schema

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
COMMITTED = ROOT / "config" / "schemas" / "energy_sidecar.schema.json"
CONTRACT = json.loads((DATA / "energy_sidecar.contract.schema.json").read_text())
EXAMPLE = json.loads((DATA / "energy_sidecar.example.json").read_text())


def test_committed_schema_has_not_drifted() -> None:
    assert json.loads(COMMITTED.read_text()) == json_schema(), "run `make schemas`"


def resolved(schema: Any, root: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it points to."""
    if isinstance(schema, list):
        return [resolved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    return {key: resolved(value, root) for key, value in schema.items() if key != "$defs"}


def differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    """Every demand of ``theirs`` that ``ours`` does not make in the same way."""
    found = []
    if "anyOf" in theirs:
        choices = {json.dumps(kind_of(one)) for one in theirs["anyOf"]}
        if choices != {json.dumps(kind_of(one)) for one in ours.get("anyOf", [])}:
            return [f"{path}: other alternatives"]
        for one in theirs["anyOf"]:
            twin = next(o for o in ours["anyOf"] if kind_of(o) == kind_of(one))
            found += differences(one, twin, path)
        return found
    for key in ("type", "const", "minimum"):
        if theirs.get(key) != ours.get(key) and not (key == "type" and "enum" in theirs):
            found.append(f"{path}: {key} {theirs.get(key)} became {ours.get(key)}")
    if set(theirs.get("enum", [])) != set(ours.get("enum", [])):
        found.append(f"{path}: other values")
    if set(theirs.get("required", [])) - set(ours.get("required", [])):
        found.append(f"{path}: requires less")
    for name, child in theirs.get("properties", {}).items():
        if name in ours.get("properties", {}):
            found += differences(child, ours["properties"][name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name} is gone")
    for key in ("items", "additionalProperties"):
        if isinstance(theirs.get(key), dict):
            found += differences(theirs[key], ours.get(key, {}), f"{path}[]")
    return found


def kind_of(schema: dict[str, Any]) -> Any:
    return schema.get("type", "any")


def without_const_type(schema: Any) -> Any:
    """A const says its type already; the contract leaves it out."""
    if isinstance(schema, list):
        return [without_const_type(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    drop = {"type"} if "const" in schema else set()
    return {key: without_const_type(value) for key, value in schema.items() if key not in drop}


def test_nothing_of_the_contract_is_gone_or_means_something_else() -> None:
    ours = without_const_type(resolved(json_schema(), json_schema()))
    assert differences(CONTRACT, ours) == []


def test_the_comparison_sees_what_is_lost() -> None:
    ours = resolved(json_schema(), json_schema())
    del ours["properties"]["bill"]
    ours["properties"]["record"]["required"].remove("attempt")
    ours["properties"]["trace"]["properties"]["format"]["enum"].remove("csv")
    found = differences(CONTRACT, without_const_type(ours))
    assert found == [
        ".record: requires less",
        ".trace.format: other values",
        ".bill is gone",
    ]


def test_example_validates_and_survives_the_types() -> None:
    jsonschema.validate(EXAMPLE, json_schema())
    again = Record.model_validate(EXAMPLE).to_json()
    jsonschema.validate(again, CONTRACT)
    jsonschema.validate(again, json_schema())
    for name, value in EXAMPLE.items():
        if name != "components":
            assert again[name] == value
    for theirs, ours in zip(EXAMPLE["components"], again["components"], strict=True):
        assert {name: ours[name] for name in theirs} == theirs


def test_fields_of_later_versions_are_kept() -> None:
    later = {**EXAMPLE, "weather": {"humidity": 0.4}}
    later["record"] = {**later["record"], "mood": "calm"}
    again = Record.model_validate(later).to_json()
    assert again["weather"] == {"humidity": 0.4}
    assert again["record"]["mood"] == "calm"


@pytest.mark.parametrize("field", ["record", "total", "trace", "meter", "components"])
def test_what_the_contract_requires_is_required(field: str) -> None:
    broken = {name: value for name, value in EXAMPLE.items() if name != field}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json_schema())
