"""A second engine in the workflow: one job asks through both, on one bill."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from angelshare.energy.attempts import validate_sidecar
from tests.unit.evaluation.test_lighteval import PYTHON, ROWS, TASKS, real
from tests.workflow.conftest import Checkout


@real
def test_teacher_and_students_are_asked_by_both_engines(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    (tasks / "arc").mkdir(parents=True)
    (tasks / "arc/test.jsonl").write_bytes((ROWS / "arc.jsonl").read_bytes())
    (tasks / "lighteval_tasks.py").write_text(TASKS)
    checkout = Checkout.fresh(tmp_path / "checkout")
    config = checkout.config
    config["datasets"]["problems"] |= {
        "labelled": 64,
        "unlabelled": 0,
        "validation": 16,
        "test": 16,
    }
    config["teachers"]["demo"]["demo"] = {"problems": 200, "steps": 12, "layers": 1}
    config["training"] |= {"max_steps": 6, "warmup_steps": 1, "eval_every": 6}
    longest = config["evaluation"].pop("max_gen_toks")
    config["evaluation"] |= {
        "tasks": [
            {"task": "word_problems", "max_gen_toks": longest},
            {"task": "made_arc", "engine": "lighteval"},
        ],
        "task_folder": str(tasks),
        "lighteval_python": str(PYTHON),
    }
    block = {"students": ["tiny"], "datasets": ["problems"], "teacher": "demo", "seeds": [1]}
    config["grid"] = [{"pipeline": "kd", **block}]
    checkout.configure(**config)
    checkout.snakemake("all_frontiers")
    assert "Nothing to be done" in checkout.snakemake("all_frontiers")

    results = checkout.folder / "results"
    (run,) = pl.read_parquet(results / "accounting/runs.parquet").to_dicts()
    assert "made_arc_acc: measured" in run["teacher_scores"]
    assert 0 <= run["made_arc_acc"] <= 1
    scores = json.loads((results / f"scores/{run['run']}.json").read_text())
    by_task = {score["task"]: score["harness"] for score in scores}
    assert by_task["word_problems"].startswith("lm-evaluation-harness")
    assert by_task["made_arc"] == "lighteval 0.13.0 (transformers)"
    sidecar = results / f"scores/{run['run']}.energy.json"
    validate_sidecar(sidecar)
    assert '"evaluate"' in sidecar.read_text(), "lighteval's phase"
