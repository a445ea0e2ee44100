"""Reading attempt records: what lands in which column, and what is said of a broken record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from studies import sidecar, write

from angelshare.accounting.attempts import load_attempts
from angelshare.accounting.study import AttemptSource
from angelshare.errors import AngelshareError

DATA = Path(__file__).parents[2] / "data"


def test_the_contract_example_is_read(tmp_path: Path) -> None:
    example = json.loads((DATA / "energy_sidecar.example.json").read_text())
    folder = write(tmp_path, example)
    attempts, components = load_attempts([AttemptSource(folder, None, "logits", "k1")])
    row = attempts.row(0, named=True)
    assert row["job"] == "cache_logits[dataset=tulu]@logits/k1"
    assert (row["gpu_energy_j"], row["cpu_energy_j"], row["dram_energy_j"]) == (2.16e6, 1.8e5, None)
    assert (row["energy_low_j"], row["energy_j"], row["energy_high_j"]) == (
        2.199e6,
        2.34e6,
        2.481e6,
    )
    assert (row["measured_j"], row["estimated_j"], row["missing"]) == (2.16e6, 1.8e5, "dram")
    assert (row["tokens"], row["j_per_token"], row["co2e_g"]) == (None, None, None)
    assert row["hardware"] == "1 x H100"
    by_component = {part["component"]: part for part in components.rows(named=True)}
    gpu = by_component["gpu0"]
    assert gpu["board"] == "GPU-1"
    assert gpu["systematic_j95"] == pytest.approx(0.05 * 2.16e6)
    assert gpu["systematic_j95"] ** 2 + gpu["random_j95"] ** 2 == pytest.approx(108010.0**2)
    assert by_component["dram"]["systematic_j95"] is None
    assert by_component["cpu0"]["board"] == "n042/load_model"


def test_tokens_are_those_of_the_stage_unless_the_record_says_otherwise(tmp_path: Path) -> None:
    counts = {"prompt": 5, "generated": 10, "evaluated": 40}
    plain = sidecar("a", "evaluate", 80.0, tokens=counts)
    said = sidecar("b", "evaluate", 80.0, tokens=counts)
    said["work"]["j_per_token"] = {
        "numerator": "total",
        "denominator": "tokens.generated",
        "value": {"value": 8.0, "low": 8.0, "high": 8.0},
    }
    attempts, _ = load_attempts([AttemptSource(write(tmp_path, plain, said), "r")])
    rows = {row["id"]: row for row in attempts.rows(named=True)}
    assert (rows["a"]["token_kind"], rows["a"]["tokens"], rows["a"]["j_per_token"]) == (
        "evaluated",
        40,
        2.0,
    )
    assert (rows["b"]["token_kind"], rows["b"]["j_per_token"]) == ("generated", 8.0)


def test_an_unresolved_energy_is_null(tmp_path: Path) -> None:
    record = sidecar("a", "evaluate", 80.0)
    record["total"]["energy_j"]["value"] = None
    record["components"][0] |= {"energy_j": None, "u95_j": None}
    attempts, _ = load_attempts([AttemptSource(write(tmp_path, record), "r")])
    assert attempts["energy_j"].to_list() == [None]
    assert attempts["cpu_energy_j"].to_list() == [None]


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, sidecar("a", "evaluate", 1.0))
    (tmp_path / "20260101T000000Z-a.trace.parquet").write_bytes(b"x")
    (tmp_path / ".tmp-half.json").write_text("{")
    attempts, _ = load_attempts([AttemptSource(tmp_path, "r")])
    assert attempts.height == 1


def without(record: dict[str, Any], dotted: str) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    *parents, last = dotted.split(".")
    inner = changed
    for name in parents:
        inner = inner[name]
    del inner[last]
    return changed


@pytest.mark.parametrize(
    "field",
    [
        *("schema", "record.id", "record.rule", "record.stage", "record.status", "time.duration_s"),
        *("total.measured_j", "total.missing", "run.host", "components"),
    ],
)
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, field: str) -> None:
    record = sidecar("a", "evaluate", 1.0)
    write(tmp_path, record)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(without(record, field)))
    with pytest.raises(AngelshareError, match=f"field `{field}` is missing") as caught:
        load_attempts([AttemptSource(tmp_path, "r")])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("status", "fine"), ("attempt", "one"), ("attempt", True), ("rule", 3)],
)
def test_a_wrong_value_is_named(tmp_path: Path, field: str, value: object) -> None:
    record = sidecar("a", "evaluate", 1.0)
    record["record"][field] = value
    with pytest.raises(AngelshareError, match=rf"field `record\.{field}` is {value!r}"):
        load_attempts([AttemptSource(write(tmp_path, record), "r")])


def test_another_schema_and_no_json_are_refused(tmp_path: Path) -> None:
    record = sidecar("a", "evaluate", 1.0) | {"schema": "energy-sidecar/9"}
    with pytest.raises(AngelshareError, match="is not energy-sidecar/1"):
        load_attempts([AttemptSource(write(tmp_path / "a", record), "r")])
    folder = write(tmp_path / "b")
    (folder / "x.json").write_text("{half")
    with pytest.raises(AngelshareError, match=r"x\.json: not a readable JSON file"):
        load_attempts([AttemptSource(folder, "r")])


def test_an_empty_folder_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(AngelshareError, match="the energy of run r is unknown"):
        load_attempts([AttemptSource(tmp_path / "missing", "r")])
    attempts, _ = load_attempts([AttemptSource(tmp_path / "missing")])
    assert attempts.is_empty()


def test_a_copied_record_is_not_charged_twice(tmp_path: Path) -> None:
    record = sidecar("a", "evaluate", 1.0)
    sources = [AttemptSource(write(tmp_path / name, record), name) for name in ("r", "s")]
    with pytest.raises(AngelshareError, match="attempt a stands in two records"):
        load_attempts(sources)


def test_the_largest_shift_of_a_phase_is_told(tmp_path: Path) -> None:
    record = sidecar("a", "evaluate", 100.0)
    record["phases"] = [
        {"name": "load", "shift_minus5pct_j": -7.0, "shift_plus5pct_j": 3.0},
        {"name": "train", "shift_minus5pct_j": 2.0, "shift_plus5pct_j": None},
    ]
    attempts, _ = load_attempts([AttemptSource(write(tmp_path, record), "r")])
    assert attempts["shift_5pct_j"].to_list() == [7.0]
