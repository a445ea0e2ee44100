"""Asking a judge: questions, replies, and the ledger that keeps every reply.

Whatever judges, it takes questions and gives replies. A reply is kept as soon as it is there, under
the digest of the judge and of every word it was asked. An attempt that follows a kill asks only
what is not in the ledger, and answers that did not change are not judged twice.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from angelshare.evaluation.scores import Count, Progress
from angelshare.files import make_folder
from angelshare.recipes import digest

if TYPE_CHECKING:
    from angelshare.data.tables import Message

UNANSWERED = "unanswered"
REFUSED = "refused"
MALFORMED = "malformed"
TOO_LONG = "prompt_too_long"
"""Why a verdict is missing: the judge could not be reached, would not judge, gave no verdict that
can be read, or has no room for the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a judge is asked."""

    id: str
    """Unique within a benchmark."""
    messages: tuple[Message, ...]
    """Chat turns, ``{role, content}``."""
    max_tokens: int | None = None
    """Tokens the reply may have; None: as many as the judge's settings say."""
    top_logprobs: int = 0
    """Alternatives wanted for the reply's first token, with their log-probabilities."""

    def key(self, judge: Mapping[str, Any]) -> str:
        """The digest of this question to this judge."""
        asked = {**asdict(self), "judge": dict(judge)}
        del asked["id"]
        return digest("angelshare/question", asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge said, or why it said nothing."""

    text: str | None = None
    missing: str | None = None
    """`UNANSWERED`, `REFUSED` or `TOO_LONG` where there is no text."""
    model: str | None = None
    """What the endpoint calls the model that replied."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """``{token, logprob}`` of the first token's alternatives."""


class Judge(Protocol):
    """Whatever judges."""

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Replies in any order, each as soon as it is there.

        Raises:
            AngelshareError: where going on is of no use: no key, no such model, nobody there.
        """
        ...


class Ledger:
    """Replies by the key of their question: one line each, added and flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        make_folder(path.parent)
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
                self._replies[entry["key"]] = Reply(**entry["reply"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: asked again

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply that is kept, if there is one."""
        return self._replies.get(key)

    def rows(self) -> list[dict[str, str]]:
        """Every reply as JSON with its key, in the keys' order."""
        return [
            {"key": key, "reply": json.dumps(asdict(reply), sort_keys=True)}
            for key, reply in sorted(self._replies.items())
        ]

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; on disk when this returns."""
        line = json.dumps({"key": key, "reply": asdict(reply)}, sort_keys=True)
        with self._lock, self.path.open("ab") as stream:
            # A line of its own, whatever a kill left of the one before.
            stream.write(b"\n" + line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            self._replies[key] = reply


Ask = Callable[[Sequence[Question]], Mapping[str, Reply]]
"""Gives the reply to each question, by its id."""


def ask_all(
    judge: Judge,
    identity: Mapping[str, Any],
    questions: Sequence[Question],
    ledger: Ledger,
    progress: Progress,
    count: Count,
) -> dict[str, Reply]:
    """A reply to each question, by its id; what the ledger has is not asked.

    ``count`` takes tokens and samples of what was asked now. A question that remained without an
    answer is in no ledger: the next attempt asks it again.
    """
    replies: dict[str, Reply] = {}
    left = []
    for question in questions:
        kept = ledger.get(question.key(identity))
        if kept is None:
            left.append(question)
        else:
            replies[question.id] = kept
    if replies:
        progress(len(replies), len(questions), "verdicts that are kept")
    for question, reply in judge.ask(left) if left else ():
        replies[question.id] = reply
        if reply.missing != UNANSWERED:
            ledger.add(question.key(identity), reply)
        tokens = {"prompt": reply.prompt_tokens, "generated": reply.generated_tokens}
        count(samples=1, evaluated=sum(tokens.values()), **tokens)
        progress(len(replies), len(questions), "verdicts")
    return replies


def reasons(missing: Mapping[str, str]) -> dict[str, int]:
    """How many verdicts are missing, by reason, from the reason of each."""
    return dict(sorted(Counter(missing.values()).items()))
