"""The grids that ship: what each plans, counted by hand, without a network or weights."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import pytest
import yaml

from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.overview import overview
from angelshare.plans import Study

GRIDS = Path(__file__).resolve().parents[2] / "config/grids"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("planning a study must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def values_of(name: str) -> dict:
    return yaml.safe_load((GRIDS / f"{name}.yaml").read_text())


def study_of(name: str, tmp_path: Path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return plan_study(load_config(values_of(name), name))


def test_the_paper_s_grid(tmp_path, monkeypatch) -> None:
    study = study_of("olmo2-paper", tmp_path, monkeypatch)
    runs = Counter((run.pipeline, run.student) for run in study.runs.values())
    # Three seeds on three data sets; sweeps on one: T and alpha have two more values each, answers
    # two more lengths, prompts one more number.
    assert runs == {
        ("sft", "1b"): 9,
        ("sft", "7b"): 9,
        ("sft", "13b"): 9,
        ("kd", "1b"): 9 + 3 * (2 + 2),
        ("kd", "7b"): 9 + 3 * (2 + 2),
        ("kd", "13b"): 9,
        ("synthetic_sft", "1b"): 9 + 3 * (2 + 1),
        ("synthetic_sft", "7b"): 9 + 3 * (2 + 1),
        ("synthetic_sft", "13b"): 9,
    }
    assert len(study.runs) == 123
    kinds = Counter(plan.kind for plan in study.artifacts.values())
    # One cache per data set serves every temperature, alpha, size and seed; the teacher is scored
    # once for all of them; 3,500 prompts are a data set and a corpus of their own.
    judged = {"answers": 2, "judgements": 2}
    assert kinds == {"dataset": 4, "logits": 3, "corpus": 3 + 2 + 1, "scores": 1, **judged}
    parts = Counter({plan.label: plan.parts for plan in study.artifacts.values()})
    assert parts["olmo2_32b answers tulu3"] == 4
    assert parts["olmo2_32b answers tulu3, 3500 rows"] == 2
    assert {p.recipe["capture"]["codec"]["top_k"] for p in by_kind(study, "logits")} == {100}
    lengths = Counter(
        plan.recipe["decoding"]["max_new_tokens"] for plan in by_kind(study, "corpus")
    )
    assert lengths == {512: 4, 256: 1, 1024: 1}


def by_kind(study: Study, kind: str) -> list:
    return [plan for plan in study.artifacts.values() if plan.kind == kind]


def test_the_paper_s_settings() -> None:
    """As the paper states them; its own words are in docs/paper.md."""
    config = load_config(values_of("olmo2-paper"))
    training = config.training
    assert (training.batch_size, training.accumulation, training.eval_batch_size) == (4, 16, 1)
    assert (training.optimizer.name, training.optimizer.learning_rate) == ("adafactor", 5e-5)
    assert (training.warmup_steps, training.clip_norm, training.max_length) == (100, 1.0, 1024)
    assert (training.stopping.tolerance, training.stopping.patience) == (2e-3, 3)
    assert (config.loss.alpha, config.loss.temperature) == (0.5, 1.0)
    assert (config.generation.temperature, config.generation.top_p) == (0.7, 0.9)
    swept = [run.hyperparameters for run in plan_study(config).runs.values()]
    values = {
        name: {run[name] for run in swept if name in run}
        for name in ("temperature", "alpha", "max_new_tokens", "labelled")
    }
    assert values == {
        "temperature": {1.0, 2.0, 4.0},
        "alpha": {0.3, 0.5, 0.8},
        "max_new_tokens": {256.0, 1024.0},  # 512 is the base
        "labelled": {3500.0},  # 7,000 is the base
    }


@pytest.mark.parametrize("name", ["llama3-70b-8b", "qwen2.5-72b-7b"])
def test_the_large_pairs(name, tmp_path, monkeypatch) -> None:
    study = study_of(name, tmp_path, monkeypatch)
    assert Counter(run.pipeline for run in study.runs.values()) == {
        "sft": 3,
        "kd": 3,
        "synthetic_sft": 3,
    }
    kinds = Counter(plan.kind for plan in study.artifacts.values())
    assert kinds == {"dataset": 1, "logits": 1, "corpus": 1, "scores": 1}
    assert all("tokenizer_of" in run.recipe for run in study.runs.values())


def test_the_small_real_model_s_grid(tmp_path, monkeypatch) -> None:
    """With stand-ins for what `make smollm2` lays out."""
    for name in ("model/config.json", "train.jsonl", "tasks/arc_easy_local.yaml"):
        path = tmp_path / "models/smollm2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    study = study_of("smollm2", tmp_path, monkeypatch)
    assert Counter(run.pipeline for run in study.runs.values()) == {
        "sft": 2,
        "kd": 2,
        "synthetic_sft": 2,
    }
    parts = {plan.kind: plan.parts for plan in study.artifacts.values()}
    assert parts == {"dataset": 1, "logits": 1, "corpus": 2, "scores": 1}
    before = study.evaluation
    path.write_text("{changed: true}")
    after = study_of("smollm2", tmp_path, monkeypatch)
    assert before["task_folder"] != after.evaluation["task_folder"]
    assert {p.key for p in by_kind(study, "scores")}.isdisjoint(after.artifacts)


def test_a_missing_model_folder_says_so(tmp_path, monkeypatch) -> None:
    with pytest.raises(AngelshareError, match=r"model has no config\.json"):
        study_of("smollm2", tmp_path, monkeypatch)


def test_a_variant_is_a_data_set_of_its_own_and_shares_the_teacher_s_scores() -> None:
    values = values_of("qwen2.5-72b-7b")
    block = values["grid"][2]
    values["grid"] = [{**block, "labelled": [7000, 3500], "seeds": [1]}]
    study = plan_study(load_config(values))
    kinds = Counter(plan.kind for plan in study.artifacts.values())
    # 7,000 is what the data set has anyway: the same artifact as without the sweep.
    assert kinds == {"dataset": 2, "corpus": 2, "scores": 1}
    plain = plan_study(load_config({**values, "grid": [block]}))
    assert {p.key for p in by_kind(plain, "corpus")} < {p.key for p in by_kind(study, "corpus")}
    assert study.datasets["tulu3"].recipe["source"]["labelled"] == 7000
    names = sorted(name.rpartition("-")[0] for name in study.runs)
    assert names == ["synthetic_sft-7b-tulu3-L3500-s1", "synthetic_sft-7b-tulu3-L7000-s1"]


def test_how_work_is_carried_out_is_in_no_recipe() -> None:
    values = values_of("qwen2.5-72b-7b")
    before = plan_study(load_config(values))
    values["generation"] |= {"tensor_parallel": 2, "prefix_caching": False, "gpu_memory": 0.8}
    after = plan_study(load_config(values))
    assert (set(after.artifacts), set(after.runs)) == (set(before.artifacts), set(before.runs))


def test_a_filter_changes_what_is_learnt_and_costs_no_teacher_time() -> None:
    values = values_of("qwen2.5-72b-7b")
    before = plan_study(load_config(values))
    values["grid"][2]["answers"] = {"drop_cut": True, "max_repetition": 0.5}
    after = plan_study(load_config(values))
    assert set(after.artifacts) == set(before.artifacts)
    changed = set(before.runs) - set(after.runs)
    assert {before.runs[name].pipeline for name in changed} == {"synthetic_sft"}
    assert len(changed) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_new_tokens": [64]}, "belong to the teacher's answers, which pipeline 'sft'"),
        ({"generation": {"top_p": 0.5}}, "belong to the teacher's answers"),
        ({"answers": {"drop_cut": True}}, "belong to the teacher's answers"),
        ({"pipeline": "kd", "training": {"batch_size": 0}}, "grid[0].training.batch_size"),
        ({"pipeline": "synthetic_sft", "generation": {"top_p": 2}}, "grid[0].generation.top_p"),
        ({"labelled": [0]}, "grid[0].labelled[0] must be greater than 0"),
    ],
)
def test_a_sweep_that_means_nothing_is_one_clear_line(change, says) -> None:
    values = values_of("qwen2.5-72b-7b")
    values["grid"][0] |= change
    with pytest.raises(AngelshareError) as raised:
        load_config(values)
    assert says in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_who_lends_a_tokenizer_is_checked() -> None:
    values = values_of("qwen2.5-72b-7b")
    values["students"]["7b"]["tokenizer_of"] = "qwen25_27b"
    with pytest.raises(AngelshareError, match=r"tokenizer_of: there is no .* Did you mean"):
        load_config(values)
    values["students"]["7b"] = {
        "tokenizer_of": "qwen25_72b",
        "init": {"hidden_size": 8, "layers": 1, "heads": 1, "intermediate_size": 8},
    }
    with pytest.raises(AngelshareError, match="a student from scratch needs an entry"):
        load_config(values)


def test_the_overview_fits_a_screen_and_says_who_shares_what(tmp_path, monkeypatch) -> None:
    study = study_of("olmo2-paper", tmp_path, monkeypatch)
    sources = {
        key: "store" if plan.kind == "dataset" else "made" for key, plan in study.artifacts.items()
    }
    text = overview(study, sources)
    lines = text.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    (cache,) = (line for line in lines if line.startswith("logits") and "on tulu3" in line)
    assert cache.endswith("made   33 runs: kd 33")
    (dataset,) = (line for line in lines if line.startswith("dataset") and "3500" in line)
    assert dataset.endswith("store  6 runs: synthetic_sft 6")
    assert lines[-1] == "123 runs in all"


def test_the_paradigms_share_a_teacher_and_what_it_cached(tmp_path, monkeypatch) -> None:
    study = study_of("paradigms", tmp_path, monkeypatch)
    runs = Counter(run.pipeline for run in study.runs.values())
    names = ("kd", "feature", "relation", "together", "on_policy", "uld")
    assert runs == dict.fromkeys(names, 3) | {"sft": 6}
    kinds = Counter(plan.kind for plan in study.artifacts.values())
    assert kinds == {
        **dict.fromkeys(("dataset", "model", "logits", "scores"), 1),
        **dict.fromkeys(("states", "tokenizer"), 2),
    }


def test_a_teacher_in_memory_is_an_input_and_its_work_no_artifact(tmp_path, monkeypatch) -> None:
    study = study_of("paradigms", tmp_path, monkeypatch)
    of = {run.pipeline: run for run in study.runs.values()}
    online = of["on_policy"]
    assert online.distilled
    assert {role: plan.kind for role, plan in online.inputs.items()} == {
        "dataset": "dataset",
        "tokenizer": "tokenizer",
        "teacher": "model",
    }
    assert {p.kind for p in online.billed()} == {"dataset", "tokenizer", "model", "scores"}
    assert online.recipe["on_policy"]["student_share"] == 0.5
    assert online.recipe["loss"] == of["kd"].recipe["loss"]
    assert "on_policy" not in of["kd"].recipe
    values = values_of("paradigms")
    values["pipelines"]["on_policy"]["on_policy"]["batch_size"] = 7
    assert plan_study(load_config(values)).runs.keys() == study.runs.keys()
    values["pipelines"]["on_policy"]["on_policy"]["student_share"] = 0.25
    assert plan_study(load_config(values)).runs.keys() != study.runs.keys()
    values["pipelines"]["on_policy"]["data"] = "corpus"
    runs = plan_study(load_config(values)).runs.values()
    asked = next(run for run in runs if run.pipeline == "on_policy")
    assert asked.inputs.keys() == {"dataset", "tokenizer", "corpus", "teacher"}
    assert asked.recipe["splits"] == ["train", "unlabelled"]


def blocks_of(values: dict, pipeline: str) -> list[dict]:
    return [block for block in values["grid"] if block["pipeline"] == pipeline]


TINY = {
    "tokenizer": "demo",
    "init": {"hidden_size": 48, "layers": 2, "heads": 2, "intermediate_size": 128},
}


@pytest.mark.parametrize(
    ("section", "change", "says"),
    [
        (
            "pipelines",
            {"on_policy": {"data": "dataset", "on_policy": {"max_new_tokens": 64}}},
            "max_new_tokens is 64, training.max_length 64",
        ),
        ("students", {"tiny": {**TINY, "gpus": 2}}, "several processes, and on_policy by one"),
        ("students", {"tiny": {**TINY, "tokenizer": "other"}}, "would mean another token"),
        (
            "pipelines",
            {"on_policy": {"data": "dataset", "on_policy": {}, "loss": {"divergence": "uld"}}},
            "compares what was cached with another tokenizer",
        ),
        (
            "grid",
            {"teacher": None, "datasets": [], "routes": {"problems": "demo", "more": "demo"}},
            "reads a teacher in memory, which one run has of one dataset",
        ),
        ("grid", {"teacher": None}, "pipeline 'on_policy' learns from it"),
    ],
)
def test_what_cannot_be_on_policy_is_one_clear_line(section, change, says) -> None:
    values = values_of("paradigms")
    values["tokenizers"]["other"] = {"dataset": "problems", "vocab_size": 200}
    values["datasets"]["more"] = {**values["datasets"]["problems"], "seed": 8}
    values["grid"] = blocks_of(values, "on_policy")
    if section == "grid":
        values["grid"] = [{**values["grid"][0], **change}]
    else:
        values[section] = {**values[section], **change}
    with pytest.raises(AngelshareError, match=says):
        load_config(values)


def test_a_restricted_teacher_in_memory_is_warned_of() -> None:
    from angelshare.provenance import licence_warnings

    values = values_of("paradigms")
    values["grid"] = [{**block, "seeds": [1]} for block in blocks_of(values, "on_policy")]
    config = load_config(values)
    assert licence_warnings(config, plan_study(config)) == []
    values["teachers"]["demo"]["outputs_restricted"] = True
    config = load_config(values)
    (warning,) = licence_warnings(config, plan_study(config))
    assert warning.startswith("run on_policy-tiny-problems-")
    # An assistant that was trained so hands the restriction on, whatever is cached of it.
    assistant = {"pipeline": "on_policy", "student": "tiny", "dataset": "problems", "seed": 1}
    values["teachers"]["assistant"] = {**assistant, "teacher": "demo"}
    values["grid"] = [{**values["grid"][0], "pipeline": "kd", "teacher": "assistant"}]
    config = load_config(values)
    warnings = licence_warnings(config, plan_study(config))
    assert any(warning.startswith("logits ") for warning in warnings)
