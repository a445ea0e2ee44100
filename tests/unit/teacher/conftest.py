"""A tiny OLMo-2 folder whose vocabulary is padded beyond its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tiny_teacher import PADDED_VOCABULARY, PROBLEMS
from transformers import Olmo2Config, Olmo2ForCausalLM

from angelshare.data.problems import make_dataset
from angelshare.data.settings import TokenizerSettings
from angelshare.data.tables import in_splits
from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = problem_tokenizer(TokenizerSettings(), PROBLEMS)
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=PADDED_VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=96,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset() -> pa.Table:
    return make_dataset(PROBLEMS)


@pytest.fixture(scope="session")
def labelled(dataset) -> pa.Table:
    return in_splits(dataset, ["train"])
