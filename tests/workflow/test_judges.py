"""A judged benchmark in the workflow: answered once, judged once, billed to whom it serves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from angelshare.energy.attempts import validate_sidecar
from tests.unit.evaluation.judge_server import judge_server
from tests.unit.evaluation.made_alpaca_eval import prefers, write_benchmark
from tests.workflow.conftest import Checkout

ROWS = Path(__file__).resolve().parents[1] / "data/benchmarks"


MT_BENCH_101 = {
    "benchmark": "mt_bench_101",
    "data": str(ROWS / "mt_bench_101.jsonl"),
    "prompts": str(ROWS / "mt_bench_101_prompts.py"),
}


def configured(
    checkout: Checkout, endpoint: str, version: str, benchmark: dict[str, str] = MT_BENCH_101
) -> Checkout:
    config = checkout.config
    config["datasets"]["problems"] |= {
        "labelled": 64,
        "unlabelled": 0,
        "validation": 16,
        "test": 16,
    }
    config["teachers"]["demo"]["demo"] = {"problems": 200, "steps": 12, "layers": 1}
    config["training"] |= {
        "max_steps": 6,
        "warmup_steps": 1,
        "eval_every": 6,
        "max_length": 128,
    }
    config["capture"]["max_length"] = 128
    config["evaluation"]["judged"] = [{**benchmark, "judge": "here", "max_new_tokens": 6}]
    config["judges"] = {"here": {"model": "judge", "endpoint": endpoint, "version": version}}
    config["grid"] = [
        {
            "pipeline": pipeline,
            "students": ["tiny"],
            "datasets": ["problems"],
            "teacher": "demo",
            "seeds": [1],
        }
        for pipeline in ("sft", "kd")
    ]
    checkout.configure(**config)
    return checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    return Checkout.fresh(tmp_path_factory.mktemp("judged") / "checkout")


def test_answers_and_verdicts_are_made_once_and_billed(checkout: Checkout) -> None:
    with judge_server(lambda *_: {"text": "Rating: [[4]]"}) as server:
        configured(checkout, server.url, "1").snakemake("all_frontiers")
        asked = len(server.asked)
        assert asked == 3 * 5, "the teacher's and two students' five turns"
        assert "Nothing to be done" in checkout.snakemake("all_frontiers")

        configured(checkout, server.url, "2")
        planned = checkout.planned("all_frontiers")
        assert planned["judge_student"] == 2
        assert planned["judge_teacher"] == 1
        assert not {"answer_student", "answer_teacher", "train_student"} & planned.keys()
        checkout.snakemake("all_frontiers")
        assert len(server.asked) == 2 * asked

        checkout.snakemake("all_frontiers", "--forcerun", "judge_student")
        assert len(server.asked) == 2 * asked, "verdicts that are kept are not asked for"

    results = checkout.folder / "results"
    runs = pl.read_parquet(results / "accounting/runs.parquet")
    assert runs["mt_bench_101_rating"].to_list() == [4.0, 4.0]
    attempts = pl.read_parquet(results / "accounting/attempts.parquet")
    judged = attempts.filter(pl.col("rule").is_in(["judge_student", "judge_teacher"]))
    assert set(judged["warnings"]) == {"judge_unmetered"}
    shares = pl.read_parquet(results / "accounting/shares.parquet")
    (kd,) = [name for name in runs["run"] if name.startswith("kd")]
    assert set(shares.filter(pl.col("kind").is_in(["answers", "judgements"]))["run"]) == {kd}
    (record, *_) = json.loads((results / f"judgements/mt_bench_101/{kd}.json").read_text())
    assert record["judge"]["version"] == "2"
    assert record["judge"]["replied_as"] == ["judge-2026-01"]
    assert record["judge"]["energy"].startswith("unmetered")
    for path in results.glob("judgements/*/*.energy.json"):
        validate_sidecar(path)


def wins_by_number(body: dict[str, Any], _number: int) -> dict[str, Any]:
    """The answer to instruction n is preferred with probability 0.2 + n / 100."""
    (n,) = re.findall(r"Say something of number (\d+)", body["messages"][-1]["content"])
    return prefers(body, 0.2 + int(n) / 100)


def test_alpaca_eval_2_in_the_workflow(checkout: Checkout, tmp_path: Path) -> None:
    count = 8
    files = {"benchmark": "alpaca_eval_2", **write_benchmark(tmp_path, count)}
    with judge_server(wins_by_number) as server:
        configured(checkout, server.url, "1", files).snakemake("all_frontiers")
        asked = len(server.asked)
        assert asked == 3 * count, "the teacher's and two students' answers"
        assert "Nothing to be done" in checkout.snakemake("all_frontiers")

        Path(files["gamed"]).write_text(Path(files["gamed"]).read_text() + "\n")
        planned = checkout.planned("all_frontiers")
        assert not {"answer_student", "answer_teacher", "train_student"} & planned.keys()
        assert planned["judge_student"] == 2
        checkout.snakemake("all_frontiers")
        assert len(server.asked) == asked, "verdicts on the same answers are kept"

    results = checkout.folder / "results"
    overlap = json.loads((results / "overlap/problems.json").read_text())["benchmarks"]
    assert overlap["alpaca_eval_2"]["items"] == count
    runs = pl.read_parquet(results / "accounting/runs.parquet")
    rates = runs["alpaca_eval_2_win_rate"].to_list()
    assert rates == [pytest.approx(23.5)] * 2, "the mean of 20 to 27 percent"
    assert all(0 < rate < 100 for rate in runs["alpaca_eval_2_length_controlled_winrate"])
    quality = "alpaca_eval_2_length_controlled_winrate: measured"
    assert all(quality in said for said in runs["teacher_scores"])
    for run in runs["run"]:
        judged = json.loads((results / f"judgements/alpaca_eval_2/{run}.json").read_text())
        assert judged[0]["metric"] == "length_controlled_winrate", "what quality counts"
        assert judged[0]["stderr"] > 0
        assert judged[0]["samples"] == count
