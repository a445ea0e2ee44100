"""Generation by transformers: batches of alike lengths, padded left, decoded greedily or sampled.

Sampling adds Gumbel noise to the tempered, truncated log-probabilities and takes the best token
(the Gumbel-max trick samples exactly). Each row draws from a generator of its own, seeded by the
seed and the row's id, so its answer does not depend on the batch it stands in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from angelshare.energy.phases import Phase, prefill_then_decode, unmetered
from angelshare.teacher.models import load_causal_lm
from angelshare.teacher.prompts import Completion, Prompt, row_seed, stop_ids
from angelshare.teacher.settings import DecodingSettings


class Answering:
    """Answers of a model that is loaded already; see the module."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[int],
        settings: DecodingSettings,
    ) -> None:
        """``stops`` are the tokens that end an answer."""
        self._model, self._settings, self._stops = model, settings, list(stops)
        self._vocab_size = len(tokenizer)
        self._pad_id = next(
            index for index in (tokenizer.pad_token_id, *stops) if index is not None
        )

    def generate(
        self, prompts: Sequence[Prompt], phase: Phase = unmetered
    ) -> Iterator[list[Completion]]:
        """Answers, a batch at a time, short prompts first."""
        ordered = sorted(prompts, key=lambda prompt: len(prompt.token_ids))
        for begin in range(0, len(ordered), self._settings.batch_size):
            yield self._answer(ordered[begin : begin + self._settings.batch_size], phase)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """The model's own defaults (penalties, nucleus) do not count; afterwards they do again."""
        own, training = self._model.generation_config, self._model.training
        self._model.generation_config = GenerationConfig(
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            eos_token_id=self._stops,
            pad_token_id=self._pad_id,
        )
        self._model.eval()
        try:
            yield
        finally:
            self._model.generation_config = own
            self._model.train(training)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Prompt], phase: Phase) -> list[Completion]:
        width = max(len(prompt.token_ids) for prompt in batch)
        ids_BT = torch.full((len(batch), width), self._pad_id)
        mask_BT = torch.zeros(len(batch), width, dtype=torch.long)
        for index, prompt in enumerate(batch):
            ids_BT[index, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask_BT[index, width - len(prompt.token_ids) :] = 1
        with self._decoding(), prefill_then_decode(phase, self._model):
            output_BT = self._model.generate(
                input_ids=ids_BT.to(self._model.device),
                attention_mask=mask_BT.to(self._model.device),
                logits_processor=self._processors(batch),
            )
        generated = output_BT[:, width:].tolist()
        return [
            self._completion(prompt, tokens)
            for prompt, tokens in zip(batch, generated, strict=True)
        ]

    def _processors(self, batch: Sequence[Prompt]) -> LogitsProcessorList:
        settings = self._settings
        processors = LogitsProcessorList([OnlyVocabulary(self._vocab_size)])
        if settings.temperature > 0:
            processors.append(TemperatureLogitsWarper(settings.temperature))
            if settings.top_p < 1:
                processors.append(TopPLogitsWarper(settings.top_p))
            seeds = [row_seed(settings.seed, prompt.id) for prompt in batch]
            processors.append(GumbelNoise(seeds, self._vocab_size))
        return processors

    def _completion(self, prompt: Prompt, tokens: list[int]) -> Completion:
        for index, token in enumerate(tokens):
            if token in self._stops:
                return Completion(id=prompt.id, token_ids=tokens[: index + 1], finish_reason="stop")
        return Completion(id=prompt.id, token_ids=tokens, finish_reason="length")


class TransformersGenerator(Answering):
    """As a back end: loads the model itself."""

    def __init__(
        self,
        model: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        settings: DecodingSettings,
        *,
        revision: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model; ``AngelshareError`` if it cannot be had."""
        loaded = load_causal_lm(
            model,
            revision=revision,
            dtype=settings.dtype,
            device=device,
            attn_implementation=settings.attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        stops = stop_ids(model, tokenizer, revision, trust_remote_code)
        super().__init__(loaded, tokenizer, stops, settings)


class OnlyVocabulary(LogitsProcessor):
    """Forbid the rows that pad the vocabulary: the tokenizer knows no such tokens."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V], float32, -inf beyond the vocabulary."""
        scores = scores.float()
        scores[:, self._vocab_size :] = -torch.inf
        return scores


class GumbelNoise(LogitsProcessor):
    """Add Gumbel noise, so that the best score is a sample; one seeded generator per row."""

    def __init__(self, seeds: Sequence[int], vocab_size: int) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] minus the log of exponential noise."""
        noise_BV = torch.empty(len(self._generators), self._vocab_size)
        for row, generator in zip(noise_BV, self._generators, strict=True):
            row.exponential_(generator=generator)
        scores[:, : self._vocab_size] -= noise_BV.log().to(scores.device)
        return scores
