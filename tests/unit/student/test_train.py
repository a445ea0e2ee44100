"""Training tiny students end to end: pipelines, accumulation, schedule, stopping, resuming."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from angelshare.data.tables import in_splits
from angelshare.errors import AngelshareError
from angelshare.student import train as train_module
from angelshare.student.callbacks import Interrupted, stale_evaluations
from angelshare.student.requests import TrainRequest, TrainResult
from angelshare.student.settings import LossSettings, PretrainedStudent, StoppingSettings
from angelshare.student.train import train_student
from angelshare.student.trainer import StudentTrainer
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from .conftest import Tally, encoded_rows, position_logits, write_cache_of

Make = Callable[..., TrainRequest]


def train(request: TrainRequest) -> TrainResult:
    return train_student(request, lambda *_: None, Tally())


def weights(request: TrainRequest) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(request.out / "model.safetensors")


def same_weights(one: TrainRequest, other: TrainRequest) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


def direct_cross_entropy(request: TrainRequest) -> float:
    """The validation metric of the published model, row by row, without Trainer or padding."""
    model = load_causal_lm(request.out).eval()
    total = count = 0.0
    for row in encoded_rows(request.validation, Path(request.tokenizer)):
        log_probs = position_logits(model, row).double().log_softmax(-1)
        pairs = zip(row.encoded.input_ids, row.encoded.targets, strict=True)
        gold = torch.tensor([token for token, target in pairs if target])
        total -= log_probs.gather(-1, gold[:, None]).sum().item()
        count += len(gold)
    return total / count


def test_sft_and_kd_share_one_path_and_leave_a_loadable_model(
    make_request: Make, tmp_path: Path
) -> None:
    sft, tally = make_request("sft", max_steps=30, eval_every=10), Tally()
    said: list[tuple[int, int, str]] = []
    result = train_student(sft, lambda *line: said.append(line), tally)
    assert result.untrained_cross_entropy == pytest.approx(math.log(160), rel=0.05)
    assert result.cross_entropy < 3.5
    assert result.cross_entropy == min(
        h["cross_entropy"] for h in result.history[1:] if "cross_entropy" in h
    )
    assert direct_cross_entropy(sft) == pytest.approx(result.cross_entropy, rel=1e-5)
    assert load_tokenizer(sft.out).chat_template == load_tokenizer(sft.tokenizer).chat_template
    assert load_causal_lm(sft.out).config.use_cache
    assert tally.totals["steps"] == result.steps == 30
    assert tally.totals["samples"] == 30 * 8
    assert tally.totals["trained"] == result.trained_tokens
    lengths = [len(r.encoded.input_ids) for r in encoded_rows(sft.train, Path(sft.tokenizer))]
    assert tally.totals["trained"] == 5 * sum(lengths)
    assert said[-1][:2] == (30, 30)
    assert "validation" in said[-1][2]

    rows = encoded_rows(sft.train, Path(sft.tokenizer))
    write_cache_of(
        load_causal_lm(sft.out),
        sft.tokenizer,
        rows,
        tmp_path / "cache.parquet",
    )
    kd = make_request(
        "kd",
        max_steps=30,
        eval_every=10,
        cache=[tmp_path / "cache.parquet"],
        loss=LossSettings(alpha=0.2, temperature=2.0),
    )
    distilled = train(kd)
    assert distilled.untrained_cross_entropy == result.untrained_cross_entropy
    assert distilled.cross_entropy < 3.5
    assert distilled.parameters == result.parameters
    assert not same_weights(sft, kd)


def test_a_student_of_a_cache_needs_its_temperature_on_the_grid(
    make_request: Make, tmp_path: Path
) -> None:
    request = make_request(max_steps=4)
    train(request)
    rows = encoded_rows(request.train, Path(request.tokenizer))
    write_cache_of(
        load_causal_lm(request.out),
        request.tokenizer,
        rows,
        tmp_path / "cache.parquet",
    )
    kd = make_request("kd", cache=[tmp_path / "cache.parquet"], loss=LossSettings(temperature=3.0))
    with pytest.raises(AngelshareError, match=r"temperature 3\.0"):
        train(kd)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "uld"])
def test_draws_do_for_no_other_divergence(name: str) -> None:
    choice = LossSettings(divergence=name, beta=0.5 if name == "jsd" else None)
    trainer = SimpleNamespace(loss_settings=choice)
    batch = {"teacher_ids": torch.zeros(1, 1), "teacher_tail": False}
    with pytest.raises(AngelshareError, match=rf"divergence {name} needs the teacher's tail"):
        StudentTrainer._teacher(trainer, batch)


@pytest.mark.parametrize(("optimizer", "kd"), [("adafactor", False), ("muon", True)])
def test_accumulation_changes_neither_curve_nor_weights(
    make_request: Make, tmp_path: Path, optimizer: str, kd: bool
) -> None:
    more: dict[str, object] = {}
    if kd:
        request = make_request("teacher", max_steps=3)
        train(request)
        rows = encoded_rows(request.train, Path(request.tokenizer))
        more["cache"] = [tmp_path / "cache.parquet"]
        more["loss"] = LossSettings(alpha=0.2, temperature=2.0, divergence="jsd", beta=0.5)
        teacher = load_causal_lm(request.out)
        write_cache_of(teacher, Path(request.tokenizer), rows, tmp_path / "cache.parquet")
    whole = make_request("whole", optimizer, batch_size=32, accumulation=1, **more)
    parts = make_request("parts", optimizer, batch_size=4, accumulation=8, **more)
    one, other = train(whole), train(parts)
    assert [h["step"] for h in one.history] == [h["step"] for h in other.history]
    for a, b in zip(one.history, other.history, strict=True):
        for name in ("train_loss", "cross_entropy"):
            assert a.get(name) == pytest.approx(b.get(name), abs=2e-4)
    assert one.trained_tokens == other.trained_tokens
    first, second = weights(whole), weights(parts)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=0)


def test_the_metric_does_not_depend_on_the_evaluation_batch(make_request: Make) -> None:
    small = train(make_request("small", max_steps=4, eval_batch_size=1))
    large = train(make_request("large", max_steps=4, eval_batch_size=16))
    assert small.cross_entropy == pytest.approx(large.cross_entropy, rel=1e-6)


def test_schedule_is_linear_warm_up_then_cosine_to_zero(make_request: Make) -> None:
    result = train(
        make_request(
            max_steps=10,
            warmup_steps=2,
            eval_every=1,
            lr=1e-3,
            stopping=StoppingSettings(patience=100),
        )
    )
    rates = {h["step"]: h["learning_rate"] for h in result.history if "learning_rate" in h}
    expected = {1: 0.0, 2: 5e-4, 3: 1e-3, 7: 1e-3 * 0.5 * (1 + math.cos(math.pi * 0.5))}
    assert {step: rates[step] for step in expected} == pytest.approx(expected)


class Killed(Exception):
    pass


def train_until(request: TrainRequest, step: int) -> None:
    """Train and die in the middle of ``step``."""
    done = 0

    def count(**amounts: int) -> None:
        nonlocal done
        done += amounts.get("steps", 0)
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        train_student(request, lambda *_: None, count)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "muon"])
def test_a_killed_run_ends_like_an_uninterrupted_one(make_request: Make, optimizer: str) -> None:
    straight = make_request("straight", optimizer, batch_size=5, accumulation=2)
    expected = train(straight)
    broken = make_request("broken", optimizer, batch_size=5, accumulation=2)
    train_until(broken, 7)
    train_until(broken, 3)
    assert not broken.out.exists()
    half = broken.checkpoints / "checkpoint-11"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 1')
    tally = Tally()
    said: list[tuple[int, int, str]] = []
    assert train_student(broken, lambda *line: said.append(line), tally) == expected
    assert tally.totals["steps"] == 12 - 4
    assert said[0] == (4, 12, "resuming from a checkpoint")
    assert same_weights(straight, broken)


def test_a_run_that_is_asked_to_stop_saves_its_last_step(make_request: Make) -> None:
    straight, stopped = make_request("straight"), make_request("stopped")
    expected = train(straight)
    done = 0

    def count(**amounts: int) -> None:
        nonlocal done
        done += amounts.get("steps", 0)

    with pytest.raises(Interrupted, match="stopped at step 7 of 12"):
        train_student(stopped, lambda *_: None, count, lambda: done == 7)
    assert not stopped.out.exists()
    tally = Tally()
    result = train_student(stopped, lambda *_: None, tally)
    assert tally.totals["steps"] == 12 - 7
    assert same_weights(straight, stopped)
    # The stop added an entry to the log; nothing else may tell the two apart.
    assert dataclasses.replace(result, history=[]) == dataclasses.replace(expected, history=[])


def test_a_run_killed_before_publishing_only_publishes(
    make_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = make_request("straight"), make_request("broken")
    expected = train(straight)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "publish_model", die)
        with pytest.raises(Killed):
            train(broken)
    tally = Tally()
    assert train_student(broken, lambda *_: None, tally) == expected
    assert tally.totals == {}
    assert same_weights(straight, broken)


def test_checkpoints_of_another_request_are_not_resumed(make_request: Make) -> None:
    first = make_request("run", lr=1e-2)
    train_until(first, 6)
    second = make_request("run", lr=2e-2)
    tally = Tally()
    result = train_student(second, lambda *_: None, tally)
    assert tally.totals["steps"] == 12
    assert result == train(make_request("fresh", lr=2e-2))


def test_seeds_decide_weights_and_order(make_request: Make) -> None:
    results = [
        train(make_request(f"seed{i}", max_steps=3, seed=s)) for i, s in enumerate([1, 1, 2])
    ]
    assert results[0] == results[1]
    assert results[0].untrained_cross_entropy != results[2].untrained_cross_entropy
    assert results[0].cross_entropy != results[2].cross_entropy


@pytest.mark.parametrize(
    ("values", "stale"),
    [
        ([5.0], 0),
        ([5.0, 4.0, 3.0], 0),
        ([5.0, 4.999, 4.998], 2),
        ([5.0, 4.999, 4.998, 4.9975], 0),
        ([5.0, 4.0, 4.1, 4.2, 3.9985], 3),
        ([5.0, 4.0, 4.1, 3.9, 3.91], 1),
        ([5.0, math.nan], 1),
    ],
)
def test_stale_evaluations_by_hand(values: list[float], stale: int) -> None:
    assert stale_evaluations(values, 2e-3) == stale


def test_early_stopping_ends_the_run_and_keeps_the_best_weights(make_request: Make) -> None:
    request = make_request(
        train=make_request().train.slice(0, 4),
        max_steps=200,
        eval_every=10,
        lr=3e-2,
        stopping=StoppingSettings(patience=2),
    )
    result = train(request)
    assert result.stopped_early
    assert result.steps < 200
    curve = {h["step"]: h["cross_entropy"] for h in result.history if "cross_entropy" in h}
    assert result.steps == max(curve)
    assert stale_evaluations(list(curve.values()), 2e-3) == 2
    assert stale_evaluations(list(curve.values())[:-1], 2e-3) == 1
    assert result.best_step == min((s for s in curve if s), key=lambda s: curve[s])
    assert result.best_step < result.steps
    assert direct_cross_entropy(request) == pytest.approx(curve[result.best_step], rel=1e-5)


def test_epochs_bound_the_schedule(make_request: Make) -> None:
    result = train(make_request(max_steps=1000, max_epochs=1.5, batch_size=4, accumulation=4))
    assert result.steps == 5
    with pytest.raises(AngelshareError, match=r"warmup_steps is 2, .* 2 steps"):
        train(make_request(max_epochs=0.3, batch_size=8))


def test_a_loss_that_is_not_finite_stops_with_advice(make_request: Make) -> None:
    with pytest.raises(AngelshareError, match=r"not finite at step .*learning_rate"):
        train(make_request(lr=1e30, warmup_steps=0))


def test_bfloat16_weights_train_and_are_published_as_such(make_request: Make) -> None:
    request = make_request(precision="bfloat16", max_steps=30, eval_every=10)
    result = train(request)
    assert result.cross_entropy < 0.8 * result.untrained_cross_entropy
    assert {weight.dtype for weight in weights(request).values()} == {torch.bfloat16}


def test_4x16_and_64x1_give_one_loss_curve(make_request: Make) -> None:
    """The paper's batch: the loss is a sum over 64 rows' targets, whatever the passes."""
    rows = make_request().train
    rows = pa.concat_tables([rows, rows.slice(0, 16)])
    curves = []
    for name, batch_size, accumulation in (("parts", 4, 16), ("whole", 64, 1)):
        request = make_request(
            name,
            "adafactor",
            train=rows,
            max_steps=4,
            eval_every=1,
            batch_size=batch_size,
            accumulation=accumulation,
        )
        curves.append(train(request).history)
    assert len(curves[0]) == len(curves[1]) == 5
    for one, other in zip(*curves, strict=True):
        for name in ("train_loss", "cross_entropy", "gradient_norm", "learning_rate"):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-4), name


def test_curves_go_to_the_trainer_s_own_integrations_only_when_asked(
    make_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Stop(Exception):
        pass

    def arguments(**settings: object) -> None:
        asked.append(settings["report_to"])
        raise Stop

    monkeypatch.setattr(train_module, "TrainingArguments", arguments)
    for name, report_to in (("off", []), ("on", ["wandb", "mlflow"])):
        with pytest.raises(Stop):
            train(make_request(name, report_to=report_to))
    assert asked == ["none", ["wandb", "mlflow"]]


def test_a_pretrained_student_starts_from_its_weights(
    make_request: Make, tokenizer_folder: Path
) -> None:
    first = make_request("first")
    end = train(first)
    second = make_request(
        "second", init=PretrainedStudent(model=str(first.out)), tokenizer=first.out
    )
    assert train(second).untrained_cross_entropy == pytest.approx(end.cross_entropy, rel=1e-6)
    with pytest.raises(AngelshareError, match=r"model .* cannot be loaded"):
        train(make_request("third", init=PretrainedStudent(model=str(tokenizer_folder))))


def test_validation_rows_are_sorted_only_for_the_metric(make_request: Make) -> None:
    request = make_request(max_steps=3)
    shuffled = make_request(
        "shuffled", max_steps=3, validation=request.validation.take(list(range(15, -1, -1)))
    )
    assert train(request).cross_entropy == pytest.approx(train(shuffled).cross_entropy, rel=1e-6)
    assert in_splits(request.validation, ["validation"]).num_rows == 16


def test_a_cache_beyond_memory_is_read_ahead_and_trains_the_same(
    make_request: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_request("teacher", max_steps=4, warmup_steps=1)
    train(teacher)
    rows = encoded_rows(teacher.train, Path(teacher.tokenizer))
    path = tmp_path / "cache.parquet"
    write_cache_of(load_causal_lm(teacher.out), teacher.tokenizer, rows, path)
    found = []
    for name, resident in (("whole", 1 << 30), ("ahead", 0)):
        monkeypatch.setattr("angelshare.teacher.groups.RESIDENT_BYTES", resident)
        assert LogitCache([path]).stays_in_memory == (name == "whole")
        found.append(train(make_request(name, cache=[path])))
    assert found[0].history == found[1].history
