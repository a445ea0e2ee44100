"""Judged benchmarks in configuration, recipes and plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from angelshare.config import Config, load_config
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.settings import AlpacaEvalSettings
from angelshare.files import publish_json
from angelshare.gather import gather
from angelshare.grid import plan_study
from angelshare.planning.plan import make_plan
from angelshare.plans import Study
from angelshare.revisions import unresolved

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "tests/data/benchmarks"
REMOTE = {"model": "m", "endpoint": "http://127.0.0.1:9/v1"}
LOCAL = {"model": "some/judge-7B", "revision": "main"}


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    found = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for name in ("mt_bench_101.jsonl", "mt_bench_101_prompts.py"):
        Path(name).write_bytes((ROWS / name).read_bytes())
    found["judges"] = {"here": REMOTE}
    found["evaluation"] = found.get("evaluation", {}) | {
        "judged": [
            {
                "benchmark": "mt_bench_101",
                "judge": "here",
                "data": "mt_bench_101.jsonl",
                "prompts": "mt_bench_101_prompts.py",
            }
        ]
    }
    return found


def keys(study: Study) -> dict[str, set[str]]:
    """The keys of each kind of artifact, and of the runs."""
    found: dict[str, set[str]] = {"runs": {run.key for run in study.runs.values()}}
    for plan in study.artifacts.values():
        found.setdefault(plan.kind, set()).add(plan.key)
    return found


def changed(values: dict[str, Any], **entry: Any) -> set[str]:
    """The kinds of artifacts that are others with this change of the benchmark's entry."""
    before = keys(plan_study(load_config(values)))
    values["evaluation"]["judged"][0] |= entry
    after = keys(plan_study(load_config(values)))
    return {kind for kind in before if before[kind] != after[kind]}


def test_another_judge_has_nothing_answered_again(values: dict[str, Any]) -> None:
    values["judges"]["other"] = {**REMOTE, "version": "2"}
    assert changed(values, judge="other") == {"judgements"}


def test_execution_changes_nothing_and_answers_change_their_judgements(
    values: dict[str, Any],
) -> None:
    assert changed(values, batch_size=3) == set()
    assert changed(values, max_new_tokens=9) == {"answers", "judgements"}
    Path("moved.jsonl").write_bytes(Path("mt_bench_101.jsonl").read_bytes())
    assert changed(values, data="moved.jsonl") == set()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"judge": "her"}, "mt_bench_101.judge: there is no 'her'; known are here. Did you mean"),
        ({"data": "nowhere"}, "evaluation.judged.mt_bench_101.data: there is no file 'nowhere'"),
        ({"benchmark": "mt_bench"}, "judged[0].benchmark must be one of 'mt_bench_101', 'alpaca"),
    ],
)
def test_what_is_wrong_is_said_before_any_job(values, change, says) -> None:
    values["evaluation"]["judged"][0] |= change
    with pytest.raises(AngelshareError) as raised:
        load_config(values)
    assert says in str(raised.value)


