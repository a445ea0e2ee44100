"""Students that answer themselves, with a teacher in memory: batches, loss, and what changes
neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from angelshare.config import PipelineSettings
from angelshare.energy.phases import STUDENT_GENERATION, TEACHER_FORWARD, TEACHER_LOAD, unmetered
from angelshare.errors import AngelshareError
from angelshare.student.dataset import Batch, EncodedDataset, collator
from angelshare.student.head import let_loss_run_inside
from angelshare.student.launch import train_on
from angelshare.student.losses import IGNORED
from angelshare.student.models import make_student, pad_token_id, publish_model
from angelshare.student.on_policy import OnPolicy, _prompt, is_students
from angelshare.student.requests import OnPolicyRequest, TrainRequest, TrainResult
from angelshare.student.settings import (
    LoraSettings,
    LossSettings,
    OnPolicySettings,
    PretrainedStudent,
    ScratchStudent,
)
from angelshare.student.train import train_student
from angelshare.student.trainer import TargetLoss, _top_k
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from . import oracle
from .conftest import MAX_LENGTH, Tally, encoded_rows, write_cache_of

Make = Callable[..., TrainRequest]
TEACHER = ScratchStudent(hidden_size=32, layers=2, heads=2, intermediate_size=48)
STUDENT = ScratchStudent(hidden_size=16, layers=1, heads=2, intermediate_size=24)
ANSWER = 12


@pytest.fixture(scope="module")
def teacher(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose head has rows beyond its tokenizer's tokens."""
    tokenizer = load_tokenizer(tokenizer_folder)
    model = make_student(TEACHER, tokenizer, MAX_LENGTH, seed=11)
    model.resize_token_embeddings(len(tokenizer) + 5)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    publish_model(model, tokenizer, folder)
    return folder


def beside(teacher: Path, **settings: Any) -> OnPolicyRequest:
    given = {"max_new_tokens": ANSWER, **settings}
    return OnPolicyRequest(
        settings=OnPolicySettings(**given), model=str(teacher), identity=str(teacher)
    )


@pytest.fixture
def make(make_request: Make, teacher: Path) -> Make:
    def request(name: str = "run", on_policy: dict[str, Any] | None = None, **more: Any) -> Any:
        fields = {"loss": LossSettings(alpha=0.2, temperature=2.0), **more}
        return make_request(name, on_policy=beside(teacher, **(on_policy or {})), **fields)

    return request


def train(request: TrainRequest, count: Any = None, phase: Any = unmetered) -> TrainResult:
    return train_student(request, lambda *_: None, count or Tally(), phase=phase)


def weights(request: TrainRequest) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(request.out / "model.safetensors")


class World:
    """A student, and batches of its training."""

    def __init__(self, request: TrainRequest, seed: int = 5) -> None:
        self.tokenizer = load_tokenizer(request.tokenizer)
        self.student = make_student(STUDENT, self.tokenizer, MAX_LENGTH, seed)
        let_loss_run_inside(self.student)
        self.rows = EncodedDataset(request.train, self.tokenizer, MAX_LENGTH)
        self.source = OnPolicy(
            request.on_policy,
            self.student,
            self.tokenizer,
            temperature=request.loss.temperature,
            max_length=MAX_LENGTH,
            seed=request.seed,
            count=Tally(),
            phase=unmetered,
        )

    def batches(self, *sizes: int) -> list[Batch]:
        collate, places = collator(pad_token_id(self.tokenizer)), iter(range(48))
        return [collate([self.rows[next(places)] for _ in range(size)]) for size in sizes]


