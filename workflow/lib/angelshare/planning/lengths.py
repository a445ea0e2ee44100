"""How many rows there are and how long, where neither the configuration nor a record says it."""

from __future__ import annotations

from angelshare.evaluation.judges.settings import JudgedSettings
from angelshare.evaluation.settings import OWN_TASKS, EvaluationSettings
from angelshare.planning.ranges import Range
from angelshare.settings import Settings

ASSUMED = Range(0.5, 0.1, 1.0)
"""Length of a row, as a share of the longest that the configuration allows."""

_TASKS = {
    "gsm8k": (1319, Range(1100, 500, 2000)),
    "ifeval": (541, Range(600, 200, 1400)),
    "mmlu": (14042, Range(600, 300, 4000)),
    "arc_challenge": (1172, Range(500, 100, 5000)),
    "arc_easy": (2376, Range(500, 100, 5000)),
    "hellaswag": (10042, Range(600, 200, 5000)),
    "bbh": (6511, Range(1200, 500, 2500)),
}
"""Problems of the harness's tasks, and tokens that one takes through the model, prompt included."""
_OTHER_TASK = (1000, Range(800, 100, 8000))
_JUDGED = {
    "alpaca_eval_2": (805.0, 1.0, Range(500, 150, 2000)),
    "mt_bench_101": (3615.0, 3615 / 1388 * 13, Range(400, 100, 1500)),
}
"""Questions of the judged benchmarks, those that a ``limit`` of one leaves, and tokens that one
takes through the model that answers, prompt included."""


def problems(settings: EvaluationSettings, own_rows: int | None) -> tuple[float, Range]:
    """Problems of an evaluation, and the tokens that each takes through the model.

    ``own_rows`` are those of the test split that the project's own tasks ask; None asks none.
    """
    rows, tokens = 0.0, Range.exactly(0.0)
    for task in settings.resolved():
        if task.task in OWN_TASKS and own_rows is not None:
            count, each = own_rows, ASSUMED.scaled(2.0 * (task.max_gen_toks or 64))
        else:
            known = next((name for name in _TASKS if task.task.startswith(name)), None)
            count, each = _TASKS[known] if known else _OTHER_TASK
        count = min(count, task.limit or count)
        rows += count
        tokens = Range(*(a + count * b for a, b in zip(tokens, each, strict=True)))
    return rows, tokens.scaled(1.0 / rows) if rows else Range.exactly(0.0)


def questions(settings: Settings) -> tuple[float, Range]:
    """Questions of a judged benchmark, and the tokens that answering one takes."""
    assert isinstance(settings, JudgedSettings)
    count, each, tokens = _JUDGED[settings.benchmark]
    return min(count, each * settings.limit if settings.limit else count), tokens
