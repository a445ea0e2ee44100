from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_teacher import PROBLEMS, nothing
from transformers import AutoModelForCausalLM

from angelshare.data.settings import TokenizerSettings
from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer, tokenizer_digest
from angelshare.teacher.demo import train_demo_teacher
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import DemoTeacher

SETTINGS = DemoTeacher(
    problems=200,
    steps=6,
    batch_size=8,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    warmup_steps=2,
    checkpoint_steps=2,
)


class Killed(Exception):
    """Raised from a callback in a run's middle."""


@functools.cache
def tokenizer_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
    save_tokenizer(problem_tokenizer(TokenizerSettings(), PROBLEMS), folder)
    return folder


def train(out, checkpoints, settings=SETTINGS, progress=nothing, count=nothing):
    return train_demo_teacher(
        settings,
        PROBLEMS,
        tokenizer_folder(),
        out,
        checkpoints=checkpoints,
        progress=progress,
        count=count,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    counted: list[int] = []
    stats = train(
        folder / "model", folder / "checkpoints", count=lambda trained: counted.append(trained)
    )
    assert sum(counted) == stats.trained_tokens
    return folder / "model"


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_loads_everywhere(finished) -> None:
    assert sorted(contents(finished)) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), load_tokenizer(finished)
    assert model.config.model_type == "olmo2"
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer_digest(tokenizer)) == 64


def test_one_seed_gives_one_teacher(finished, tmp_path) -> None:
    train(tmp_path / "again", tmp_path / "a")
    assert contents(tmp_path / "again") == contents(finished)
    train(tmp_path / "other", tmp_path / "b", SETTINGS.model_copy(update={"seed": 1}))
    assert (
        contents(tmp_path / "other")["model.safetensors"] != contents(finished)["model.safetensors"]
    )


def test_a_killed_run_goes_on_and_ends_the_same(finished, tmp_path) -> None:
    def kill_after_five(step: int, of: int, text: str) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "model", tmp_path / "checkpoints", progress=kill_after_five)
    assert not (tmp_path / "model").exists()
    steps: list[int] = []
    train(
        tmp_path / "model",
        tmp_path / "checkpoints",
        progress=lambda step, of, text: steps.append(step),
    )
    assert steps == [5, 6]
    assert contents(tmp_path / "model") == contents(finished)


def test_another_run_s_checkpoint_is_not_used(finished, tmp_path) -> None:
    train(tmp_path / "a", tmp_path / "checkpoints")
    steps: list[int] = []
    other = SETTINGS.model_copy(update={"matrix_lr": 0.01})
    train(
        tmp_path / "b",
        tmp_path / "checkpoints",
        other,
        progress=lambda step, of, text: steps.append(step),
    )
    assert steps == [1, 2, 3, 4, 5, 6]


def test_training_learns(finished, tmp_path) -> None:
    """Sixty steps bring the loss from above log V = 5.5 nats to near 3."""
    losses: list[float] = []
    train(
        tmp_path / "model",
        tmp_path / "checkpoints",
        SETTINGS.model_copy(update={"steps": 60, "batch_size": 16}),
        progress=lambda step, of, text: losses.append(float(text.removeprefix("loss "))),
    )
    assert losses[0] > 5
    assert sum(losses[-5:]) / 5 < 3.2


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"even multiple of heads \(3\)"):
        DemoTeacher(hidden_size=64, heads=3)


def test_weights_are_float32_on_a_cpu(finished) -> None:
    model = load_causal_lm(finished, device="cpu")
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert not model.training
