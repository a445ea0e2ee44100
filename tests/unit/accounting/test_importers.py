"""Other programs' energies: read right, labelled with what they lack, on one frontier with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from studies import demo_study

from angelshare.accounting.imported import account_csv
from angelshare.accounting.importers import import_rows, write_own_quality, write_stages
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.tables import write_tables
from angelshare.errors import AngelshareError


def stage(name: str, gpu_j: float, seconds: float = 100.0, **more: Any) -> dict[str, Any]:
    """A stage as the paper's harness writes it; its CPU tracker failed without a word."""
    return {
        "stage_id": name,
        "stage_name": name,
        "start_time": 1.0,
        "end_time": 1.0 + seconds,
        "duration_seconds": seconds,
        "tokens_processed": 1000,
        "gpu_energy_joules": gpu_j,
        "gpu_avg_power_watts": gpu_j / seconds,
        "gpu_peak_power_watts": 700.0,
        "codecarbon_energy_kwh": 0.0,
        "codecarbon_emissions_kg": 0.0,
        "cpu_energy_joules": 0.0,
        "total_energy_joules": gpu_j,
        "total_energy_kwh": gpu_j / 3.6e6,
        "joules_per_token": gpu_j / 1000,
        "kwh_total": gpu_j / 3.6e6,
        **more,
    }


def test_an_experiment_summary(tmp_path: Path) -> None:
    name = "kd_olmo2_32b_to_1b_tulu_alpha08"
    summary = {
        "experiment_id": f"{name}_20260101_000000",
        "experiment_name": name,
        "stages": {
            f"preprocess_{name}": stage(f"preprocess_{name}", 3.6e5),
            f"logit_caching_{name}": stage(f"logit_caching_{name}", 3.6e6, cpu_energy_joules=1.0),
            f"student_train_{name}": stage(f"student_train_{name}", 7.2e6),
            f"gsm8k_{name}": stage(f"gsm8k_{name}", 3.6e5, tokens_processed=0),
        },
    }
    (tmp_path / "experiment_summary.json").write_text(json.dumps(summary))
    rows = {row["stage"]: row for row in import_rows("harness", [tmp_path])}
    assert list(rows) == ["preprocess", "teacher_logits", "student_train", "evaluate"]
    trained = rows["student_train"]
    assert (trained["pipeline"], trained["student"], trained["dataset"]) == ("kd", "1B", "tulu")
    assert trained["alpha"] == "0.8"
    assert trained["energy_kwh"] == pytest.approx(2.0)
    assert trained["cpu_kwh"] is None
    assert "no_cpu" in trained["lacks"]
    assert "no_cpu" not in rows["teacher_logits"]["lacks"]
    assert rows["teacher_logits"]["artifact"]
    assert rows["evaluate"]["tokens"] is None
    assert rows["preprocess"]["tokens"] is None
    assert write_stages(list(rows.values()), tmp_path / "stages.csv") == []
    tables = account_csv(tmp_path / "stages.csv", None, tmp_path / "out")
    (run,) = tables.runs.rows(named=True)
    assert run["one_off_j"] == pytest.approx(3.6e6 * (0.1 + 1.0 + 2.0 + 0.1))
    assert run["alpha"] == 0.8
    warnings = tables.attempts.filter(tables.attempts["stage"] == "student_train")["warnings"][0]
    for word in ("imported", "no_cpu", "no_dram", "no_bounds", "no_hardware"):
        assert word in warnings


def test_snapshots_of_a_stage_are_counted_once(tmp_path: Path) -> None:
    for step, seconds in ((200, 50.0), (1000, 400.0), (600, 200.0)):
        made = stage("sft_olmo2_7b", 1000 * seconds, seconds, snapshot=True, snapshot_step=step)
        (tmp_path / f"sft_olmo2_7b__step_{step}.json").write_text(json.dumps(made))
    (tmp_path / "config_a.json").write_text("{}")
    (row,) = import_rows("harness", [tmp_path])
    assert row["energy_kwh"] == pytest.approx(4e5 / 3.6e6)
    assert (row["pipeline"], row["student"]) == ("sft", "7B")
    assert "snapshot" in row["lacks"]


EMISSIONS = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,"
    "gpu_power,ram_power,cpu_energy,gpu_energy,ram_energy,energy_consumed,codecarbon_version,"
    "cpu_model,gpu_model,pue\n"
)


