"""Students that are a low-rank update of a model: what is trained, resumed, merged and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from peft import PeftModel
from pydantic import ValidationError

from angelshare.config import Student, load_config
from angelshare.errors import AngelshareError
from angelshare.grid import plan_study
from angelshare.student.checkpoints import checkpoint_of
from angelshare.student.lora import merged, with_lora
from angelshare.student.models import make_student, publish_model
from angelshare.student.ranks import Ranks
from angelshare.student.requests import TrainRequest
from angelshare.student.settings import LoraSettings, PretrainedStudent, ScratchStudent
from angelshare.student.train import train_student
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from .conftest import MAX_LENGTH, Tally

Make = Callable[..., TrainRequest]
ROOT = Path(__file__).resolve().parents[3]
SHAPE = ScratchStudent(hidden_size=32, layers=2, heads=2, intermediate_size=48)
LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)
IDS = torch.tensor([[5, 9, 2, 30, 7]])


@pytest.fixture(scope="module")
def base(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_tokenizer(tokenizer_folder)
    folder = tmp_path_factory.mktemp("base") / "model"
    publish_model(make_student(SHAPE, tokenizer, MAX_LENGTH, seed=5), tokenizer, folder)
    return folder


@pytest.fixture
def make(make_request: Make, base: Path) -> Make:
    def request(name: str = "run", **changes: Any) -> TrainRequest:
        fields = {"init": PretrainedStudent(model=str(base)), "lora": LORA, "tokenizer": base}
        return make_request(name, **{**fields, **changes})

    return request


def train(request: TrainRequest, count: Any = None) -> Any:
    return train_student(request, lambda *_: None, count or Tally())


def test_the_published_model_is_the_base_with_its_update(make: Make, base: Path) -> None:
    request = make()
    result = train(request)
    assert result.cross_entropy < result.untrained_cross_entropy
    assert result.parameters == load_causal_lm(base).num_parameters()
    assert 0 < result.trained_parameters < 0.5 * result.parameters
    assert not list(request.out.glob("adapter*"))
    checkpoint = checkpoint_of(request.checkpoints, result.best_step)
    assert not list(checkpoint.glob("model*.safetensors")), "a checkpoint holds the update alone"
    adapted = PeftModel.from_pretrained(load_causal_lm(base, dtype="float32"), str(checkpoint))
    published = load_causal_lm(request.out, dtype="float32")
    with torch.no_grad():
        expected, found = adapted(input_ids=IDS).logits, published(input_ids=IDS).logits
        untouched = load_causal_lm(base)(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - untouched).abs().max() > 1e-2
    assert type(published) is type(load_causal_lm(base))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_interrupted_training_ends_like_an_undisturbed_one(
    make: Make, checkpointing: bool
) -> None:
    """With dropout, whose draws a checkpoint must carry on."""
    straight = make("straight", gradient_checkpointing=checkpointing)
    broken = make("broken", gradient_checkpointing=checkpointing)
    expected = train(straight)
    done = 0

    def count(**amounts: int) -> None:
        nonlocal done
        done += amounts.get("steps", 0)
        if done == 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(broken, count)
    tally = Tally()
    assert train(broken, tally) == expected
    assert tally.totals["steps"] == 12 - 4
    one, other = (
        safetensors.torch.load_file(request.out / "model.safetensors")
        for request in (straight, broken)
    )
    assert all(one[name].equal(other[name]) for name in one)


def test_layers_that_are_dropped_stay_dropped(make: Make, base: Path) -> None:
    request = make(init=PretrainedStudent(model=str(base), keep_layers=[1]))
    train(request)
    assert load_causal_lm(request.out).config.num_hidden_layers == 1


def test_a_seed_decides_the_update(make: Make) -> None:
    found = [train(make(f"s{i}", seed=seed)).cross_entropy for i, seed in enumerate((1, 1, 2))]
    assert found[0] == found[1] != found[2]


def test_chosen_layers_alone_are_updated(base: Path) -> None:
    model = with_lora(load_causal_lm(base), LoraSettings(target_modules=["q_proj"]), seed=1)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * SHAPE.layers
    assert all("q_proj" in name for name in trained)


@pytest.mark.parametrize(
    ("names", "says"), [(["q_project"], "q_project"), (["lm_head"], "the embedding's too")]
)
def test_layers_that_cannot_be_updated_are_named(base: Path, names: list[str], says: str) -> None:
    with pytest.raises(AngelshareError, match=says):
        with_lora(load_causal_lm(base), LoraSettings(target_modules=names), seed=1)


def test_several_processes_are_refused(make: Make) -> None:
    with pytest.raises(AngelshareError, match="one process"):
        train_student(make(), lambda *_: None, Tally(), ranks=Ranks(0, 2))


def test_a_saved_request_keeps_its_update(make: Make, tmp_path: Path) -> None:
    make().save(tmp_path)
    assert TrainRequest.load(tmp_path).lora == LORA


def test_the_recipe_says_what_is_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    values["students"] = {"small": {"init": {"model": str(base)}, "gpus": 0}}
    values["grid"] = [{**values["grid"][0], "students": ["small"], "seeds": [1]}]
    (plain,) = plan_study(load_config(values)).runs.values()
    values["students"]["small"]["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.1}
    (run,) = plan_study(load_config(values)).runs.values()
    assert "lora" not in plain.recipe
    assert run.recipe["lora"] == LORA.model_dump()
    values["students"]["small"]["gpus"] = 2
    with pytest.raises(AngelshareError, match=r"small\.lora is trained by one process, not 2"):
        load_config(values)
    with pytest.raises(ValidationError, match="from scratch"):
        Student(init=SHAPE, lora=LORA)


def test_merging_leaves_a_plain_model(make: Make, base: Path) -> None:
    request = make()
    result = train(request)
    model = merged(
        load_causal_lm(base, dtype="float32"), checkpoint_of(request.checkpoints, result.best_step)
    )
    assert not any("lora" in name for name in model.state_dict())
