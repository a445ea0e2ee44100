"""MT-Bench-101 (arXiv:2402.14762): thirteen abilities in dialogues of several turns, rated 1 to 10.

Each turn is answered after the dialogue's own turns before it, and rated by itself; six abilities
leave out the first turn, which only sets the scene. A dialogue counts as its worst turn, an ability
as the mean of its dialogues, the benchmark as the mean of its abilities.

Prompts and rubric are the published ones, read from the file that publishes them, OpenCompass'
``opencompass/datasets/subjective/mtbench101.py`` (Apache-2.0; also in the package ``opencompass``):
its constants, and the one function that joins them. Nothing else of the file is run. A verdict is
the last ``[[rating]]`` from 1 to 10; the rubric asks for exactly one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pyarrow as pa

from angelshare.data.answers import UNANSWERED as NO_ROOM
from angelshare.data.tables import Message, sequence_table
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import (
    MALFORMED,
    TOO_LONG,
    Ask,
    Question,
    Reply,
    reasons,
)
from angelshare.evaluation.judges.settings import MtBench101Settings
from angelshare.evaluation.scores import Score
from angelshare.recipes import digest

NAME = "mt_bench_101"
HARNESS = "angelshare, MT-Bench-101's published prompts"
SCALE = range(1, 11)
_RATING = re.compile(r"\[\[\s*(\d+)\s*\]\]")
_CONSTANTS = ("judge", "score_format", "unique_prompt", "skip_first_tasks", "need_ref_tasks")
_FUNCTION = "eval_prompt_construct"
_FILE = "opencompass/datasets/subjective/mtbench101.py"
_HOLES = {"history": "\0history\0", "reference": "\0reference\0", "answer": "{prediction}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn that is answered and rated."""

    ability: str
    dialogue: str
    number: int
    """From 1."""
    before: tuple[Mapping[str, str], ...]
    """The messages up to the user's, as chat turns."""
    reference: str
    """The dialogue's own answer."""

    @property
    def id(self) -> str:
        """Unique within the benchmark."""
        return f"{self.ability}-{self.dialogue}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """The published prompts."""

    sha256: str
    """Of the file they were read from."""
    abilities: frozenset[str]
    skip_first: frozenset[str]
    join: Callable[..., tuple[str, str]]

    def question(self, turn: Turn, answer: str) -> Question:
        """What the judge is asked about an answer, word for word as published."""
        texts = {"history": "", "reference": "", "answer": answer}
        for message in turn.before[:-1]:
            texts["history"] += _heading(message["role"]) + message["content"]
        texts["history"] += _heading("user") + turn.before[-1]["content"] + _heading("assistant")
        spoken = [*map(dict, turn.before), {"role": "assistant", "content": turn.reference}]
        texts["reference"] = str(spoken)
        system, user = self.join(turn.ability, _HOLES["reference"], _HOLES["history"])
        by_hole = {hole: texts[name] for name, hole in _HOLES.items()}
        holes = re.compile("|".join(map(re.escape, by_hole)))
        # In one pass: what stands in an answer is never taken for a hole.
        filled = holes.sub(lambda match: by_hole[match[0]], user)
        messages: tuple[Message, ...] = (
            {"role": "system", "content": system},
            {"role": "user", "content": filled},
        )
        return Question(id=turn.id, messages=messages)


def _heading(role: str) -> str:
    return "\n\n Human: " if role == "user" else "\n\nAssistant: "


def read_rubric(path: Path) -> Rubric:
    """The published prompts; ``AngelshareError`` where the file does not hold them."""
    content = path.read_bytes()
    wanted, found = [], set()
    try:
        written_in = ast.parse(content).body
    except (SyntaxError, ValueError) as error:
        raise AngelshareError(
            f"{path} is no Python file ({error}): it must be MT-Bench-101's published prompts, "
            f"{_FILE}"
        ) from None
    for node in written_in:
        if isinstance(node, ast.FunctionDef):
            names = {node.name} & {_FUNCTION}
        elif isinstance(node, ast.Assign):
            written = {target.id for target in node.targets if isinstance(target, ast.Name)}
            names = {n for n in written if n in _CONSTANTS or n.startswith("eval_")}
        else:
            names = set()
        if names:
            wanted.append(node)
            found |= names
    if missing := sorted({*_CONSTANTS, _FUNCTION} - found):
        raise AngelshareError(
            f"{path} holds no {missing[0]}: it must be MT-Bench-101's published prompts, {_FILE}"
        )
    values: dict[str, Any] = {"__builtins__": {}}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), values)
    return Rubric(
        sha256=hashlib.sha256(content).hexdigest(),
        abilities=frozenset(values["unique_prompt"]),
        skip_first=frozenset(values["skip_first_tasks"]),
        join=values[_FUNCTION],
    )


def read_turns(path: Path, rubric: Rubric, limit: int | None = None) -> list[Turn]:
    """The turns that are rated, in the file's order; ``limit`` dialogues of each ability."""
    turns: list[Turn] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            ability, dialogue, history = row["task"], str(row["id"]), row["history"]
            spoken = [(turn["user"], turn["bot"]) for turn in history]
        except (ValueError, KeyError, TypeError) as error:
            raise AngelshareError(
                f"{path}, line {number}: not a dialogue of MT-Bench-101 ({error!r}). The file must "
                "be data/subjective/mtbench101.jsonl of its repository"
            ) from None
        if ability not in rubric.abilities:
            raise AngelshareError(
                f"{path}, line {number}: the prompts know no ability {ability!r}: take data and "
                "prompts of the same release"
            )
        seen[ability] = seen.get(ability, 0) + 1
        if limit is None or seen[ability] <= limit:
            turns.extend(_turns(ability, dialogue, spoken, rubric))
    return turns


