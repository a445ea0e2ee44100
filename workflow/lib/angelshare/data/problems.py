"""Word problems of one to three steps with worked answers: real input where no hub can be reached.

A question such as ``Ann has 12 pens. She finds 7 more. She loses 4. How many now?`` has the
worked answer ``12+7=19;19-4=15;#15``. All numbers, the ones in between included, lie in 0–99; the
steps are + and − of up to 20, ×2 and ×3, each in several wordings. Quality is the exact match of
the number after ``#``. Questions never repeat: not between splits, and not in the demo teacher's
own problems.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from angelshare.data.settings import WordProblems
from angelshare.data.tables import sequence_table
from angelshare.errors import AngelshareError

NAMES = {"Ann": "She", "Eva": "She", "Mia": "She", "Ben": "He", "Max": "He", "Tom": "He"}
THINGS = ("pens", "eggs", "coins", "cards", "books", "nuts")
WORDINGS = {
    "+": ("{who} finds {n} more.", "{who} buys {n} more.", "{n} more come."),
    "-": ("{who} loses {n}.", "{who} gives away {n}.", "{n} are sold."),
    "*2": ("The number doubles.", "{who} gets twice as many."),
    "*3": ("The number triples.", "{who} gets three times as many."),
}
LARGEST = 99
LARGEST_CHANGE = 20
MAX_STEPS = 3
ATTEMPTS_PER_PROBLEM = 100


class Problem(NamedTuple):
    """A question and its worked answer."""

    question: str
    answer: str


def make_dataset(settings: WordProblems) -> pa.Table:
    """The sequence table of all splits; unlabelled rows hold the question alone.

    Raises ``AngelshareError`` when more problems are asked for than there are different ones.
    """
    rows = []
    for split, problems in _splits(settings).items():
        for number, problem in enumerate(problems):
            messages = [{"role": "user", "content": problem.question}]
            if split != "unlabelled":
                messages.append({"role": "assistant", "content": problem.answer})
            rows.append({"id": f"{split}-{number:06d}", "split": split, "messages": messages})
    return sequence_table(rows)


def teacher_problems(settings: WordProblems, count: int) -> list[Problem]:
    """``count`` problems for the demo teacher, none of them in the dataset of ``settings``."""
    seen = {problem.question for split in _splits(settings).values() for problem in split}
    return _take(_stream(f"word problems for the teacher/{settings.seed}"), count, seen)


def _splits(settings: WordProblems) -> dict[str, list[Problem]]:
    stream = _stream(f"word problems/{settings.seed}")
    seen: set[str] = set()
    counts = {
        "test": settings.test,
        "validation": settings.validation,
        "train": settings.labelled,
        "unlabelled": settings.unlabelled,
    }
    return {split: _take(stream, count, seen) for split, count in counts.items()}


def _take(stream: Iterator[Problem], count: int, seen: set[str]) -> list[Problem]:
    """The next ``count`` problems whose questions are not in ``seen``, which grows by them."""
    taken: list[Problem] = []
    for _ in range(ATTEMPTS_PER_PROBLEM * count):
        if len(taken) == count:
            return taken
        problem = next(stream)
        if problem.question not in seen:
            seen.add(problem.question)
            taken.append(problem)
    if len(taken) < count:
        raise AngelshareError(f"there are not {count} different word problems; ask for fewer")
    return taken


def _stream(seed: str) -> Iterator[Problem]:
    draw = random.Random(seed)
    while True:
        yield _draw_problem(draw)


def _draw_problem(draw: random.Random) -> Problem:
    name = draw.choice(list(NAMES))
    value = draw.randint(1, LARGEST)
    sentences = [f"{name} has {value} {draw.choice(THINGS)}."]
    worked = []
    for _ in range(draw.randint(1, MAX_STEPS)):
        operation, operand = _draw_step(draw, value)
        wording = draw.choice(WORDINGS[operation])
        sentences.append(wording.format(who=NAMES[name], n=operand))
        result = _apply(operation, value, operand)
        written = operation if operation[0] == "*" else f"{operation}{operand}"
        worked.append(f"{value}{written}={result}")
        value = result
    sentences.append("How many now?")
    return Problem(" ".join(sentences), ";".join([*worked, f"#{value}"]))


def _draw_step(draw: random.Random, value: int) -> tuple[str, int]:
    possible = []
    if value < LARGEST:
        possible.append("+")
    if value > 0:
        possible.append("-")
    if 2 * value <= LARGEST:
        possible.append("*2")
    if 3 * value <= LARGEST:
        possible.append("*3")
    operation = draw.choice(possible)
    if operation == "+":
        return operation, draw.randint(1, min(LARGEST_CHANGE, LARGEST - value))
    if operation == "-":
        return operation, draw.randint(1, min(LARGEST_CHANGE, value))
    return operation, int(operation[1])


def _apply(operation: str, value: int, operand: int) -> int:
    if operation == "+":
        return value + operand
    if operation == "-":
        return value - operand
    return value * operand