@pytest.fixture
def alpaca(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """AlpacaEval 2 instead, whether its package is here or not."""
    monkeypatch.setattr(AlpacaEvalSettings, "needs", None)
    for name in ("baseline.json", "gamed.csv"):
        Path(name).write_text(name)
    entry = {"judge": "here", "data": "baseline.json", "gamed": "gamed.csv"}
    values["evaluation"]["judged"] = [{"benchmark": "alpaca_eval_2", **entry}]
    return values


def test_what_only_decides_verdicts_has_nothing_answered_again(alpaca: dict[str, Any]) -> None:
    Path("other.csv").write_text("other")
    assert changed(alpaca, gamed="other.csv") == {"judgements"}
    Path("other.json").write_text("other")
    assert changed(alpaca, data="other.json") == {"answers", "judgements"}


def test_what_alpaca_eval_lacks_is_said_before_any_job(alpaca, monkeypatch) -> None:
    alpaca["judges"]["here"] = LOCAL
    monkeypatch.setattr(AlpacaEvalSettings, "needs", "alpaca_eval==0.0.1")
    with pytest.raises(AngelshareError) as raised:
        load_config(alpaca)
    assert "pip install alpaca_eval==0.0.1" in str(raised.value)
    assert "serve the model (vllm serve)" in str(raised.value)


def test_published_scores_must_be_of_a_task_that_is_asked(values: dict[str, Any]) -> None:
    folder = Path("model")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    cited = {"score": 0.5, "source": "card"}
    values["teachers"]["demo"] = {"model": "./model", "scores": {"mt_bench_101": cited}}
    config = load_config(values)
    assert config.cited_scores("demo")["mt_bench_101"].source == "card"
    assert config.cited_scores(None) == {}
    values["teachers"]["demo"]["scores"] = {"mt_bench": cited}
    with pytest.raises(AngelshareError, match=r"teachers.demo.scores: there is no 'mt_bench'"):
        load_config(values)


CITED = {"score": 5.0, "stderr": 0.5, "source": "its card"}


@pytest.fixture
def pretrained(values: dict[str, Any]) -> dict[str, Any]:
    """A teacher from a folder, asked two tasks and one judged benchmark; one student of it."""
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    values["teachers"] = {"big": {"model": "./model"}}
    values["students"] = {"small": {"init": {"model": "./model"}}}
    values["tokenizers"] = {}
    values["evaluation"]["tasks"] = ["word_problems", "gsm8k"]
    values["grid"] = [
        {
            "pipeline": pipeline,
            "students": ["small"],
            "datasets": ["problems"],
            "teacher": "big",
            "seeds": [1],
        }
        for pipeline in ("sft", "kd")
    ]
    return values


def teacher_work(values: dict[str, Any]) -> dict[str, Any]:
    """Of each kind of artifact that evaluates the teacher, what is asked."""
    study = plan_study(load_config(values))
    return {
        plan.kind: [task["task"] for task in plan.recipe["evaluation"]["tasks"]]
        if plan.kind == "scores"
        else plan.recipe.get("benchmark")
        for plan in study.artifacts.values()
        if plan.kind in ("scores", "answers", "judgements")
    }


def test_a_teacher_is_evaluated_on_what_is_not_cited(pretrained: dict[str, Any]) -> None:
    assert set(teacher_work(pretrained)) == {"scores", "answers", "judgements"}
    before = keys(plan_study(load_config(pretrained)))
    cited = pretrained["teachers"]["big"]["scores"] = {"word_problems": CITED}
    assert teacher_work(pretrained)["scores"] == ["gsm8k"]
    (scores,) = [
        plan
        for plan in plan_study(load_config(pretrained)).artifacts.values()
        if plan.kind == "scores"
    ]
    assert [task.task for task in scores.settings.tasks] == ["gsm8k"], "what its job asks"
    assert "dataset" not in scores.inputs, "no task asks a dataset any more"
    cited["mt_bench_101"] = CITED
    assert teacher_work(pretrained) == {"scores": ["gsm8k"]}
    cited["gsm8k"] = CITED
    assert teacher_work(pretrained) == {}
    assert keys(plan_study(load_config(pretrained)))["runs"] == before["runs"]
    plan = make_plan(
        load_config(pretrained),
        study := plan_study(load_config(pretrained)),
        load_config(pretrained).store.open(),
    )
    rules = {one.item.rule for one in plan.predictions}
    assert not {"evaluate_teacher", "answer_teacher", "judge_teacher"} & rules
    assert {"evaluate_student", "answer_student", "judge_student"} <= rules
    assert {run.compared_with_teacher for run in study.runs.values()} == {"big"}


def test_quality_rests_on_cited_scores_where_nothing_of_the_teacher_is_measured(
    pretrained: dict[str, Any],
) -> None:
    names = ("word_problems", "gsm8k", "mt_bench_101")
    pretrained["teachers"]["big"]["scores"] = dict.fromkeys(names, CITED)
    config = load_config(pretrained)
    study = plan_study(config)
    record = {"metric": "m", "filter": "none", "value": 4.0, "stderr": 0.1}
    record |= {"higher_is_better": True, "problems_sha256": "0"}
    training = {"trained_tokens": 1, "parameters": 1, "cross_entropy": 1.0}
    for run in study.runs:
        publish_json(Path("results/students", run, "training.json"), training)
        scores = [{**record, "task": name} for name in names[:2]]
        publish_json(Path("results/scores", f"{run}.json"), scores)
        judged = Path("results/judgements/mt_bench_101", f"{run}.json")
        publish_json(judged, [{**record, "task": names[2]}])
    scores = [one for one in gather(config, study, config.store.open()).scores if one.in_quality]
    assert len(scores) == 2 * 3
    assert {(one.teacher_score, one.teacher_stderr, one.teacher_source) for one in scores} == {
        (5.0, 0.5, "cited from its card")
    }


def test_a_local_judge_is_pinned_like_every_model_of_the_hub(values: dict[str, Any]) -> None:
    values["judges"]["here"] = {"model": LOCAL["model"]}
    with pytest.raises(AngelshareError, match=r"judges.here.revision is missing"):
        load_config(values)
    values["revisions"] = values.get("revisions", {}) | {LOCAL["model"]: "main"}
    assert "some/judge-7B (main)" in unresolved(load_config(values))


def verdicts(config: Config) -> list[tuple[str, str | None, str | None]]:
    """Rule, model and what is unknown of each job that judges."""
    plan = make_plan(config, plan_study(config), config.store.open())
    return [
        (one.item.rule, one.item.model.name if one.item.model else None, one.item.unknown)
        for one in plan.predictions
        if one.item.rule in ("judge_student", "judge_teacher")
    ]


def test_what_answering_takes_is_planned(values: dict[str, Any]) -> None:
    def tokens() -> dict[str, float]:
        config = load_config(values)
        plan = make_plan(config, plan_study(config), config.store.open())
        return {
            one.item.rule: one.item.tokens.value
            for one in plan.predictions
            if one.item.rule in ("answer_student", "answer_teacher") and one.item.tokens
        }

    whole = tokens()
    assert set(whole) == {"answer_student", "answer_teacher"}
    values["evaluation"]["judged"][0]["limit"] = 2  # dialogues of each of thirteen abilities
    for rule, few in tokens().items():
        assert few / whole[rule] == pytest.approx(2 * 13 / 1388)


def test_a_remote_judge_takes_no_device_and_a_local_one_runs_its_own_model(
    values: dict[str, Any],
) -> None:
    values["hardware"] = values.get("hardware", {}) | {"gpus": 2}
    config = load_config(values)
    assert config.resources_of("judge_student").gpus == 0
    assert config.resources_of("answer_student").gpus == 2
    assert {(model, unknown) for _, model, unknown in verdicts(config)} == {(None, None)}
    values["judges"]["here"] = LOCAL
    config = load_config(values)
    assert config.resources_of("judge_teacher").gpus == 2
    judged = verdicts(config)
    assert {rule for rule, *_ in judged} == {"judge_student", "judge_teacher"}
    assert {tuple(rest) for _, *rest in judged} == {("some/judge-7B", "the number of rows")}