def _turns(
    ability: str, dialogue: str, spoken: Sequence[tuple[str, str]], rubric: Rubric
) -> Iterator[Turn]:
    before: list[dict[str, str]] = []
    for number, (user, bot) in enumerate(spoken, 1):
        before.append({"role": "user", "content": user})
        if number > 1 or ability not in rubric.skip_first:
            yield Turn(
                ability=ability,
                dialogue=dialogue,
                number=number,
                before=tuple(before),
                reference=bot,
            )
        before.append({"role": "assistant", "content": bot})


class MtBench101:
    """The benchmark, its two files read."""

    def __init__(self, settings: MtBench101Settings) -> None:
        """``AngelshareError`` where a file is not what it must be."""
        self.rubric = read_rubric(Path(settings.prompts))
        self.turns = read_turns(Path(settings.data), self.rubric, settings.limit)
        self.verdicts = len(self.turns)

    def prompts(self) -> pa.Table:
        """The sequence table that a model answers."""
        return sequence_table(
            {"id": turn.id, "split": "test", "messages": [dict(m) for m in turn.before]}
            for turn in self.turns
        )

    def questions(
        self, answers: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Question], dict[str, str]]:
        """What the judge is asked, and the turns without an answer, by reason.

        ``answers`` are the rows of a corpus, by the turns' ids.
        """
        by_id = {row["id"]: row for row in answers}
        asked, missing = [], {}
        for turn in self.turns:
            row = by_id[turn.id]
            if row["finish_reason"] == NO_ROOM:
                missing[turn.id] = TOO_LONG
            else:
                asked.append(self.rubric.question(turn, row["messages"][-1]["content"]))
        return asked, missing

    def scores(self, answers: Sequence[Mapping[str, Any]], ask: Ask) -> list[Score]:
        """The benchmark's score, then those of its abilities.

        A dialogue of which a verdict is missing is in no mean: the worst of its other turns would
        favour it.

        Raises:
            AngelshareError: where no dialogue has all its verdicts.
        """
        asked, missing = self.questions(answers)
        ratings, lost = read_ratings(asked, ask(asked))
        missing |= lost
        incomplete = {(turn.ability, turn.dialogue) for turn in self.turns if turn.id in missing}
        by_dialogue: dict[tuple[str, str], list[int]] = {}
        for turn in self.turns:
            if (turn.ability, turn.dialogue) not in incomplete:
                by_dialogue.setdefault((turn.ability, turn.dialogue), []).append(ratings[turn.id])
        worst: dict[str, list[int]] = {}
        for (ability, _), given in by_dialogue.items():
            worst.setdefault(ability, []).append(min(given))
        if not worst:
            raise AngelshareError(
                f"{NAME}: no dialogue has all its verdicts ({reasons(missing)}): see the replies "
                "in the ledger beside the scores, and name another judge"
            )
        whole, *abilities = self._scores(worst)
        return [replace(whole, missing=reasons(missing)), *abilities]

    def _scores(self, worst: Mapping[str, Sequence[int]]) -> list[Score]:
        """From the ratings of each ability's dialogues."""
        means = {ability: fmean(values) for ability, values in worst.items()}
        errors = {
            ability: (variance(values) / len(values)) ** 0.5
            for ability, values in worst.items()
            if len(values) > 1
        }
        whole_error = sum(error**2 for error in errors.values()) ** 0.5 / len(means)
        problems = sorted([turn.id, turn.before[-1]["content"]] for turn in self.turns)
        common: dict[str, Any] = {
            "task": NAME,
            "task_version": f"prompts {self.rubric.sha256[:12]}",
            "harness": HARNESS,
            "problems_sha256": digest("angelshare/problems", problems),
        }
        return [
            Score(
                metric="rating",
                value=fmean(means.values()),
                stderr=whole_error if len(errors) == len(means) else None,
                samples=sum(map(len, worst.values())),
                **common,
            ),
            *(
                Score(
                    metric=f"rating_{ability}",
                    value=means[ability],
                    stderr=errors.get(ability),
                    samples=len(worst[ability]),
                    **common,
                )
                for ability in sorted(means)
            ),
        ]


def read_ratings(
    asked: Sequence[Question], replies: Mapping[str, Reply]
) -> tuple[dict[str, int], dict[str, str]]:
    """The ratings, and why the others are missing, by question."""
    ratings, missing = {}, {}
    for question in asked:
        reply = replies[question.id]
        given = None if reply.missing else rating(reply.text or "")
        if given is None:
            missing[question.id] = reply.missing or MALFORMED
        else:
            ratings[question.id] = given
    return ratings, missing


def rating(text: str) -> int | None:
    """The verdict in a judge's reply; None where there is none from 1 to 10."""
    found = [int(digits) for digits in _RATING.findall(text)]
    return found[-1] if found and found[-1] in SCALE else None
