from __future__ import annotations

import json

import pytest
import torch

from angelshare.errors import AngelshareError
from angelshare.teacher.models import load_causal_lm, load_config, load_tokenizer, resolve_dtype
from angelshare.teacher.prompts import stop_ids


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("load", [load_causal_lm, load_config, load_tokenizer])
def test_what_is_missing_offline_is_named_with_the_way_out(load) -> None:
    with pytest.raises(AngelshareError, match=r"nobody/nothing at revision abc .* set HF_HOME"):
        load("nobody/nothing", revision="abc")


@pytest.mark.parametrize("load", [load_causal_lm, load_config, load_tokenizer])
def test_a_folder_without_a_model_is_named(load, tmp_path) -> None:
    with pytest.raises(AngelshareError, match="check that the folder holds a whole model"):
        load(tmp_path)


def test_damaged_weights_are_named(model_dir, tmp_path) -> None:
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AngelshareError, match="check that the folder holds a whole model"):
        load_causal_lm(tmp_path)


def test_remote_code_is_not_run_unasked(model_dir, tmp_path) -> None:
    auto_map = {"AutoConfig": "ours.C", "AutoModelForCausalLM": "ours.M"}
    config = {"model_type": "ours", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "ours.py").write_text("raise SystemExit('ran')")
    with pytest.raises(AngelshareError, match="cannot be loaded"):
        load_causal_lm(tmp_path)


def test_auto_dtype() -> None:
    assert resolve_dtype("auto", "cpu") == torch.float32
    assert resolve_dtype("auto", "cuda") == torch.bfloat16
    assert resolve_dtype("float16", "cpu") == torch.float16


def test_stops_come_from_every_config(model_dir, tmp_path) -> None:
    tokenizer = load_tokenizer(model_dir)
    assert stop_ids(model_dir, tokenizer, None, False) == [tokenizer.eos_token_id]
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 5]}')
    assert stop_ids(tmp_path, tokenizer, None, False) == [tokenizer.eos_token_id, 5, 9]
    (tmp_path / "generation_config.json").unlink()
    assert stop_ids(tmp_path, tokenizer, None, False) == [tokenizer.eos_token_id]


def test_pickled_weights_are_not_read(model_dir, tmp_path) -> None:
    for path in model_dir.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    model = load_causal_lm(model_dir)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AngelshareError, match="safetensors"):
        load_causal_lm(tmp_path)
