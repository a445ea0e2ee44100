"""On-policy distillation: the student answers, the teacher says what it would have said.

Generalised knowledge distillation (Agarwal et al. 2023, arXiv:2306.13649). In a share of the
optimizer steps the answers of the data are replaced by answers that the student draws with its
weights of that moment. The teacher, which lies in memory beside the student, reads the sequences of
every step, and what it says at their targets goes into the batches in the form in which a cache
would have said it. So neither loss nor trainer knows where a batch comes from.

Whose a step is follows from its number, an answer from seed, step, prompt and weights: neither from
the batch that a prompt stands in nor from how often the training was interrupted. Nothing is kept:
another run has other answers, so what the teacher spends on these is shared with none.

Shapes: B sequences, L tokens, T target positions, H hidden size, k kept tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from angelshare.data.sequences import Encoded, EncodedRow, sequence_digest
from angelshare.data.tokenizer import tokenizer_digest
from angelshare.energy.phases import STUDENT_GENERATION, TEACHER_FORWARD, TEACHER_LOAD, Phase
from angelshare.student.callbacks import Count
from angelshare.student.dataset import Batch, padded, same_tokenizer
from angelshare.student.losses import IGNORED
from angelshare.student.models import pad_token_id
from angelshare.student.requests import OnPolicyRequest
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.prompts import Prompt, stop_ids
from angelshare.teacher.settings import CaptureSettings, DecodingSettings, TopkTailSettings
from angelshare.teacher.transformers_backend import Answering
from angelshare.teacher.transformers_logits import Head, check_head, kept

PROBE_TOKENS = 4
StepBatches = Callable[[list[Batch], int], list[Batch]]
"""What the batches of an optimizer step become, given how many steps came before it."""


def as_read(batches: list[Batch], _step: int) -> list[Batch]:
    """The batches of a training that learns from what was cached, or from labels."""
    return batches


class OnlineTeacher:
    """A teacher in memory, which reads the batches of a training."""

    def __init__(
        self, request: OnPolicyRequest, tokenizer: PreTrainedTokenizerBase, temperature: float
    ) -> None:
        """Load it. ``AngelshareError`` where it cannot be had, reads with another tokenizer than
        the student, or does not make its logits by a linear head."""
        settings = request.settings
        own = load_tokenizer(
            request.model,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
        )
        same_tokenizer(tokenizer, tokenizer_digest(own), "teacher")
        self.stops = stop_ids(request.model, own, request.revision, request.trust_remote_code)
        self.model = load_causal_lm(
            request.model,
            revision=request.revision,
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            trust_remote_code=request.trust_remote_code,
        )
        self.head = Head(self.model, len(tokenizer))
        self.capture = CaptureSettings(
            codec=TopkTailSettings(top_k=min(settings.top_k, len(tokenizer)), top_p=1.0),
            temperatures=tuple({1.0, temperature}),
        )
        self._column = self.capture.temperatures.index(temperature)
        first = Encoded(input_ids=list(range(PROBE_TOKENS)), targets=[], sha256=b"")
        with torch.inference_mode():
            check_head(self.model, self.head, [EncodedRow("probe", first)])

    @torch.inference_mode()
    def read(self, batch: Batch) -> Batch:
        """The slots of `dataset.collator` for the batch's targets: ``teacher_ids`` int64 [T, k],
        ``teacher_logits`` float32 [T, k], ``teacher_log_partition`` float32 [T], on its device.

        The batch is padded on the right, which what is causal never sees.
        """
        device = self.model.device
        ids_BL, labels_BL = batch["input_ids"].to(device), batch["labels"].to(device)
        wanted_BL = labels_BL[:, 1:] != IGNORED
        hidden_BLH = self.model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
        found = kept(
            self.head,
            hidden_BLH[:, :-1][wanted_BL],
            labels_BL[:, 1:][wanted_BL],
            self.capture,
            torch.zeros(int(wanted_BL.sum())),
        )
        return {
            "teacher_ids": found["ids"].long(),
            "teacher_logits": found["values"],
            "teacher_log_partition": found["log_partition"][:, self._column],
            "teacher_tail": True,
        }


class OnPolicy:
    """Makes the batches of a training's optimizer steps; see the module."""

    def __init__(
        self,
        request: OnPolicyRequest,
        student: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_length: int,
        seed: int,
        count: Count,
        phase: Phase,
    ) -> None:
        """Load the teacher; ``student`` is the model that is being trained.

        ``count`` receives the tokens that the student read and wrote; ``phase`` opens stretches of
        the energy window. Raises as `OnlineTeacher`.
        """
        self.settings, self.max_length = request.settings, max_length
        self.count, self.phase = count, phase
        self.pad_id = pad_token_id(tokenizer)
        with phase(TEACHER_LOAD):
            self.teacher = OnlineTeacher(request, tokenizer, temperature)
        ends = {*self.teacher.stops, tokenizer.eos_token_id} - {None}
        decoding = DecodingSettings(
            max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=seed,
            batch_size=self.settings.batch_size,
        )
        self.answering = Answering(student, tokenizer, sorted(ends), decoding)

    def __call__(self, batches: list[Batch], step: int) -> list[Batch]:
        """The batches of optimizer step ``step``, counted from 0, with what the teacher says."""
        if is_students(step, self.settings.student_share):
            with self.phase(STUDENT_GENERATION):
                batches = self._answered(batches, step)
        with self.phase(TEACHER_FORWARD):
            return [{**batch, **self.teacher.read(batch)} for batch in batches]

    def _answered(self, batches: list[Batch], step: int) -> list[Batch]:
        """The prompts of all passes with new answers; a pass keeps its rows, in their order.

        An answer that is its own label would teach what the student does already: ``alpha`` is 0.
        """
        asked = [[_prompt(row, step) for row in _rows(batch)] for batch in batches]
        every = {prompt.id: prompt for prompts in asked for prompt in prompts}
        answers = {
            completion.id: completion.token_ids
            for some in self.answering.generate(list(every.values()))
            for completion in some
        }
        self.count(
            prompt=sum(len(prompt.token_ids) for prompt in every.values()),
            generated=sum(map(len, answers.values())),
        )
        return [
            {
                **padded([self._sequence(one, answers[one.id]) for one in prompts], self.pad_id),
                "alpha": 0.0,
            }
            for prompts in asked
        ]

    def _sequence(self, prompt: Prompt, answer: list[int]) -> Encoded:
        ids = (prompt.token_ids + answer)[: self.max_length]
        targets = [place >= len(prompt.token_ids) for place in range(len(ids))]
        return Encoded(input_ids=ids, targets=targets, sha256=sequence_digest(ids, targets))


def is_students(step: int, share: float) -> bool:
    """Whether step ``step`` is one of the share whose answers are the student's.

    They are evenly spaced: of the first n steps floor(n · share) are.
    """
    return math.floor((step + 1) * share) > math.floor(step * share)


def _rows(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels of each sequence, without padding."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = zip(batch["input_ids"], batch["labels"], lengths, strict=True)
    return [(ids[:length], labels[:length]) for ids, labels, length in rows]


def _prompt(row: tuple[Tensor, Tensor], step: int) -> Prompt:
    """What stands before a sequence's last answer; its id decides, with the seed, what is drawn."""
    ids, labels = row
    wanted = labels != IGNORED
    begins = wanted & ~torch.cat([wanted.new_zeros(1), wanted[:-1]])
    token_ids: list[int] = ids[: int(begins.nonzero()[-1])].tolist()
    digest = hashlib.sha256(repr(token_ids).encode()).hexdigest()
    return Prompt(id=f"{step}/{digest}", token_ids=token_ids)
