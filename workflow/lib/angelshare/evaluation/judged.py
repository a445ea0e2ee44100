"""Judged benchmarks: a model's answers, which are kept, and a judge's verdicts on them.

Two jobs, because they run two models and cost two bills: another judge does not have anything
answered again, and answers that did not change are not judged again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from angelshare.errors import AngelshareError
from angelshare.evaluation.judges import mt_bench_101
from angelshare.evaluation.judges.asking import Judge, Ledger, ask_all
from angelshare.evaluation.judges.settings import JudgedSettings, JudgeSettings
from angelshare.evaluation.scores import Count, Progress, Score
from angelshare.store.journal import Journal
from angelshare.teacher.generate import GenerationStats, generate_corpus
from angelshare.teacher.settings import DecodingSettings

METERED, UNMETERED = "metered", "unmetered: the judge is remote"


def answer_benchmark(
    model: str | Path,
    settings: JudgedSettings,
    out: Path,
    *,
    progress: Progress,
    count: Count,
    journal: Journal | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> GenerationStats:
    """Write a model's greedy answers to ``out``, a corpus whose ids are the benchmark's turns."""
    rubric = mt_bench_101.read_rubric(Path(settings.prompts))
    turns = mt_bench_101.read_turns(Path(settings.data), rubric, settings.limit)

    def passed(prompt: int, generated: int) -> None:
        count(prompt=prompt, generated=generated, evaluated=prompt + generated)

    return generate_corpus(
        model,
        mt_bench_101.prompts(turns),
        DecodingSettings(
            backend=settings.backend,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        ),
        out,
        progress=progress,
        count=passed,
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
    rubric = mt_bench_101.read_rubric(Path(settings.prompts))
    turns = mt_bench_101.read_turns(Path(settings.data), rubric, settings.limit)
    asked, missing = mt_bench_101.questions(turns, answers.to_pylist(), rubric, judge.max_tokens)
    replies = ask_all(
        open_judge(settings.judge, judge), identity, asked, Ledger(ledger), progress, count
    )
    scores = mt_bench_101.score(
        turns,
        replies,
        missing,
        task_version=f"prompts {rubric.sha256[:12]}",
        limited=settings.limit is not None,
        batch_size=settings.batch_size,
        harness="angelshare, MT-Bench-101's published prompts",
        judge={
            "name": settings.judge,
            **identity,
            "replied_as": sorted({reply.model for reply in replies.values() if reply.model}),
            "energy": UNMETERED if judge.endpoint else METERED,
        },
    )
    without = scores[0].missing
    if sum(without.values()) > judge.max_missing * len(turns):
        said = ", ".join(f"{reason} {number}" for reason, number in without.items())
        raise AngelshareError(
            f"{settings.benchmark}: {sum(without.values())} of {len(turns)} verdicts are missing "
            f"({said}), more than judges.{settings.judge}.max_missing allows "
            f"({judge.max_missing:g}). Those that are there are kept in {ledger}"
        )
    return scores


def open_judge(name: str, settings: JudgeSettings) -> Judge:
    """The judge of the settings; only what it needs is imported."""
    if settings.endpoint:
        from angelshare.evaluation.judges.endpoint import EndpointJudge

        return EndpointJudge(name, settings)
    from angelshare.evaluation.judges.local import LocalJudge

    return LocalJudge(name, settings)
