"""What every generation back end takes and gives: token ids in, token ids and a reason out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from transformers import GenerationConfig, PreTrainedTokenizerBase

from angelshare.energy.phases import Phase, unmetered
from angelshare.teacher.models import load_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question, by its row's id."""

    id: str
    """The row's id; with the seed it decides what is sampled."""
    token_ids: list[int]
    """The conversation with the generation prompt, whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer."""

    id: str
    """The id of its prompt."""
    token_ids: list[int]
    """What was generated, the token that stopped it included."""
    finish_reason: Literal["stop", "length"]
    """``stop``: the model ended it; ``length``: ``max_new_tokens`` did."""


class Generator(Protocol):
    """A back end that answers prompts."""

    def generate(
        self, prompts: Sequence[Prompt], phase: Phase = unmetered
    ) -> Iterator[list[Completion]]:
        """Answers in any order, some at a time; a row's answer depends on no other row. ``phase``
        is opened for reading prompts and for writing answers, where the back end keeps them apart.
        """
        ...


def row_seed(seed: int, row_id: str) -> int:
    """A seed in [0, 2^63) for one row: the same in every batch, part and back end."""
    digest = hashlib.sha256(f"{seed}/{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stop_ids(
    model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None,
    trust_remote_code: bool,
) -> list[int]:
    """Tokens that end an answer: the generation config's or the model config's, and the eos."""
    try:
        found = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
    except OSError:
        found = load_config(
            model, revision=revision, trust_remote_code=trust_remote_code
        ).eos_token_id
    ids = set(found if isinstance(found, list) else [found]) | {tokenizer.eos_token_id}
    return sorted(index for index in ids if index is not None)
