"""How many rows there are and how long, where neither the configuration nor a record says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from angelshare.evaluation.judges.settings import JudgedSettings
from angelshare.evaluation.settings import OWN_TASKS, EvaluationSettings, TaskSettings
from angelshare.planning.ranges import NOTHING, Range
from angelshare.settings import Settings

ASSUMED = Range(0.5, 0.1, 1.0)
"""Length of a row, as a share of the longest that the configuration allows."""


class Length(NamedTuple):
    """How long the rows are that a model goes through."""

    tokens: Range
    """Of a row, prompt included."""
    decoded: float = 1.0
    """Share of them that the model decodes one by one, where it decodes; the others it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Benchmark:
    """What a task of the harness asks."""

    problems: int
    subtasks: int = 1
    example: Range
    """Tokens of a question with one answer."""
    choices: int = 1
    """Times that a question is read, once with each answer to choose from."""
    few_shot: int = 0
    """Examples before a question, where the configuration says nothing."""
    answer: Range = NOTHING
    """Tokens that are decoded."""

    def asked(self, task: TaskSettings) -> tuple[float, Length]:
        """Its problems, and how long they and their answers are."""
        shots = self.few_shot if task.few_shot is None else task.few_shot
        read = self.example.scaled(self.choices * (1 + shots))
        longest = task.max_gen_toks or math.inf
        answer = Range(*(min(tokens, longest) for tokens in self.answer))
        tokens = Range(*(a + b for a, b in zip(read, answer, strict=True)))
        count = min(self.problems, (task.limit or self.problems) * self.subtasks)
        return count, Length(tokens, answer.value / tokens.value)


_WORKED = Range(200, 80, 512)
_ARC = Range(40, 25, 70)
_BENCHMARKS = {
    "gsm8k": _Benchmark(problems=1319, example=Range(150, 90, 220), few_shot=5, answer=_WORKED),
    "ifeval": _Benchmark(problems=541, example=Range(60, 30, 120), answer=Range(540, 150, 1280)),
    "mmlu": _Benchmark(problems=14042, subtasks=57, example=Range(120, 60, 250), choices=4),
    "arc_challenge": _Benchmark(problems=1172, example=_ARC, choices=4),
    "arc_easy": _Benchmark(problems=2376, example=_ARC, choices=4),
    "hellaswag": _Benchmark(problems=10042, example=Range(90, 50, 140), choices=4),
    "bbh": _Benchmark(
        problems=6511, subtasks=27, example=Range(300, 150, 600), few_shot=3, answer=_WORKED
    ),
}
_OTHER = _Benchmark(problems=1000, example=Range(400, 50, 4000), answer=Range(400, 50, 4000))
_JUDGED = {
    "alpaca_eval_2": (805.0, 1.0, Length(Range(500, 150, 2000), 0.9)),
    "mt_bench_101": (3615.0, 3615 / 1388 * 13, Length(Range(400, 100, 1500), 0.5)),
}
"""Questions of the judged benchmarks, and those that a ``limit`` of one leaves; lengths of what
goes through the model that answers."""


def problems(settings: EvaluationSettings, own_rows: int | None) -> tuple[float, Length]:
    """Problems of an evaluation, and how long they and their answers are.

    ``own_rows`` are those of the test split that the project's own tasks ask; None asks none.
    """
    rows, decoded, tokens = 0.0, 0.0, NOTHING
    for task in settings.resolved():
        if task.task in OWN_TASKS and own_rows is not None:
            count = float(min(own_rows, task.limit or own_rows))
            each = answers(task.max_gen_toks or 64)
        else:
            known = next((name for name in _BENCHMARKS if task.task.startswith(name)), None)
            count, each = (_BENCHMARKS[known] if known else _OTHER).asked(task)
        rows += count
        decoded += count * each.tokens.value * each.decoded
        tokens = Range(*(a + count * b for a, b in zip(tokens, each.tokens, strict=True)))
    if not rows:
        return 0.0, Length(NOTHING)
    return rows, Length(tokens.scaled(1.0 / rows), decoded / tokens.value)


def answers(longest: int) -> Length:
    """Questions with answers of at most so many tokens, taken to be as long as these."""
    return Length(ASSUMED.scaled(2.0 * longest), 0.5)


def questions(settings: Settings) -> tuple[float, Length]:
    """Questions of a judged benchmark, and how long they and their answers are."""
    assert isinstance(settings, JudgedSettings)
    count, each, length = _JUDGED[settings.benchmark]
    return min(count, each * settings.limit if settings.limit else count), length
