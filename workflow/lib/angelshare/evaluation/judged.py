"""Judged benchmarks: a model's answers, which are kept, and a judge's verdicts on them.

Two jobs, because they run two models and cost two bills: another judge does not have anything
answered again, and answers that did not change are not judged again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.evaluation.judges.asking import Ask, Judge, Ledger, Question, Reply, ask_all
from angelshare.evaluation.judges.settings import (
    AlpacaEvalSettings,
    JudgedSettings,
    JudgeSettings,
    MtBench101Settings,
)
from angelshare.evaluation.scores import Count, Progress, Score
from angelshare.store.journal import Journal
from angelshare.teacher.generate import GenerationStats, generate_corpus
from angelshare.teacher.settings import DecodingSettings

METERED, UNMETERED = "metered", "unmetered: the judge is remote"


class Benchmark(Protocol):
    """A benchmark whose files have been read."""

    verdicts: int
    """How many it wants."""

    def prompts(self) -> pa.Table:
        """The sequence table that a model answers."""
        ...

    def scores(self, answers: Sequence[Mapping[str, Any]], ask: Ask) -> list[Score]:
        """The scores of answers, the rows of a corpus; the first says which verdicts are missing.

        Raises:
            AngelshareError: where too little was judged for any score.
        """
        ...


def answer_benchmark(
    model: str | Path,
    settings: JudgedSettings,
    out: Path,
    *,
    progress: Progress,
    count: Count,
    phase: Phase = unmetered,
    journal: Journal | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> GenerationStats:
    """Write a model's greedy answers to ``out``, a corpus whose ids are the benchmark's own."""

    def passed(prompt: int, generated: int) -> None:
        count(prompt=prompt, generated=generated, evaluated=prompt + generated)

    return generate_corpus(
        model,
        open_benchmark(settings).prompts(),
        DecodingSettings(
            backend=settings.backend,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        ),
        out,
        progress=progress,
        count=passed,
        phase=phase,
        journal=journal,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def judge_answers(
    answers: pa.Table,
    settings: JudgedSettings,
    judge: JudgeSettings,
    identity: Mapping[str, Any],
    ledger: Path,
    *,
    progress: Progress,
    count: Count,
) -> list[Score]:
    """The scores of answers (`answer_benchmark`), by a judge.

    ``identity`` is what the recipe says of the judge, ``ledger`` the file its replies are kept in.

    Raises:
        AngelshareError: where the judge cannot be asked, or too many verdicts are missing.
    """
    benchmark, replied_as = open_benchmark(settings), set[str]()

    def ask(questions: Sequence[Question]) -> dict[str, Reply]:
        asked = open_judge(settings.judge, judge)
        replies = ask_all(asked, identity, questions, Ledger(ledger), progress, count)
        replied_as.update(reply.model for reply in replies.values() if reply.model)
        return replies

    scores = benchmark.scores(answers.to_pylist(), ask)
    missing = scores[0].missing
    if sum(missing.values()) > judge.max_missing * benchmark.verdicts:
        said = ", ".join(f"{reason} {number}" for reason, number in missing.items())
        raise AngelshareError(
            f"{settings.benchmark}: {sum(missing.values())} of {benchmark.verdicts} verdicts are "
            f"missing ({said}), more than judges.{settings.judge}.max_missing allows "
            f"({judge.max_missing:g}). Those that are there are kept in {ledger}. Start the "
            "workflow again for the unanswered; for the others name a judge that can give them, or "
            "allow more"
        )
    about = {
        "name": settings.judge,
        **identity,
        "replied_as": sorted(replied_as),
        "energy": UNMETERED if judge.endpoint else METERED,
    }
    limited = settings.limit is not None
    return [
        replace(score, judge=about, limited=limited, batch_size=settings.batch_size)
        for score in scores
    ]


def open_benchmark(settings: JudgedSettings) -> Benchmark:
    """The benchmark of the settings; only what it needs is imported."""
    if isinstance(settings, AlpacaEvalSettings):
        from angelshare.evaluation.judges.alpaca_eval_2 import AlpacaEval2

        return AlpacaEval2(settings)
    if isinstance(settings, MtBench101Settings):
        from angelshare.evaluation.judges.mt_bench_101 import MtBench101

        return MtBench101(settings)
    raise TypeError(f"no benchmark has {type(settings).__name__}")


def open_judge(name: str, settings: JudgeSettings) -> Judge:
    """The judge of the settings; only what it needs is imported."""
    if settings.endpoint:
        from angelshare.evaluation.judges.endpoint import EndpointJudge

        return EndpointJudge(name, settings)
    from angelshare.evaluation.judges.local import LocalJudge

    return LocalJudge(name, settings)
