"""Training on a teacher's hidden states: features and relations, whole and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from angelshare.errors import AngelshareError
from angelshare.student.launch import train_on
from angelshare.student.models import make_student, publish_model
from angelshare.student.requests import TrainRequest, TrainResult
from angelshare.student.settings import LossSettings, PretrainedStudent, ScratchStudent
from angelshare.student.states import student_layers
from angelshare.student.train import train_student
from angelshare.student.trainer import PROJECTOR_NAME
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import StatesCapture
from angelshare.teacher.state_capture import capture_states
from angelshare.teacher.states import StatesInfo

from .conftest import MAX_LENGTH, Tally
from .test_train import train_until

Make = Callable[..., TrainRequest]
TEACHER = ScratchStudent(hidden_size=24, layers=4, heads=2, intermediate_size=32)
STUDENT = ScratchStudent(hidden_size=16, layers=2, heads=2, intermediate_size=24)


def nothing(*_: object, **__: object) -> None:
    """Progress and counts that nobody reads."""


def train(request: TrainRequest) -> TrainResult:
    return train_student(request, lambda *_: None, Tally())


@pytest.fixture(scope="module")
def teacher(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deeper and wider model than the students'."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    tokenizer = load_tokenizer(tokenizer_folder)
    publish_model(make_student(TEACHER, tokenizer, MAX_LENGTH, seed=8), tokenizer, folder)
    return folder


@pytest.fixture
def states_of(teacher: Path, make_request: Make, tmp_path: Path) -> Callable[..., Path]:
    """Caches the teacher's hidden states over the training rows."""

    def make(**settings: object) -> Path:
        path = tmp_path / f"states-{len(list(tmp_path.iterdir()))}.parquet"
        whole = {
            "max_length": MAX_LENGTH,
            "batch_tokens": 512,
            "dtype": "auto",
            "attn_implementation": "sdpa",
            **settings,
        }
        capture_states(
            teacher,
            make_request().train,
            StatesCapture.model_validate(whole),
            path,
            progress=nothing,
            count=nothing,
        )
        return path

    return make


def last(result: TrainResult, name: str) -> float:
    return next(entry[name] for entry in reversed(result.history) if name in entry)


def first(result: TrainResult, name: str) -> float:
    return next(entry[name] for entry in result.history if name in entry)


def weights(request: TrainRequest) -> dict[str, torch.Tensor]:
    found = safetensors.torch.load_file(request.out / "model.safetensors")
    projector = request.out.with_name(PROJECTOR_NAME)
    return found | (safetensors.torch.load_file(projector) if projector.exists() else {})


def test_features_fall_and_the_model_stands_without_its_projector(
    make_request: Make, states_of: Callable[..., Path]
) -> None:
    path = states_of(layers=2)
    request = make_request(init=STUDENT, states={"features": [path]}, max_steps=40, eval_every=20)
    result = train(request)
    assert last(result, "feature_loss") < 0.7 * first(result, "feature_loss")
    projector = safetensors.torch.load_file(request.out.with_name(PROJECTOR_NAME))
    assert {name: tuple(w.shape) for name, w in projector.items()} == {
        "projectors.layer_002.weight": (24, 16),
        "projectors.layer_002.bias": (24,),
        "projectors.layer_004.weight": (24, 16),
        "projectors.layer_004.bias": (24,),
    }
    model = load_causal_lm(request.out)
    assert not any(name.startswith("projectors") for name in model.state_dict())
    assert result.parameters == model.num_parameters()


def everything(states_of: Callable[..., Path], loss: str) -> dict[str, object]:
    """Features and relations together, by one kind of feature loss."""
    return {
        "init": STUDENT,
        "states": {
            "features": [states_of(layers=2, format="int8", fraction=0.5)],
            "relations": [states_of(positions="mean_of_targets")],
        },
        "loss": LossSettings.model_validate(
            {"feature": {"loss": loss, "weight": 2}, "relation": {"weight": 3}}
        ),
    }


CURVES = ("train_loss", "cross_entropy", "feature_loss", "relation_loss", "relation_pairs")


def assert_same_training(
    one: tuple[TrainRequest, TrainResult], other: tuple[TrainRequest, TrainResult]
) -> None:
    """Equal but for rounding."""
    for a, b in zip(one[1].history, other[1].history, strict=True):
        for name in CURVES:
            assert a.get(name) == pytest.approx(b.get(name), abs=2e-4), name
    first, second = weights(one[0]), weights(other[0])
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=0)


