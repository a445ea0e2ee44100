"""Training on a teacher's hidden states: features and relations, whole and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from angelshare.student.models import make_student, publish_model
from angelshare.student.requests import TrainRequest, TrainResult
from angelshare.student.settings import ScratchStudent
from angelshare.student.train import train_student
from angelshare.student.trainer import PROJECTOR_NAME
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import StatesCapture
from angelshare.teacher.state_capture import capture_states

from .conftest import MAX_LENGTH, Tally

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
