"""Student models: made from a shape and a seed, or loaded; published as a folder others load."""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from angelshare.data.tokenizer import save_tokenizer
from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX, sync_folder
from angelshare.student.settings import PretrainedStudent, ScratchStudent
from angelshare.teacher.models import load_causal_lm, save_model


def make_student(
    init: ScratchStudent | PretrainedStudent,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
) -> PreTrainedModel:
    """A student in float32. The same seed gives the same weights in every pipeline.

    Raises ``AngelshareError`` when a pretrained model cannot be loaded or has fewer token
    embeddings than the tokenizer has tokens.
    """
    if isinstance(init, ScratchStudent):
        set_seed(seed)
        return Olmo2ForCausalLM(_config(init, tokenizer, max_length))
    model = load_causal_lm(init.model, revision=init.revision, dtype="float32")
    if init.keep_layers is not None:
        model = with_layers(model, init.keep_layers)
    rows = model.get_input_embeddings().weight.size(0)  # type: ignore[operator]
    if rows < len(tokenizer):
        raise AngelshareError(
            f"{init.model} embeds {rows} tokens, its tokenizer has {len(tokenizer)}: they do not "
            "belong together"
        )
    # A base model that reads with its teacher's tokenizer must stop where that one ends a turn.
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = pad_token_id(tokenizer)
    return model


_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model of the same architecture from the ``kept`` decoder layers of ``model``.

    ``AngelshareError`` when there is no such layer.
    """
    config = copy.deepcopy(model.config)
    if kept[-1] >= config.num_hidden_layers:
        raise AngelshareError(
            f"keep_layers names layer {kept[-1]}, {model.name_or_path} has layers 0 to "
            f"{config.num_hidden_layers - 1}"
        )
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    places = {layer: place for place, layer in enumerate(kept)}
    weights = {}
    for name, weight in model.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            weights[name] = weight
        elif int(found[2]) in places:
            weights[f"{found[1]}{places[int(found[2])]}{found[3]}"] = weight
    smaller: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    smaller.load_state_dict(weights)
    smaller.generation_config = model.generation_config
    return smaller.eval()


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
        rope_parameters={"rope_type": "default", "rope_theta": init.rope_theta},
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
        f"{tokenizer.name_or_path}: the tokenizer has neither padding nor end-of-sequence token"
    )


def publish_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Publish model and tokenizer as ``folder``, which appears whole and replaces an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{folder.name}-", dir=folder.parent)
    )
    try:
        model.config.use_cache = True
        save_model(model, temporary)
        save_tokenizer(tokenizer, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
