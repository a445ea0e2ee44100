"""Loading and saving causal language models and their tokenizers, by folder or hub name.

Weights are safetensors, whose reading runs no code; code beside them is never run unless the
settings name the model and ask for it. What cannot be found is said in one line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from angelshare.errors import AngelshareError
from angelshare.files import publish_bytes

NOT_LOADABLE = (OSError, ValueError, ImportError, SafetensorError)
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars for the files it reads and writes."""
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def default_device() -> str:
    """``cuda`` where there is one, otherwise ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(name: DtypeName, device: str) -> torch.dtype:
    """The dtype of a name; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_causal_lm(
    path_or_name: str | Path,
    *,
    revision: str | None = None,
    dtype: DtypeName = "auto",
    device: str | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model in evaluation mode on ``device``; ``AngelshareError`` if it cannot be had."""
    device = device or default_device()
    try:
        with without_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path_or_name,
                revision=revision,
                dtype=resolve_dtype(dtype, device),
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
    except NOT_LOADABLE as error:
        raise _not_loadable("model", path_or_name, revision, error) from error
    torch.nn.Module.to(model, device)
    return model.eval()


def load_tokenizer(
    path_or_name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer; ``AngelshareError`` if it cannot be had."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path_or_name, revision=revision, trust_remote_code=trust_remote_code
        )
    except NOT_LOADABLE as error:
        raise _not_loadable("tokenizer", path_or_name, revision, error) from error
    return tokenizer


def load_config(
    path_or_name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """A model's configuration, that of its text part; ``AngelshareError`` if it cannot be had."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path_or_name, revision=revision, trust_remote_code=trust_remote_code
        )
    except NOT_LOADABLE as error:
        raise _not_loadable("configuration", path_or_name, revision, error) from error
    return config.get_text_config()


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Publish a model's config, generation config and safetensors in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch, without_progress_bars():
        model.save_pretrained(scratch)
        for path in sorted(Path(scratch).iterdir()):
            publish_bytes(folder / path.name, path.read_bytes())


def _not_loadable(
    what: str, path_or_name: str | Path, revision: str | None, error: Exception
) -> AngelshareError:
    at = f" at revision {revision}" if revision else ""
    first_line = str(error).strip().split("\n", 1)[0]
    if Path(path_or_name).exists():
        advice = "check that the folder holds a whole model (config.json, safetensors, tokenizer)"
    else:
        advice = (
            "check the name and revision; without a network, download it first on a machine that "
            "has one and set HF_HOME to that cache, or give a local folder"
        )
    return AngelshareError(f"{what} {path_or_name}{at} cannot be loaded: {first_line}; {advice}")
