"""A synthetic corpus: the teacher's answers to the prompts of a sequence table.

Every prompt is answered whole or not at all: one that leaves no room for ``max_new_tokens`` keeps
its row, without an answer and with a finish reason that says so. The result is a sequence table
with the answers appended, in the order of the prompts, with how each ended and its token counts. An
answer depends on the model, the settings and the row alone, not on the rows around it. Finished
batches can be kept in a journal: an attempt that finds some there answers the other prompts in the
batches it would have had without a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from angelshare.data.answers import UNANSWERED
from angelshare.data.sequences import prompt_ids, prompt_messages
from angelshare.data.tables import CORPUS_SCHEMA, sequence_table, write_table
from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.store.journal import Journal
from angelshare.teacher.models import load_config, load_tokenizer
from angelshare.teacher.prompts import Completion, Generator, Prompt
from angelshare.teacher.settings import DecodingSettings

if TYPE_CHECKING:
    from angelshare.teacher.transformers_backend import TransformersGenerator
    from angelshare.teacher.vllm_backend import VllmGenerator

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """What a generation read and made."""

    sequences: int
    """Rows of the corpus."""
    prompt_tokens: int
    """Tokens of all prompts."""
    generated_tokens: int
    """Tokens of all answers, the tokens that ended them included."""
    cut: int
    """Answers that ``max_new_tokens`` ended."""
    unanswered: int = 0
    """Prompts that left no room for ``max_new_tokens``; their rows say so and have no answer."""


def generate_corpus(
    model_dir: str | Path,
    table: pa.Table,
    settings: DecodingSettings,
    out: Path,
    *,
    progress: Progress,
    count: Callable[..., None],
    phase: Phase = unmetered,
    journal: Journal | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> GenerationStats:
    """Answer every row of ``table`` up to its last user turn and write the corpus to ``out``.

    ``count(prompt=…, generated=…)`` receives tokens, without those of the ``journal``'s answers;
    ``phase`` opens the energy window's ``prefill`` and ``decode`` (not with vLLM).
    ``AngelshareError`` when no prompt fits.
    """
    tokenizer = load_tokenizer(model_dir, revision=revision, trust_remote_code=trust_remote_code)
    config = load_config(model_dir, revision=revision, trust_remote_code=trust_remote_code)
    room = settings.max_model_len or config.max_position_embeddings
    rows = table.select(["id", "split", "messages"]).to_pylist()
    asked = _prompts(rows, tokenizer)
    lengths = {prompt.id: len(prompt.token_ids) for prompt in asked}
    prompts = _fitting(asked, settings, room)
    completions = (
        {c.id: c for piece in journal.pieces() for c in _unpacked(piece)} if journal else {}
    )
    if completions:
        progress(len(completions), len(prompts), "answers of an earlier attempt")
    left = [prompt for prompt in prompts if prompt.id not in completions]
    generator: Generator | None = None
    if left:
        generator = back_end(settings)(
            model_dir,
            tokenizer,
            settings,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    for some in generator.generate(left, phase) if generator else []:
        completions.update((completion.id, completion) for completion in some)
        if journal:
            journal.add(_packed(some))
        count(
            prompt=sum(lengths[completion.id] for completion in some),
            generated=sum(len(completion.token_ids) for completion in some),
        )
        progress(len(completions), len(prompts), "answers")
    answered = [_answered(row, lengths, completions.get(row["id"]), tokenizer) for row in rows]
    write_table(sequence_table(answered, CORPUS_SCHEMA), out)
    return GenerationStats(
        sequences=len(rows),
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        generated_tokens=sum(len(c.token_ids) for c in completions.values()),
        cut=sum(c.finish_reason == "length" for c in completions.values()),
        unanswered=len(asked) - len(prompts),
    )


def _packed(completions: Sequence[Completion]) -> bytes:
    """Some answers as a piece of a journal."""
    return json.dumps([asdict(completion) for completion in completions]).encode()


def _unpacked(piece: bytes) -> list[Completion]:
    return [Completion(**values) for values in json.loads(piece)]


def _prompts(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    prompts = []
    for row in rows:
        try:
            ids = prompt_ids(tokenizer, row["messages"])
        except AngelshareError as error:
            raise AngelshareError(f"row {row['id']}: {error}") from error
        prompts.append(Prompt(id=row["id"], token_ids=ids))
    return prompts


def _fitting(asked: Sequence[Prompt], settings: DecodingSettings, room: int) -> list[Prompt]:
    """The prompts that leave room for an answer; ``AngelshareError`` if none does."""
    fitting = [p for p in asked if len(p.token_ids) + settings.max_new_tokens <= room]
    if asked and not fitting:
        shortest = min(asked, key=lambda prompt: len(prompt.token_ids))
        raise AngelshareError(
            f"none of {len(asked)} prompts fits: the shortest, row {shortest.id}, has "
            f"{len(shortest.token_ids)} tokens, and with max_new_tokens {settings.max_new_tokens} "
            f"exceeds the model's {room}; lower max_new_tokens, or raise max_model_len if the "
            "model allows it"
        )
    return fitting


def back_end(settings: DecodingSettings) -> type[TransformersGenerator] | type[VllmGenerator]:
    """The back end of the settings; no other is imported."""
    if settings.backend == "transformers":
        from angelshare.teacher.transformers_backend import TransformersGenerator

        return TransformersGenerator
    from angelshare.teacher.vllm_backend import VllmGenerator

    return VllmGenerator


def _answered(
    row: dict[str, Any],
    lengths: dict[str, int],
    completion: Completion | None,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """The corpus row: the conversation up to its last question, and the answer if there is one."""
    messages = prompt_messages(row["messages"])
    if completion is not None:
        answer = str(tokenizer.decode(completion.token_ids, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": answer})
    return {
        "id": row["id"],
        "split": row["split"],
        "messages": messages,
        "finish_reason": completion.finish_reason if completion else UNANSWERED,
        "prompt_tokens": lengths[row["id"]],
        "generated_tokens": len(completion.token_ids) if completion else 0,
    }