def sequences(batches: list[Batch]) -> list[list[int]]:
    return [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize(("share", "of_ten"), [(0, 0), (0.1, 1), (0.5, 5), (0.7, 7), (1, 10)])
def test_the_student_has_its_share_of_steps_evenly_spaced(share: float, of_ten: int) -> None:
    own = [is_students(step, share) for step in range(1000)]
    for begin in range(0, 1000, 10):
        assert sum(own[begin : begin + 10]) in (of_ten, of_ten - 1, of_ten + 1)
    assert sum(own) == 100 * of_ten


def test_a_prompt_is_what_stands_before_the_last_answer() -> None:
    ids = torch.tensor([7, 8, 9, 10, 11, 12, 13])
    labels = torch.tensor([IGNORED, 8, 9, IGNORED, IGNORED, 12, 13])
    assert _prompt((ids, labels), 3).token_ids == [7, 8, 9, 10, 11]
    assert _prompt((ids[:4], labels[:4]), 3).token_ids == [7]
    assert _prompt((ids, labels), 3).id != _prompt((ids, labels), 4).id


def test_greedy_answers_are_the_student_s_best_tokens_and_have_no_labels_of_their_own(
    make: Make,
) -> None:
    world = World(make(on_policy={"temperature": 0.0, "student_share": 1.0}))
    read = world.batches(3, 5)
    before = world.student.training
    made = world.source(read, 0)
    stops = {world.tokenizer.eos_token_id}
    assert [len(batch["input_ids"]) for batch in made] == [3, 5]
    for given, after in zip(_split(read), _split(made), strict=True):
        ids, targets = after
        prompt = given[0][: given[1].index(True)]
        assert ids[: len(prompt)] == prompt
        assert targets == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        expected = list(prompt)
        while len(expected) < min(len(prompt) + ANSWER, MAX_LENGTH):
            with torch.no_grad():
                logits = world.student(input_ids=torch.tensor([expected])).logits[0, -1]
            expected.append(int(logits.argmax()))
            if expected[-1] in stops:
                break
        assert ids == expected
    assert all(batch["alpha"] == 0 for batch in made)
    assert world.student.generation_config.max_new_tokens is None
    assert world.student.training == before
    assert world.source(read, 0)[0]["input_ids"].equal(made[0]["input_ids"])


def _split(batches: list[Batch]) -> Iterator[tuple[list[int], list[bool]]]:
    for batch in batches:
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            here = mask.bool()
            yield ids[here].tolist(), (labels[here] != IGNORED).tolist()


def test_a_draw_depends_on_seed_step_and_prompt_and_not_on_the_batch(make: Make) -> None:
    world = World(make(on_policy={"student_share": 1.0}))
    whole = sequences(world.source(world.batches(9), 4))
    assert sequences(world.source(world.batches(2, 4, 3), 4)) == whole
    few = World(make(on_policy={"student_share": 1.0, "batch_size": 2}))
    assert sequences(few.source(few.batches(9), 4)) == whole
    assert sequences(world.source(world.batches(9), 5)) != whole
    other = World(make(on_policy={"student_share": 1.0}, seed=99))
    assert sequences(other.source(other.batches(9), 4)) != whole


CHOICES = [
    LossSettings(alpha=0.3, temperature=1.0),
    LossSettings(alpha=0.3, temperature=2.5, divergence="reverse_kl"),
    LossSettings(alpha=0.3, temperature=1.0, divergence="jsd", beta=0.3),
    LossSettings(alpha=0.3, temperature=2.5, divergence="jsd", beta=0.9),
]


def _loss_and_logits(
    make: Make, teacher: Path, choice: LossSettings, top_k: int, share: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Our sum over a step's targets; student's and teacher's dense logits, targets, and alpha."""
    world = World(make(loss=choice, on_policy={"student_share": share, "top_k": top_k}))
    made = world.source(world.batches(6), 0)[0]
    size = len(world.tokenizer)
    alpha = made.get("alpha", choice.alpha)
    settings = choice.model_copy(update={"alpha": alpha})
    loss_of = TargetLoss(made["labels"], _top_k(made, choice), settings, size)
    given = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    with torch.no_grad():
        loss = world.student(**given, loss_of=loss_of).loss
        wanted = made["labels"][:, 1:] != IGNORED
        logits = [
            model(**given).logits[:, :-1, :size][wanted]
            for model in (world.student, load_causal_lm(teacher, dtype="float32"))
        ]
    return loss, logits[0], logits[1], made["labels"][:, 1:][wanted], alpha


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.divergence}-{c.temperature}")
@pytest.mark.parametrize("top_k", [8, 10_000])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_is_that_of_both_dense_distributions(
    make: Make, teacher: Path, choice: LossSettings, top_k: int, share: float
) -> None:
    loss, student, taught, targets, alpha = _loss_and_logits(make, teacher, choice, top_k, share)
    assert alpha == (0.0 if share else 0.3)
    kept = min(top_k, student.shape[-1])
    settings = choice.model_copy(update={"alpha": alpha})
    expected = oracle.loss(student, targets, taught, kept, settings)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.divergence}-{c.temperature}")
def test_the_loss_is_trl_s(
    make: Make, teacher: Path, choice: LossSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd")
    loss, student, taught, targets, _ = _loss_and_logits(make, teacher, choice, 10_000, 1.0)
    beta = {"forward_kl": 0, "reverse_kl": 1}.get(choice.divergence, choice.beta)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student[None].double(),
        taught[None].double(),
        targets[None],
        beta=beta,
        temperature=choice.temperature,
        reduction="sum",
    )
    # T² is ours: it keeps the gradient's size independent of T.
    torch.testing.assert_close(loss.double(), choice.temperature**2 * theirs, rtol=2e-5, atol=1e-5)