@pytest.mark.parametrize("loss", ["mse", "cosine", "cka"])
def test_accumulation_and_processes_change_neither_curves_nor_weights(
    make_request: Make, states_of: Callable[..., Path], loss: str
) -> None:
    """Also where an epoch ends with a single row, which one of two processes does not have."""
    more = everything(states_of, loss) | {"train": make_request().train.slice(0, 33)}
    more |= {"max_steps": 5, "eval_every": 2, "optimizer": "adafactor"}
    whole = make_request("whole", batch_size=16, accumulation=1, **more)
    parts = make_request("parts", batch_size=4, accumulation=4, **more)
    expected = whole, train(whole)
    assert_same_training(expected, (parts, train(parts)))
    pairs = [entry["relation_pairs"] for entry in expected[1].history if "train_loss" in entry]
    assert pairs == [120, 120, 0, 120, 120]
    if loss == "cosine":
        return  # differs from mse in one line, which knows nothing of processes
    together = make_request("together", batch_size=8, accumulation=2, **more)
    shared = train_on(1, 2, together, lambda *_: None, Tally())
    assert_same_training(expected, (together, shared))


@pytest.mark.parametrize("loss", ["mse", "cka"])
def test_a_killed_run_ends_like_an_uninterrupted_one(
    make_request: Make, states_of: Callable[..., Path], loss: str
) -> None:
    more = everything(states_of, loss) | {"batch_size": 5, "accumulation": 2, "optimizer": "muon"}
    straight, broken = make_request("straight", **more), make_request("broken", **more)
    expected = train(straight)
    train_until(broken, 7)
    assert not broken.out.exists()
    assert train(broken) == expected
    first, second = weights(straight), weights(broken)
    assert ("projectors.layer_002.weight" in first) == (loss == "mse")
    assert all(first[name].equal(second[name]) for name in first)


def test_checkpointed_activations_give_the_same(
    make_request: Make, states_of: Callable[..., Path]
) -> None:
    more = everything(states_of, "mse")
    plain = make_request("plain", **more)
    thrifty = make_request("thrifty", gradient_checkpointing=True, **more)
    assert_same_training((plain, train(plain)), (thrifty, train(thrifty)))


def test_states_of_a_bfloat16_student(make_request: Make, states_of: Callable[..., Path]) -> None:
    more = everything(states_of, "mse") | {"precision": "bfloat16", "max_steps": 20}
    result = train(make_request(eval_every=10, **more))
    assert last(result, "feature_loss") < first(result, "feature_loss")


def info(layers: tuple[int, ...], depth: int) -> StatesInfo:
    return StatesInfo(
        format="float16",
        positions="targets",
        fraction=1.0,
        layers=layers,
        depth=depth,
        width=8,
        tokenizer_sha256="",
        sequences=0,
        vectors=0,
    )


@pytest.mark.parametrize(
    ("layers", "teacher", "student", "expected"),
    [
        ((2, 4), 4, 2, [1, 2]),
        ((0, 1, 4), 4, 2, [0, 1, 2]),
        ((7, 13, 20), 32, 16, [4, 7, 10]),
        ((16, 32), 32, 32, [16, 32]),
        ((1, 64), 64, 16, [1, 16]),
    ],
)
def test_layers_at_the_same_share_of_the_depth(
    layers: tuple[int, ...], teacher: int, student: int, expected: list[int]
) -> None:
    found = student_layers(info(layers, teacher), student, None, "loss.feature")
    assert list(found) == list(layers)
    assert list(found.values()) == expected


def test_layers_by_name_are_there_and_whole() -> None:
    both = info((2, 4), 4)
    assert student_layers(both, 2, {2: 2, 4: 1}, "loss.feature") == {2: 2, 4: 1}
    with pytest.raises(AngelshareError, match=r"loss.feature.layers names no layer .* teacher's 4"):
        student_layers(both, 2, {2: 1}, "loss.feature")
    with pytest.raises(AngelshareError, match="layer 3 of a student of 2 blocks"):
        student_layers(both, 2, {2: 1, 4: 3}, "loss.feature")


def test_a_student_that_is_the_teacher_has_nothing_to_learn_of_relations(
    make_request: Make, states_of: Callable[..., Path], teacher: Path
) -> None:
    """The same point on both sides: with equal models the loss begins at zero."""
    request = make_request(
        init=PretrainedStudent(model=str(teacher)),
        states={"relations": [states_of(layers=(0, 1, 3, 4), positions="mean_of_tokens")]},
        max_steps=1,
        eval_every=1,
        warmup_steps=0,
        lr=1e-9,
    )
    result = train(request)
    assert first(result, "relation_loss") == pytest.approx(0, abs=1e-6)
    assert first(result, "relation_pairs") == 8 * 7 / 2


def test_states_of_other_rows_tokens_or_positions_are_refused(
    make_request: Make, states_of: Callable[..., Path]
) -> None:
    path = states_of()
    with pytest.raises(AngelshareError, match="relations are between sequences"):
        train(make_request(states={"relations": [path]}))
    with pytest.raises(AngelshareError, match=r"made from other tokens"):
        train(make_request(states={"features": [path]}, max_length=MAX_LENGTH // 2))
    validation = make_request().validation
    with pytest.raises(AngelshareError, match=r"is not in the cache"):
        train(make_request(states={"features": [path]}, train=validation))
