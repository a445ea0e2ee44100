"""Students made from parts of a model that exists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from angelshare.errors import AngelshareError
from angelshare.fingerprints import Fingerprints
from angelshare.student.models import make_student, publish_model, with_layers
from angelshare.student.settings import PretrainedStudent, ScratchStudent
from angelshare.teacher.models import load_causal_lm, load_tokenizer

from .conftest import MAX_LENGTH

SHAPE = ScratchStudent(hidden_size=16, layers=4, heads=2, intermediate_size=24)


@pytest.fixture(scope="module")
def teacher(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_tokenizer(tokenizer_folder)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    publish_model(make_student(SHAPE, tokenizer, MAX_LENGTH, seed=5), tokenizer, folder)
    return folder


def hidden_through(model: torch.nn.Module, layers: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Logits when only some decoder layers are applied, by skipping the others where they are."""
    kept = torch.nn.ModuleList(model.model.layers[i] for i in layers)
    model.model.layers, model.config.num_hidden_layers = kept, len(layers)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_kept_layers_compute_what_they_did_in_the_model(teacher: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    init = PretrainedStudent(model=str(teacher), keep_layers=[0, 3])
    student = make_student(init, tokenizer, MAX_LENGTH, seed=0)
    assert student.config.num_hidden_layers == 2
    ids = torch.tensor([[5, 9, 2, 30]])
    expected = hidden_through(load_causal_lm(teacher), [0, 3], ids)
    publish_model(student, tokenizer, tmp_path / "student")
    loaded = load_causal_lm(tmp_path / "student")
    with torch.no_grad():
        assert loaded(input_ids=ids).logits.equal(expected)
        with_cache = loaded.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
        without = loaded.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert with_cache.equal(without)
    assert not expected.equal(load_causal_lm(teacher)(input_ids=ids).logits)


def test_a_layer_that_is_not_there_is_named(teacher: Path) -> None:
    with pytest.raises(AngelshareError, match=r"names layer 4, .* has layers 0 to 3"):
        with_layers(load_causal_lm(teacher), [0, 4])
    for wrong in ([], [1, 0], [1, 1]):
        with pytest.raises(ValidationError):
            PretrainedStudent(model="x", keep_layers=wrong)


def test_kept_layers_are_in_the_recipe_and_keeping_all_is_not(teacher: Path, tmp_path) -> None:
    prints = Fingerprints(tmp_path)
    some = prints.student(PretrainedStudent(model=str(teacher), keep_layers=[0, 1]))
    whole = prints.student(PretrainedStudent(model=str(teacher)))
    assert some == {**whole, "keep_layers": [0, 1]}
    assert "keep_layers" not in whole


def test_a_student_stops_where_the_tokenizer_it_reads_with_does(teacher: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    tokenizer.eos_token = "<|user|>"
    student = make_student(PretrainedStudent(model=str(teacher)), tokenizer, MAX_LENGTH, seed=0)
    assert student.config.eos_token_id == tokenizer.eos_token_id
    assert student.generation_config.eos_token_id == tokenizer.eos_token_id