def test_without_own_answers_it_is_distillation_from_a_cache(
    make: Make, teacher: Path, make_request: Make, tmp_path: Path
) -> None:
    online = make("online", on_policy={"student_share": 0.0, "top_k": 8})
    rows = encoded_rows(online.train, Path(online.tokenizer))
    cut = load_causal_lm(teacher, dtype="float32")
    cut.resize_token_embeddings(len(load_tokenizer(online.tokenizer)))
    write_cache_of(cut, Path(online.tokenizer), rows, tmp_path / "cache.parquet")
    cached = make_request("cached", cache=[tmp_path / "cache.parquet"], loss=online.loss)
    one, other = train(online), train(cached)
    assert one.trained_tokens == other.trained_tokens
    for a, b in zip(one.history, other.history, strict=True):
        for name in ("train_loss", "cross_entropy"):
            assert a.get(name) == pytest.approx(b.get(name), abs=2e-3)
    for name, weight in weights(online).items():
        torch.testing.assert_close(weight, weights(cached)[name], atol=2e-2, rtol=0)


def test_passes_and_padding_change_neither_curve_nor_weights(make: Make) -> None:
    whole = make("whole", batch_size=32, accumulation=1)
    parts = make("parts", batch_size=4, accumulation=8, on_policy={"batch_size": 5})
    one, other = train(whole), train(parts)
    for a, b in zip(one.history, other.history, strict=True):
        for name in ("train_loss", "cross_entropy"):
            assert a.get(name) == pytest.approx(b.get(name), abs=2e-4)
    assert one.trained_tokens == other.trained_tokens
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weight, weights(parts)[name], atol=2e-3, rtol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [3, 7])
def test_a_killed_run_ends_like_an_uninterrupted_one(make: Make, step: int) -> None:
    straight = make("straight", batch_size=5, accumulation=2)
    expected = train(straight)
    broken, done = make("broken", batch_size=5, accumulation=2), 0

    def count(**amounts: int) -> None:
        nonlocal done
        done += amounts.get("steps", 0)
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        train(broken, count)
    tally = Tally()
    assert train(broken, tally) == expected
    assert tally.totals["steps"] == 12 - step // 4 * 4
    first, second = weights(straight), weights(broken)
    assert all(first[name].equal(second[name]) for name in first)


def test_phases_and_tokens_are_told_apart(make: Make) -> None:
    opened: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        opened.append(name)
        yield
        opened.append(f"end of {name}")

    tally = Tally()
    train(make(on_policy={"student_share": 0.5}, max_steps=4), tally, phase)
    load, answers, reads = (
        [name, f"end of {name}"] for name in (TEACHER_LOAD, STUDENT_GENERATION, TEACHER_FORWARD)
    )
    assert opened == load + 2 * (reads + answers + reads)
    assert 0 < tally.totals["generated"] <= 2 * 8 * ANSWER
    assert tally.totals["prompt"] > tally.totals["generated"] / 4


def test_a_low_rank_update_learns_from_its_own_answers(
    make: Make, tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    base = tmp_path / "base"
    publish_model(make_student(STUDENT, tokenizer, MAX_LENGTH, 3), tokenizer, base)
    lora = LoraSettings(rank=4, alpha=8, dropout=0.1)
    init = PretrainedStudent(model=str(base))
    request = make(init=init, lora=lora, tokenizer=base, max_steps=6, eval_every=3)
    result = train(request)
    assert result.trained_parameters < result.parameters
    assert result.cross_entropy < result.untrained_cross_entropy


def test_another_tokenizer_is_refused(make: Make, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_tokens(["<new>"])
    model = make_student(TEACHER, tokenizer, MAX_LENGTH, seed=1)
    publish_model(model, tokenizer, tmp_path / "other")
    request = make(train=make().train)
    other = TrainRequest(
        **{
            **{name: getattr(request, name) for name in request.__slots__},
            "on_policy": beside(tmp_path / "other"),
        }
    )
    with pytest.raises(AngelshareError, match="teacher was made with another tokenizer"):
        train(other)


def test_several_processes_are_refused(make: Make) -> None:
    with pytest.raises(AngelshareError, match="is trained by one process"):
        train_on(1, 2, make(), lambda *_: None, Tally())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"logits": True}, "without logits, features and relations"),
        ({"features": "blocks"}, "without logits, features and relations"),
        ({"on_policy": {"teacher": "http://host:8000/v1"}}, "memory: a server gives the best"),
        ({"on_policy": {"student_share": 1.5}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_learnt_on_policy_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PipelineSettings.model_validate({"data": "dataset", "on_policy": {}, **values})
