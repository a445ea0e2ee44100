"""What a finished study must show."""

import json
import re
import zipfile
from pathlib import Path

import polars as pl
import pytest
from huggingface_hub import ModelCard

from angelshare.energy.attempts import validate_sidecar

RULES = {
    "prerun",
    "prepare_dataset",
    "train_tokenizer",
    "demo_teacher",
    "capture_logits",
    "generate_corpus",
    "evaluate_teacher",
    "seal",
    "train_student",
    "evaluate_student",
    "account",
    "frontiers",
}


def sidecars(checkout):
    """Every declared sidecar of a checkout and its store."""
    declared = [
        path
        for folder in ("artifacts", "results")
        for path in checkout.folder.glob(f"{folder}/**/*energy.json")
    ]
    assert declared
    return declared


def test_a_second_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in finished.snakemake("all_frontiers")


def test_every_rule_left_a_valid_sidecar(finished):
    rules = set()
    for path in sidecars(finished):
        validate_sidecar(path)
        rules.add(json.loads(path.read_text())["record"]["rule"])
    assert rules == RULES


def test_every_sidecar_says_what_was_measured_and_what_was_estimated(finished):
    for path in sidecars(finished):
        record = json.loads(path.read_text())
        assert {c["quality"] for c in record["components"]} <= {"measured", "estimated", "missing"}
        total = record["total"]
        if total["energy_j"] is not None:
            parts = total["measured_j"] + total["estimated_j"]
            assert total["energy_j"]["value"] == pytest.approx(parts)


def test_the_attempts_sum_to_the_bills_in_the_tables(finished):
    tables = finished.folder / "results/accounting"
    attempts = pl.read_parquet(tables / "attempts.parquet")
    artifacts = pl.read_parquet(tables / "artifacts.parquet")
    runs = pl.read_parquet(tables / "runs.parquet")
    for row in artifacts.iter_rows(named=True):
        folder = finished.folder / "artifacts" / row["kind"] / row["key"] / "attempts"
        records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        spent = sum(record["total"]["energy_j"]["value"] for record in records)
        assert row["energy_j"] == pytest.approx(spent, rel=1e-9)
        assert row["shared_j"] + row["unallocated_j"] == pytest.approx(row["energy_j"], rel=1e-9)
    for row in runs.iter_rows(named=True):
        own = attempts.filter(pl.col("run") == row["run"])["energy_j"].sum()
        assert row["student_only_j"] == pytest.approx(own, rel=1e-9)
        assert row["student_only_j"] <= row["amortized_j"] <= row["one_off_j"]


def test_prompts_and_answers_have_energies_per_token_of_their_own(finished):
    tables = finished.folder / "results/accounting"
    artifacts = pl.read_parquet(tables / "artifacts.parquet")
    runs = pl.read_parquet(tables / "runs.parquet")
    for frame in (artifacts.filter(pl.col("kind").is_in(["corpus", "scores"])), runs):
        assert frame.height > 0
        assert frame["prefill_j_per_token"].min() > 0
        assert frame["decode_j_per_token"].min() > 0
    assert artifacts.filter(kind="logits")["decode_j_per_token"].null_count() == 1


def test_the_teacher_beats_its_students_and_they_beat_an_untrained_one(finished):
    results = finished.folder / "results"
    runs = pl.read_parquet(results / "accounting/runs.parquet")
    assert runs["quality"].max() < 1
    (path,) = finished.folder.glob("artifacts/scores/*/manifest.json")
    (scores,) = json.loads(path.read_text())["parts"][0]["files"]
    score = finished.folder / f"artifacts/objects/{scores['sha256'][:2]}/{scores['sha256']}.json"
    (teacher,) = json.loads(score.read_text())
    mean = runs.group_by("pipeline").agg(pl.col("word_problems_exact_match_after_hash").mean())
    best = mean["word_problems_exact_match_after_hash"].max()
    assert teacher["value"] > 0.5
    assert 0 < best < teacher["value"]
    for path in results.glob("students/*/training.json"):
        training = json.loads(path.read_text())
        assert training["cross_entropy"] < 0.5 * training["untrained_cross_entropy"]


def test_the_report_stands_alone(finished):
    page = (finished.folder / "results/report.html").read_text()
    html = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert len(html) > 10_000
    assert 'src="http' not in page
    assert 'href="http' not in html
    for name in ("frontier", "stages", "amortization"):
        assert (finished.folder / f"results/figures/{name}.svg").stat().st_size > 1000
        assert (finished.folder / f"results/figures/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_snakemakes_own_report_holds_the_figures_with_captions(finished, tmp_path):
    finished.snakemake("all_frontiers", "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as packed:
        files = [Path(name) for name in packed.namelist()]
        (page,) = (name for name in files if len(name.parts) == 2)
        text = packed.read(str(page)).decode()
    results = json.loads(re.search(r"var results = (\{.*\});", text)[1])
    for figure in ("frontier", "stages", "amortization", "sweeps"):
        for kind in ("svg", "png", "pdf"):
            shown = results[f"results/figures/{figure}.{kind}"]
            assert shown["labels"] == {"what": figure, "format": kind}
            assert len(shown["caption"]) > 50
            assert page.parent / shown["data_uri"] in files
    assert "report" in results["results/report.html"]["labels"].values()


def test_every_student_has_a_card_that_the_hub_can_read(finished):
    runs = pl.read_parquet(finished.folder / "results/accounting/runs.parquet")
    for row in runs.iter_rows(named=True):
        card = ModelCard.load(finished.folder / f"results/students/{row['run']}/model/README.md")
        emissions = card.data.co2_eq_emissions["emissions"]
        assert emissions == pytest.approx(row["amortized_co2e_g"], abs=1e-6)
        (result,) = card.data.eval_results
        assert result.metric_value == row["word_problems_exact_match_after_hash"]
        assert f"{row['one_off_j']:,.1f} J" in card.text


def test_the_findings_are_three_lines(finished):
    printed = finished.run("angelshare", "findings")
    assert "results/report.html" in printed
    lines = (finished.folder / "results/findings.txt").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Frontier: student only")
    assert "N*" in lines[1]


def test_the_store_is_whole_and_listed(finished):
    assert "are whole" in finished.run("angelshare", "verify")
    suffixes = {path.suffix for path in finished.folder.glob("artifacts/objects/*/*")}
    assert suffixes == {".parquet", ".json", ".safetensors"}
    listed = finished.run("angelshare", "ls")
    assert {"dataset", "tokenizer", "model", "logits", "corpus", "scores"} <= set(listed.split())
