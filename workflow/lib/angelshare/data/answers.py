"""Which of the teacher's answers are worth learning from, and what the others were.

A corpus keeps every answer: what is left out is decided when it is read, so another filter costs
no teacher time, and the dropped answers stay on the bill that they belong to. Words are what
white space separates; the final answer of a mathematical text is its last ``\\boxed{…}``, else
what follows its last ``#``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import pyarrow as pa

from angelshare.data.settings import AnswerFilter
from angelshare.data.tables import Message

UNANSWERED = "prompt_too_long"
"""The finish reason of a prompt that left no room for an answer; such a row has none."""
REPEATED_WORDS = 4
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?")


@dataclass(slots=True, kw_only=True)
class AnswerReport:
    """What a filter did to a corpus, or to a part of it."""

    answers: int
    """Rows before."""
    kept: int
    """Rows after."""
    tokens: int
    """Tokens that the teacher generated for all of them."""
    dropped_tokens: int
    """Tokens that it generated for what was dropped."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows by the first reason that applied."""
    unchecked: int = 0
    """Kept rows whose final answer could not be compared, for want of an original one."""
    dropped_j: float | None = None
    """Joules of the corpus that the dropped answers took, by their share of the tokens."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def filter_answers(
    corpus: pa.Table, originals: Mapping[str, str], settings: AnswerFilter
) -> tuple[pa.Table, AnswerReport]:
    """The rows of ``corpus`` that pass, in order, with a report of the others.

    ``originals`` holds the original answer of each row that has one, by id; it is read only where
    ``settings.check`` is set.
    """
    columns = ["id", "messages", "finish_reason", "generated_tokens"]
    dropped: Counter[str] = Counter()
    keep, lost_tokens, unchecked = [], 0, 0
    for row in corpus.select(columns).to_pylist():
        reason = _fault(row, settings)
        if reason is None and settings.check:
            right = _agrees(_answer(row["messages"]), originals.get(row["id"]))
            unchecked += right is None
            reason = "wrong_answer" if right is False else None
        keep.append(reason is None)
        if reason is not None:
            dropped[reason] += 1
            lost_tokens += row["generated_tokens"]
    report = AnswerReport(
        answers=corpus.num_rows,
        kept=sum(keep),
        tokens=sum(corpus["generated_tokens"].to_pylist()),
        dropped_tokens=lost_tokens,
        dropped=dict(sorted(dropped.items())),
        unchecked=unchecked,
    )
    return corpus.filter(pa.array(keep, pa.bool_())), report


def merged(reports: Iterable[AnswerReport | None]) -> AnswerReport:
    """What filters did to several corpora, added up."""
    known = [report for report in reports if report is not None]
    dropped: Counter[str] = Counter()
    for report in known:
        dropped.update(report.dropped)
    joules = [report.dropped_j for report in known if report.dropped_j is not None]
    return AnswerReport(
        answers=sum(report.answers for report in known),
        kept=sum(report.kept for report in known),
        tokens=sum(report.tokens for report in known),
        dropped_tokens=sum(report.dropped_tokens for report in known),
        dropped=dict(sorted(dropped.items())),
        unchecked=sum(report.unchecked for report in known),
        dropped_j=sum(joules) if len(joules) == len(known) else None,
    )


def original_answers(table: pa.Table) -> dict[str, str]:
    """The last answer of every row of a dataset that has one, by id."""
    return {
        row["id"]: row["messages"][-1]["content"]
        for row in table.select(["id", "messages"]).to_pylist()
        if row["messages"][-1]["role"] == "assistant"
    }


def repetition(text: str) -> float:
    """The share of four-word sequences that occurred earlier in ``text``; 0 for shorter texts."""
    words = text.split()
    runs = list(zip(*(words[start:] for start in range(REPEATED_WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def final_answer(text: str) -> str | None:
    """The final answer of a mathematical text, tidied; None where it states none."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        return _tidy(_braced(text[start + len("\\boxed{") :]))
    if "#" in text:
        return _tidy(text.rsplit("#", 1)[1])
    return None


def _fault(row: Mapping[str, Any], settings: AnswerFilter) -> str | None:
    if row["finish_reason"] == UNANSWERED:
        return UNANSWERED
    if settings.drop_cut and row["finish_reason"] == "length":
        return "cut"
    if row["generated_tokens"] < settings.min_tokens:
        return "too_short"
    if settings.max_tokens is not None and row["generated_tokens"] > settings.max_tokens:
        return "too_long"
    text = _answer(row["messages"])
    if settings.max_repetition is not None and repetition(text) > settings.max_repetition:
        return "repetitive"
    return None


def _agrees(answer: str, original: str | None) -> bool | None:
    """Whether two texts end in the same result; None where the original states none."""
    wanted = final_answer(original) if original is not None else None
    if wanted is None:
        return None
    found = final_answer(answer)
    return found is not None and (found == wanted or _same_number(found, wanted))


def _answer(messages: Sequence[Message]) -> str:
    return messages[-1]["content"]


def _braced(text: str) -> str:
    """``text`` up to the brace that closes the one before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text


def _tidy(text: str) -> str:
    """Without signs that do not change a result's meaning."""
    for sign in ("\\left", "\\right", "\\!", "\\,", "\\$", "$", ",", " ", "\n"):
        text = text.replace(sign, "")
    return text.rstrip(".")


def _same_number(one: str, other: str) -> bool:
    numbers = [_NUMBER.fullmatch(text) for text in (one, other)]
    try:
        values = {Fraction(found[0]) for found in numbers if found}
    except (ValueError, ZeroDivisionError):
        return False
    return all(numbers) and len(values) == 1
