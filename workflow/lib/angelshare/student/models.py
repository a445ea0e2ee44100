"""Student models: made from a shape and a seed, or loaded; published as a folder others can load."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from angelshare.errors import AngelshareError
from angelshare.files import sync_file, sync_folder
from angelshare.student.settings import PretrainedStudent, ScratchStudent


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or hub name; ``AngelshareError`` when there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise AngelshareError(f"no tokenizer can be loaded from {folder}: {error}") from error
    return tokenizer


def make_student(
    init: ScratchStudent | PretrainedStudent,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
) -> PreTrainedModel:
    """A student in float32. The same seed gives the same weights in every pipeline.

    Raises ``AngelshareError`` when a pretrained model cannot be loaded or has fewer token embeddings
    than the tokenizer has tokens.
    """
    if isinstance(init, ScratchStudent):
        set_seed(seed)
        return Olmo2ForCausalLM(_config(init, tokenizer, max_length))
    model = load_model(init.model, init.revision)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise AngelshareError(
            f"{init.model} embeds {rows} tokens, its tokenizer has {len(tokenizer)}: they do not "
            "belong together"
        )
    return model


def load_model(name: Path | str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model in float32; ``AngelshareError`` when it cannot be loaded."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name, revision=revision or "main", dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise AngelshareError(
            f"no causal language model can be loaded from {name}: {error}"
        ) from error
    return model


def _config(
    init: ScratchStudent, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Olmo2Config:
    return Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=init.hidden_size,
        intermediate_size=init.intermediate_size,
        num_hidden_layers=init.layers,
        num_attention_heads=init.heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id(tokenizer),
    )


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the tokenizer's own, else its end-of-sequence token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise AngelshareError(
        f"{tokenizer.name_or_path}: the tokenizer has neither a padding nor an end-of-sequence token"
    )


def publish_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Publish model and tokenizer as ``folder``, which appears as a whole and replaces an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        model.config.use_cache = True
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            sync_file(path, 0o644)
        temporary.chmod(0o755)
        sync_folder(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
