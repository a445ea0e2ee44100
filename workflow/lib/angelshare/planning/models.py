"""How large a model is and how many operations its tokens take, from its shape or its name.

Operations per token: 2 N forward and 6 N in training (N parameters; Kaplan et al., arXiv
2001.08361, Sec. 2.1), plus 4 L d s and 12 L d s for attention over sequences of s tokens (L layers
of width d; PaLM, arXiv 2204.02311, App. B).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from angelshare.files import read_json

_NAMED_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)\s*([BbMm])(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model as far as its cost goes. `basis` says where the numbers come from; of a `frozen` one
    only a low-rank update is trained, too small to count."""

    name: str
    parameters: int
    layers: int
    width: int
    basis: str
    frozen: bool = False

    def forward_flops(self, tokens: float, length: float) -> float:
        """Operations of a forward pass over `tokens` in sequences of `length`."""
        return tokens * (2.0 * self.parameters + 4.0 * self.layers * self.width * length)

    def training_flops(self, tokens: float, length: float) -> float:
        """Operations of a forward and backward pass; frozen weights need no gradients."""
        return (2.0 if self.frozen else 3.0) * self.forward_flops(tokens, length)


def from_shape(name: str, shape: Mapping[str, Any], vocabulary: int) -> ModelSize:
    """An OLMo-2 of the configuration's own making: tied embeddings, normalised queries and keys."""
    width, layers = int(shape["hidden_size"]), int(shape["layers"])
    block = 4 * width**2 + 3 * width * int(shape["intermediate_size"]) + 4 * width
    return ModelSize(name, vocabulary * width + layers * block + width, layers, width, "shape")


def of_model(
    name: str, revision: str | None, keep_layers: Sequence[int] | None = None
) -> ModelSize | None:
    """A pretrained model: from its `config.json` where the folder or the hub's cache has it, else
    from the size in its name; None where neither says anything.

    With `keep_layers` of those layers alone; a name does not tell how many there are, so that its
    size remains the whole model's.
    """
    kept = {"num_hidden_layers": len(keep_layers)} if keep_layers else {}
    for folder in (Path(name).expanduser(), hub_snapshot(name, revision)):
        if folder is not None and (folder / "config.json").is_file():
            try:
                return _from_config(name, read_json(folder / "config.json") | kept)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return from_name(name)


def from_name(name: str) -> ModelSize | None:
    """The size that a name states: `allenai/OLMo-2-0325-32B-SFT` has 32e9 parameters."""
    sizes = _NAMED_SIZE.findall(name.replace("_", "-").replace("/", "-"))
    if not sizes:
        return None
    number, letter = sizes[-1]
    parameters = int(float(number) * (1e9 if letter in "Bb" else 1e6))
    # A decoder of N parameters and aspect ratio 128 has N = 12 L d² = 12 d³ / 128.
    width = int((parameters * 128 / 12) ** (1 / 3))
    return ModelSize(name, parameters, max(1, width // 128), width, "name")


def hub_snapshot(name: str, revision: str | None) -> Path | None:
    """Where the hub's cache keeps this model's files, if it has them."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / (revision or "")
    return folder if revision and folder.is_dir() else None


def _from_config(name: str, config: Mapping[str, Any]) -> ModelSize:
    """From a transformers configuration of the Llama family."""
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or width // heads)
    keys = int(config.get("num_key_value_heads") or heads) * head
    attention = 2 * width * heads * head + 2 * width * keys
    forward = 3 * width * int(config["intermediate_size"])
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * int(config["vocab_size"]) * width
    parameters = embeddings + layers * (attention + forward + 4 * width) + width
    return ModelSize(name, parameters, layers, width, "config.json")
