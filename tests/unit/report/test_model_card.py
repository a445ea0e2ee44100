"""A student's card: what the hub reads of it, and what people do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from angelshare.config import load_config
from angelshare.grid import plan_study
from angelshare.report.model_card import card, hardware_of

GRIDS = Path(__file__).resolve().parents[3] / "config/grids"
COST = {
    "student_only_j": 1000.0,
    "student_only_low_j": 900.0,
    "student_only_high_j": 1100.0,
    "student_only_co2e_g": 0.1,
    "one_off_j": 5000.0,
    "one_off_low_j": None,
    "one_off_high_j": None,
    "co2e_g": 0.5,
    "amortized_j": 2000.0,
    "amortized_low_j": 1800.0,
    "amortized_high_j": 2200.0,
    "amortized_co2e_g": 0.2,
}
TRAINING = {
    "cross_entropy": 1.25,
    "best_step": 75,
    "steps": 150,
    "parameters": 7_298_011_136,
    "trained_tokens": 30_000_000,
}
SCORES = [
    {
        "task": "gsm8k",
        "metric": "exact_match",
        "filter": "strict-match",
        "value": 0.71,
        "stderr": 0.012,
        "samples": 1319,
        "task_version": "3.0",
        "few_shot": 5,
        "harness": "lm-evaluation-harness 0.4.13",
    }
]
JUDGED = {
    **SCORES[0],
    "task": "mt_bench_101",
    "metric": "rating",
    "value": 6.2,
    "few_shot": 0,
    "harness": "angelshare, MT-Bench-101's published prompts",
    "judge": {"name": "gpt4", "model": "gpt-4-1106-preview"},
}


def card_of(name: str, pipeline: str, **cost) -> ModelCard:
    config = load_config(yaml.safe_load((GRIDS / f"{name}.yaml").read_text()))
    runs = plan_study(config).runs.values()
    run = next(run for run in runs if run.pipeline == pipeline and run.student == "7b")
    return ModelCard(
        card(run, config, {**COST, **cost}, TRAINING, [*SCORES, JUDGED], "NVIDIA H100")
    )


def test_the_hub_reads_lineage_results_and_emissions() -> None:
    data = card_of("olmo2-paper", "kd").data
    assert data.base_model == "allenai/OLMo-2-1124-7B"
    assert data.datasets == ["allenai/tulu-3-sft-mixture"]
    result, judged = data.eval_results
    assert judged.metric_name == "rating (judged by gpt-4-1106-preview)"
    assert judged.source_url.endswith("mtbench101/mt-bench-101")
    assert (result.dataset_name, result.metric_value) == ("gsm8k", 0.71)
    emissions = data.co2_eq_emissions
    assert emissions["emissions"] == 0.2
    assert emissions["hardware_used"] == "NVIDIA H100"
    assert emissions["training_type"] == "fine-tuning"


def test_a_routed_run_names_all_its_data_and_teachers() -> None:
    values = yaml.safe_load((GRIDS / "olmo2-paper.yaml").read_text())
    values["datasets"]["more"] = {
        **values["datasets"]["tulu3"],
        "name": "some/data",
        "revision": "abc",
    }
    values["teachers"]["second"] = {"model": "some/teacher", "revision": "abc"}
    routes = {"tulu3": "olmo2_32b", "more": "second"}
    values["grid"] = [{"pipeline": "kd", "students": ["7b"], "routes": routes, "seeds": [1]}]
    config = load_config(values)
    (run,) = plan_study(config).runs.values()
    made = ModelCard(card(run, config, COST, TRAINING, [*SCORES, JUDGED], "NVIDIA H100"))
    assert made.data.datasets == ["allenai/tulu-3-sft-mixture", "some/data"]
    assert "| teacher | some/teacher at abc |" in made.text
    assert "| logits: second on more, top 100 |" in made.text


def test_people_read_the_three_views_and_where_it_comes_from() -> None:
    text = card_of("olmo2-paper", "kd").text
    assert "| Student only | 1,000.0 J (900.0 to 1,100.0) | 0.1 g |" in text
    assert "| One-off | 5,000.0 J | 0.5 g |" in text
    assert "| Amortised | 2,000.0 J (1,800.0 to 2,200.0) | 0.2 g |" in text
    assert "| teacher | allenai/OLMo-2-0325-32B-SFT at main |" in text
    assert "| logits: olmo2_32b on tulu3, top 100 |" in text
    assert "| temperature | 1 |" in text
    assert "| gsm8k (version 3.0) | exact_match (5-shot) | 0.7100 | 0.0120 | 1319 |" in text


def test_a_baseline_names_no_teacher_and_unknown_emissions_are_not_zero() -> None:
    baseline = card_of("olmo2-paper", "sft", amortized_co2e_g=None)
    assert "| teacher |" not in baseline.text
    assert "emissions" not in baseline.data.co2_eq_emissions


@pytest.mark.parametrize(("pipeline", "warned"), [("sft", False), ("synthetic_sft", True)])
def test_a_teacher_s_licence_is_passed_on(pipeline: str, warned: bool) -> None:
    text = card_of("qwen2.5-72b-7b", pipeline).text
    assert ("**Licence**: outputs of Qwen/Qwen2.5-72B-Instruct@main" in text) is warned


def test_the_hardware_is_the_gpus_or_the_processor() -> None:
    cpu = {"component": "cpu0", "device": "AMD EPYC"}
    gpus = [{"component": f"gpu{i}", "device": "NVIDIA H100"} for i in range(2)]
    assert hardware_of({"devices": [cpu, *gpus]}) == "NVIDIA H100"
    assert hardware_of({"devices": [cpu, {"component": "dram", "device": None}]}) == "AMD EPYC"
