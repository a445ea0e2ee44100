"""Scores of a model in fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from angelshare.config import load_config
from angelshare.data.problems import make_dataset
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import problem_tokenizer
from angelshare.errors import AngelshareError
from angelshare.evaluation.harness import evaluate_model
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.grid import plan_study
from angelshare.planning.records import History
from angelshare.planning.work import WorkList
from angelshare.student.models import make_student, publish_model
from angelshare.student.settings import ScratchStudent
from angelshare.teacher.models import load_causal_lm

ROOT = Path(__file__).resolve().parents[3]
PROBLEMS = WordProblems(seed=3, labelled=8, unlabelled=4, validation=4, test=6)
SHAPE = ScratchStudent(hidden_size=64, layers=2, heads=4, intermediate_size=96)
IDS = torch.tensor([[5, 9, 2, 30, 7]])


def nothing(*_: Any, **__: Any) -> None:
    """Progress and counts that nobody reads."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    tokenizer = problem_tokenizer(TokenizerSettings(), PROBLEMS)
    folder = tmp_path_factory.mktemp("student") / "model"
    publish_model(make_student(SHAPE, tokenizer, 64, seed=5), tokenizer, folder)
    return folder


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    found["students"]["tiny"]["quantised"] = "int8"
    return found


def test_blocks_are_quantised_and_the_head_is_not(model: Path) -> None:
    pytest.importorskip("torchao")
    from angelshare.evaluation.quantised import quantise

    plain, changed = load_causal_lm(model), load_causal_lm(model)
    quantise(changed, "int8")
    for name, part in changed.named_modules():
        if isinstance(part, nn.Linear):
            assert (type(part.weight.data) is torch.Tensor) == (name == "lm_head"), name
    with torch.no_grad():
        expected, found = plain(input_ids=IDS).logits, changed(input_ids=IDS).logits
    assert not found.equal(expected)
    # 8 bits round to 1/254 of a row's largest value, and errors add up over 14 layers.
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_scores_say_in_which_precision_they_were_taken(model: Path) -> None:
    pytest.importorskip("torchao")
    settings = EvaluationSettings(batch_size=3, max_gen_toks=4)
    test = in_splits(make_dataset(PROBLEMS), ["test"])
    (plain,) = evaluate_model(model, settings, test, nothing, nothing)
    (quantised,) = evaluate_model(model, settings, test, nothing, nothing, quantised="int8")
    assert quantised.harness == f"{plain.harness}, int8"
    assert quantised.problems_sha256 == plain.problems_sha256


def test_an_unknown_precision_is_refused(model: Path) -> None:
    pytest.importorskip("torchao")
    from angelshare.evaluation.quantised import quantise

    with pytest.raises(AngelshareError, match="no precision 'int3'"):
        quantise(load_causal_lm(model), "int3")


def test_a_quantised_point_is_scored_and_not_trained(values: dict[str, Any]) -> None:
    config = load_config(values)
    study = plan_study(config)
    points = [run for run in study.runs.values() if run.quantised]
    tiny = [run for run in study.trainings.values() if run.student == "tiny"]
    assert [point.trained_as for point in points] == [run.name for run in tiny]
    assert [point.key for point in points] == [run.key for run in tiny]
    assert {point.shown_as for point in points} == {"tiny int8"}
    del values["students"]["tiny"]["quantised"]
    assert study.trainings.keys() == plan_study(load_config(values)).runs.keys()
    items = list(WorkList(config, study, config.store.open(), History({}, {}), {}).items())
    of_points = [item.rule for item in items if item.run in {point.name for point in points}]
    assert set(of_points) == {"evaluate_student"}
    assert len(of_points) == len(points)


def test_an_engine_that_does_not_quantise_is_refused(values: dict[str, Any]) -> None:
    values["evaluation"]["engine"] = "vllm"
    with pytest.raises(AngelshareError, match=r"students\.tiny\.quantised needs"):
        load_config(values)