def test_codecarbon_without_its_pue(tmp_path: Path) -> None:
    path = tmp_path / "emissions.csv"
    path.write_text(
        EMISSIONS + "2026-01-01,student_train,5b0fa12a-3dd7-45bb-9766-cc326314d9f1,e,60,0.5,,,,,"
        "0.2,1.2,0.1,1.5,3.3.2,Xeon,1 x H100,1.5\n"
        "2026-01-01,evaluate,0a1b2c3d,e,60,0.5,,,,,0.2,,0.1,0.3,3.3.2,Xeon,,1.5\n"
    )
    named = tmp_path / "runs.csv"
    named.write_text(
        "id,run,pipeline,student,dataset,temperature\n"
        "5b0fa12a-3dd7-45bb-9766-cc326314d9f1,a,kd,1B,d,2\n0a1b2c3d,a,kd,1B,d,2\n"
    )
    train, evaluate = import_rows("codecarbon", [path], named)
    assert train["energy_kwh"] == pytest.approx(1.0)
    assert train["gpu_kwh"] == pytest.approx(0.8)
    assert train["hardware"] == "1 x H100"
    assert evaluate["energy_kwh"] == pytest.approx(0.3)
    assert evaluate["gpu_kwh"] is None
    assert evaluate["hardware"] == "Xeon"
    assert "measured_or_estimated" in train["lacks"]
    write_stages([train, evaluate], tmp_path / "stages.csv")
    tables = account_csv(tmp_path / "stages.csv", None, tmp_path / "out")
    assert tables.runs["student_only_j"].to_list() == pytest.approx([1.3 * 3.6e6])
    assert tables.runs["temperature"].to_list() == [2.0]
    assert tables.attempts["co2e_g"].to_list() == [500.0, 500.0]
    assert tables.attempts["duration_s"].to_list() == [60.0, 60.0]


def test_sacct_with_requeues_and_unknowns(tmp_path: Path) -> None:
    path = tmp_path / "sacct.txt"
    path.write_text(
        "JobIDRaw|JobName|State|ElapsedRaw|ConsumedEnergyRaw\n"
        "7|train|PREEMPTED|100|1000\n7.batch|batch|CANCELLED|100|900\n"
        "7|train|COMPLETED|300|\n7.0|python|COMPLETED|300|3600000\n"
        "8|other|COMPLETED|10|18446744073709551614\n"
        "9|train|RUNNING|10|50\n10|train|OUT_OF_MEMORY|10|40\n"
    )
    rows = import_rows("sacct", [path])
    assert [(row["id"], row["status"]) for row in rows] == [
        ("7", "preempted"),
        ("7", "ok"),
        ("10", "failed"),
    ]
    assert [row["energy_kwh"] * 3.6e6 for row in rows] == pytest.approx([1000, 3_600_000, 40])
    assert "whole_nodes" in rows[0]["lacks"]
    assert write_stages(rows, tmp_path / "stages.csv") == ["pipeline", "student"]
    named = tmp_path / "runs.csv"
    named.write_text(
        "id,run,pipeline,student,stage\n7,a,sft,1B,student_train\n10,a,sft,1B,evaluate\n"
    )
    write_stages(import_rows("sacct", [path], named), tmp_path / "stages.csv")
    tables = account_csv(tmp_path / "stages.csv", None, tmp_path / "out")
    (run,) = tables.runs.rows(named=True)
    assert run["student_only_j"] == pytest.approx(3_601_040)
    assert run["wasted_j"] == pytest.approx(1040)
    human = tmp_path / "human.txt"
    human.write_text("JobIDRaw|JobName|State|ConsumedEnergy\n7|train|COMPLETED|1.32M\n")
    assert import_rows("sacct", [human])[0]["energy_kwh"] * 3.6e6 == pytest.approx(1.32e6)


def test_ours_and_theirs_on_one_frontier(paper: Path, tmp_path: Path) -> None:
    ours = write_tables(demo_study(tmp_path / "in"), AccountingSettings(draws=500), tmp_path / "o")
    rows = import_rows("tables", [tmp_path / "o"])
    write_stages(rows, tmp_path / "ours.csv")
    write_own_quality(tmp_path / "o", tmp_path / "ours-quality.csv")
    alone = account_csv(tmp_path / "ours.csv", tmp_path / "ours-quality.csv", tmp_path / "alone")
    before = ours.runs.sort("run").select("student_only_j", "one_off_j", "quality")
    after = alone.runs.sort("run").select("student_only_j", "one_off_j", "quality")
    for name in before.columns:
        assert after[name].to_list() == pytest.approx(before[name].to_list())
    assert alone.summary["one_off_j_u95"].null_count() == 0
    both = account_csv([tmp_path / "ours.csv", paper / "stages.csv"], None, tmp_path / "both")
    assert both.runs.height == ours.runs.height + 9


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("harness", "[]", "not a JSON object"),
        ("harness", "{}", "neither a stage's JSON nor"),
        ("harness", '{"stage_name": "a", "total_energy_kwh": 0}', "stage a has no energy"),
        ("codecarbon", "a,b\n1,2\n", "lacks the column energy_consumed"),
        ("codecarbon", "project_name,energy_consumed\nx,much\n", "line 2: energy_consumed is no"),
        ("sacct", "JobIDRaw|State\n1|COMPLETED\n", "no sacct record with an energy"),
    ],
)
def test_faults_of_files_are_named(tmp_path: Path, form: str, text: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(AngelshareError, match=message):
        import_rows(form, [path])


def test_a_name_for_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(stage("sft_7b", 1.0)))
    (tmp_path / "runs.csv").write_text("id,run\nanother,a\n")
    with pytest.raises(AngelshareError, match="names another, which no harness file has"):
        import_rows("harness", [tmp_path / "s.json"], tmp_path / "runs.csv")


def test_a_folder_without_our_tables_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(AngelshareError, match=r"runs\.parquet is no accounting table"):
        import_rows("tables", [tmp_path])
