"""Sizes, operations, lines through records, and which basis a prediction stands on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from past import put

from angelshare.config import load_config
from angelshare.evaluation.settings import EvaluationSettings
from angelshare.planning.devices import EFFICIENCY, find_device, processor
from angelshare.planning.lengths import Length, answers, problems
from angelshare.planning.models import ModelSize, from_name, from_shape, of_model
from angelshare.planning.predict import Predictor, fit_line
from angelshare.planning.ranges import Range, common_sum, independent_sum
from angelshare.planning.records import History, Observation, operations
from angelshare.planning.study_models import study_models
from angelshare.planning.work import WorkItem

ROOT = Path(__file__).parents[3]
MODEL = ModelSize("m", 1_000_000, 4, 128, "shape")


def test_products_and_sums_by_hand() -> None:
    product = Range(10, 5, 20).times(Range(3, 1.5, 6))
    factor = math.exp(math.hypot(math.log(2), math.log(2)))
    assert product == pytest.approx((30, 30 / factor, 30 * factor))
    both = [Range(10, 8, 13), Range(10, 7, 14)]
    assert common_sum(both) == pytest.approx((20, 15, 27))
    assert independent_sum(both) == pytest.approx((20, 20 - math.hypot(2, 3), 25))


def test_sizes_are_those_of_the_library() -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    shape = {"hidden_size": 48, "layers": 2, "heads": 2, "intermediate_size": 128}
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=253,
            hidden_size=48,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
    )
    assert from_shape("s", shape, 253).parameters == model.num_parameters()


def test_sizes_from_config_and_name(tmp_path: Path) -> None:
    found = from_name("allenai/OLMo-2-0325-32B-SFT")
    assert found is not None
    assert (found.parameters, found.basis) == (32_000_000_000, "name")
    assert from_name("gpt-neo-1.3B").parameters == 1_300_000_000  # type: ignore[union-attr]
    assert from_name("HuggingFaceTB/SmolLM2-135M").parameters == 135_000_000  # type: ignore[union-attr]
    assert from_name("a-model") is None
    shape = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
    put(tmp_path / "config.json", {**shape, "vocab_size": 100352, "intermediate_size": 8192})
    model = of_model(str(tmp_path), None)
    assert model is not None
    # OLMo-2-0425-1B: 1,484,916,736 parameters on its model card's weights.
    assert model.parameters == pytest.approx(1_484_916_736, rel=1e-4)
    half = of_model(str(tmp_path), None, keep_layers=range(0, 16, 2))
    assert half is not None
    assert half.layers == 8
    embeddings = 2 * 100352 * 2048
    assert half.parameters == pytest.approx(
        embeddings + (model.parameters - embeddings) / 2, rel=1e-4
    )


def test_operations_per_token() -> None:
    assert MODEL.forward_flops(10, 0) == 10 * 2 * 1_000_000
    assert MODEL.forward_flops(1, 32) == 2_000_000 + 4 * 4 * 128 * 32
    assert MODEL.training_flops(1, 32) == 3 * MODEL.forward_flops(1, 32)
    frozen = dataclasses.replace(MODEL, frozen=True)
    assert frozen.training_flops(1, 32) == 2 * MODEL.forward_flops(1, 32)


def test_a_token_that_is_read_counts_as_a_part_of_one_that_is_decoded() -> None:
    decoded = operations("evaluate", MODEL, 1000, 0, 0, 1.0)
    read = operations("evaluate", MODEL, 1000, 0, 0, 0.0)
    assert read == pytest.approx(decoded * EFFICIENCY["decode"].value / EFFICIENCY["forward"].value)
    mixed = operations("teacher_generation", MODEL, 1000, 0, 0, 0.25)
    assert mixed == pytest.approx(0.25 * decoded + 0.75 * read)
    # Elsewhere nothing is decoded, whatever is said of it.
    assert operations("teacher_logits", MODEL, 1000, 0, 0, 0.25) == decoded


def test_benchmarks_are_as_long_as_their_shots_and_choices() -> None:
    def asked(*tasks: dict[str, Any]) -> tuple[float, Length]:
        settings = {"tasks": list(tasks), "chat_template": False}
        return problems(EvaluationSettings.model_validate(settings), 400)

    rows, plain = asked({"task": "arc_easy_local", "limit": 100})
    assert (rows, plain.decoded) == (100, 0.0)
    assert plain.tokens.value == 4 * 40
    _, shots = asked({"task": "arc_easy_local", "few_shot": 24})
    assert shots.tokens == plain.tokens.scaled(25)
    rows, worked = asked({"task": "gsm8k", "few_shot": 0, "max_gen_toks": 100})
    assert rows == 1319
    assert worked == Length(Range(150 + 100, 90 + 80, 220 + 100), 100 / 250)
    assert asked({"task": "mmlu", "limit": 10})[0] == 570
    assert asked({"task": "mmlu", "limit": 1000})[0] == 14042
    rows, own = asked({"task": "word_problems", "max_gen_toks": 40, "limit": 300})
    assert (rows, own) == (300, answers(40))
    rows, both = asked(
        {"task": "arc_easy", "limit": 100}, {"task": "gsm8k", "few_shot": 0, "max_gen_toks": 100}
    )
    assert both.tokens.value == pytest.approx((100 * 160 + 1319 * 250) / rows)
    assert both.decoded == pytest.approx(1319 * 100 / (100 * 160 + 1319 * 250))


def test_a_low_rank_update_is_planned_as_one(tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    put(tmp_path / "config.json", {**shape, "vocab_size": 253, "intermediate_size": 128})
    pretrained = {"init": {"model": str(tmp_path)}}
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    values["students"] |= {"whole": pretrained, "updated": {**pretrained, "lora": {"rank": 4}}}
    models = study_models(load_config(values))
    assert not models["student whole"].frozen  # type: ignore[union-attr]
    assert models["student updated"].frozen  # type: ignore[union-attr]


def test_a_line_is_found_again() -> None:
    line = fit_line([1.0, 2.0, 4.0], [12.0, 14.0, 18.0], 0.0)
    assert (line.start, line.slope, line.scatter) == pytest.approx((10.0, 2.0, 0.0))
    flat = fit_line([5.0, 5.0], [100.0, 100.0], 20.0)
    assert (flat.start, flat.slope) == pytest.approx((20.0, 16.0))


def test_intervals_cover_what_comes_next() -> None:
    """Noise of 10 % about a line: the next job lies in the 95 % interval about as often."""
    rng = np.random.default_rng(5)
    for count in (3, 6, 20):
        inside = 0
        for _ in range(600):
            work = rng.uniform(1, 8, count)
            values = (5 + 3 * work) * (1 + 0.1 * rng.standard_normal(count))
            line = fit_line(list(work), list(values), 0.0)
            at = float(rng.uniform(work.min(), work.max()))
            truth = (5 + 3 * at) * (1 + 0.1 * rng.standard_normal())
            low, high = line.at(Range.exactly(at), 0.0)[1:]
            inside += low <= truth <= high
        assert 0.91 <= inside / 600 <= 1.0, count


def test_beyond_what_was_seen_bounds_widen() -> None:
    line = fit_line([1.0, 1.0, 1.0], [10.0, 11.0, 9.0], 0.0)
    near, far = (line.at(Range.exactly(w), 0.0) for w in (1.0, 64.0))
    assert far.high / far.value > near.high / near.value


def item(flops: float, model: ModelSize = MODEL, stage: str = "student_train") -> WorkItem:
    return WorkItem(
        rule="train_student",
        stage=stage,
        wildcards={"run": "a"},
        label="train a",
        action="train",
        done=False,
        run="a",
        model=model,
        flops=Range.exactly(flops),
    )


def seen(energy_j: float, flops: float, model: ModelSize = MODEL) -> Observation:
    return Observation(
        stage="student_train",
        rule="train_student",
        hardware="board",
        energy_j=energy_j,
        duration_s=energy_j / 10,
        start_utc="2026-01-01",
        model=model,
        flops=flops,
    )


def predictor(*observations: Observation, calibration: dict | None = None) -> Predictor:
    history = History({"student_train": observations}, {})
    return Predictor(history, "board", calibration, processor(1))


def test_records_come_first_then_the_calibration_then_flops() -> None:
    part = {"energy_j": 10.0, "duration_s": 1.0, "flops": 1e9}
    start = {"energy_j": 5.0, "duration_s": 1.0}
    calibration = {"start": start, "train": part, "model": {"parameters": 1_000_000}}
    own = [seen(e, 1e10) for e in (98.0, 100.0, 102.0)]
    found = predictor(*own, calibration=calibration).predict(item(1e10))
    assert found.basis == "records"
    assert found.energy_j is not None
    assert found.energy_j.value == pytest.approx(100.0)
    assert "3 records, scatter 2 %" in found.fit
    other = ModelSize("other", 5_000_000, 4, 256, "shape")
    scaled = predictor(*own).predict(item(5e10, other))
    assert scaled.basis == "records of other models"
    assert scaled.energy_j is not None
    assert scaled.energy_j.value == pytest.approx(500.0)
    assert scaled.energy_j.high / 500 > found.energy_j.high / 100
    calibrated = predictor(calibration=calibration).predict(item(1e10))
    assert calibrated.basis == "calibration"
    assert calibrated.energy_j == pytest.approx((105.0, 35.0, 315.0))
    guessed = predictor().predict(item(1e10))
    assert guessed.basis == "flops"
    assert "assumed" in guessed.fit


def test_records_of_other_hardware_are_left_alone() -> None:
    history = History({"student_train": (seen(100.0, 1e10),)}, {})
    assert Predictor(history, "another", None, processor(1)).predict(item(1e10)).basis == "flops"


def test_flops_of_a_known_board_by_hand() -> None:
    board = find_device("2 x NVIDIA H100 80GB HBM3")
    assert board is not None
    assert (board.peak_flops, board.power_w) == (2 * 989e12, 1400)
    found = Predictor(History({}, {}), board.name, None, board).predict(
        item(0.35 * 2 * 989e12 * 1e4)
    )
    assert found.duration_s is not None
    assert found.energy_j is not None
    assert found.duration_s.value == pytest.approx(1e4 + 10)
    assert found.energy_j.value == pytest.approx((1e4 + 10) * 1400 * 0.8)
    assert find_device("AMD EPYC") is None


def test_what_is_unknown_is_said() -> None:
    unknown = item(1.0)
    unknown = WorkItem(
        **{
            name: getattr(unknown, name)
            for name in ("rule", "stage", "wildcards", "label", "action", "done", "run")
        },
        unknown="the model's size",
    )
    found = predictor().predict(unknown)
    assert (found.basis, found.energy_j) == ("unknown", None)
    assert found.fit == "the model's size is not known"
