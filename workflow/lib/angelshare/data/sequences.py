"""Chat messages as token ids with a mark on every token that is learnt: the assistant's, no other.

The text comes from the tokenizer's chat template and is tokenised once, as a whole, so that
capture, training and evaluation see the same ids. The span of an assistant turn is found in the
rendered text: from the end of the generation prompt before it to the end of the rendering that
includes it (so its end-of-turn token belongs to it). A target at index t is predicted from position
t-1; token 0 is never one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from angelshare.data.tables import Message
from angelshare.errors import AngelshareError


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One sequence: ids [T], targets [T], and the digest that other artifacts align with."""

    input_ids: list[int]
    """Token ids, at most ``max_length`` of them."""
    targets: list[bool]
    """True where the token belongs to an assistant turn."""
    sha256: bytes
    """sha256 over the ids as little-endian int32, then the targets as one byte each."""

    def without_targets(self) -> Encoded:
        """The same tokens, none of them to be learnt."""
        targets = [False] * len(self.targets)
        digest = sequence_digest(self.input_ids, targets)
        return Encoded(input_ids=self.input_ids, targets=targets, sha256=digest)


class EncodedRow(NamedTuple):
    """A row of a sequence table that has something to learn."""

    id: str
    encoded: Encoded


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> Encoded | None:
    """Ids and targets of a conversation, cut at ``max_length`` from the right.

    None when no target is left. ``AngelshareError`` when the tokenizer has no chat template or no
    offsets, or when its template renders the start of a conversation differently from the whole.
    """
    return _read(tokenizer, messages, max_length).encoded()


class Place(NamedTuple):
    """Where a target begins, whatever the tokenizer and its template: two targets in one place of a
    conversation follow the same text of the same answer."""

    turn: int
    """The assistant turn, counted from 0."""
    character: int
    """The characters of its answer that stand before the target; all of them for the first token
    that the template puts behind it."""


def encode_with_places(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> tuple[Encoded, list[Place | None]] | None:
    """As `encode`, with the place of each target, in their order.

    No place have targets that begin within a character or where an earlier one does, those of the
    template's own (but the first behind an answer), and answers that the template rewrites. White
    space around an answer belongs to the template.
    """
    read = _read(tokenizer, messages, max_length)
    encoded = read.encoded()
    if encoded is None:
        return None
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    first: dict[Place | None, int] = {}
    found = [place for place, t in zip(read.places(answers), encoded.targets, strict=True) if t]
    for number, place in enumerate(found):
        first.setdefault(place, number)
    return encoded, [place if first[place] == n else None for n, place in enumerate(found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A conversation as its tokenizer reads it."""

    text: str
    spans: list[tuple[int, int]]
    """Of the assistant turns in ``text``."""
    input_ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each token in ``text``."""

    @property
    def targets(self) -> list[bool]:
        """Whether each token begins in an assistant turn; the first never counts."""
        return [
            index > 0 and any(begin <= start < end for begin, end in self.spans)
            for index, (start, _) in enumerate(self.offsets)
        ]

    def encoded(self) -> Encoded | None:
        """Ids and targets; None without any target."""
        ids, targets = self.input_ids, self.targets
        if not any(targets):
            return None
        return Encoded(input_ids=ids, targets=targets, sha256=sequence_digest(ids, targets))

    def places(self, answers: Sequence[str]) -> Iterator[Place | None]:
        """The place of each token, given the answer of each turn.

        A token begins where those before it end: some tokenizers leave leading white space out of a
        token's offsets.
        """
        starts = [
            self.text.find(answer, begin, end)
            for answer, (begin, end) in zip(answers, self.spans, strict=True)
        ]
        reached = 0
        for start, end in self.offsets:
            before, within = reached, start < reached
            reached = max(reached, end)
            turns = [n for n, (begin, last) in enumerate(self.spans) if begin <= start < last]
            first = starts[turns[0]] if turns else -1
            preamble = before < first and (end <= first or not self.text[before:first].isspace())
            if within or first < 0 or preamble:
                yield None
            else:
                inside = min(max(before - first, 0), len(answers[turns[0]]))
                yield Place(turns[0], inside)


def _read(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int
) -> _Read:
    if not tokenizer.is_fast:
        raise AngelshareError(
            f"{tokenizer.name_or_path}: this tokenizer gives no offsets; use its fast version"
        )
    if not messages or messages[0]["role"] == "assistant":
        raise AngelshareError("a conversation begins with a user or system message")
    text = render(tokenizer, messages)
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return _Read(
        text=text,
        spans=_assistant_spans(tokenizer, messages, text),
        input_ids=list(batch["input_ids"])[:max_length],
        offsets=list(batch["offset_mapping"])[:max_length],
    )


def sequence_digest(input_ids: Sequence[int], targets: Sequence[bool]) -> bytes:
    """sha256 over the ids as little-endian int32 followed by the targets as bytes 0 and 1."""
    ids = np.asarray(input_ids, dtype="<i4").tobytes()
    return hashlib.sha256(ids + np.asarray(targets, dtype=np.uint8).tobytes()).digest()


def encode_table(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[EncodedRow]:
    """The rows that have targets, in table order; errors name the row."""
    rows = []
    for row_id, messages in zip(
        table["id"].to_pylist(), table["messages"].to_pylist(), strict=True
    ):
        try:
            encoded = encode(tokenizer, messages, max_length)
        except AngelshareError as error:
            raise AngelshareError(f"row {row_id}: {error}") from error
        if encoded is not None:
            rows.append(EncodedRow(row_id, encoded))
    return rows


def prompt_messages(messages: Sequence[Message]) -> list[Message]:
    """The conversation up to its last user turn; ``AngelshareError`` if it has none."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise AngelshareError("the conversation has no user message to answer")
    return list(messages[: last + 1])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation up to its last user turn, with the generation prompt; never cut."""
    text = render(tokenizer, prompt_messages(messages), add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as text by the tokenizer's own chat template."""
    if not tokenizer.chat_template:
        raise AngelshareError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; add one to its folder "
            "as chat_template.jinja"
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except jinja2.TemplateError as error:
        raise AngelshareError(f"the chat template refuses this conversation: {error}") from error
    return str(text)


def _assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str
) -> list[tuple[int, int]]:
    """Character spans of the assistant turns in ``text``, which renders all ``messages``."""
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prefix = render(tokenizer, messages[:index], add_generation_prompt=True)
        last = index == len(messages) - 1
        longer = text if last else render(tokenizer, messages[: index + 1])
        if not (longer.startswith(prefix) and text.startswith(longer)):
            raise AngelshareError(
                f"the chat template renders message {index + 1} of {len(messages)} differently "
                "once more follows, so its tokens cannot be told apart; use a template in which "
                "the rendering of the first messages is a prefix of the whole"
            )
        spans.append((len(prefix), len(longer)))
    return spans
