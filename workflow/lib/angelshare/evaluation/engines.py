"""Scores of a model on tasks, whichever engine asks each of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from angelshare.energy.phases import Phase, unmetered
from angelshare.evaluation.scores import Count, Progress, Score
from angelshare.evaluation.settings import EvaluationSettings


def evaluate_model(
    model: Path | str,
    settings: EvaluationSettings,
    dataset: pa.Table | None,
    progress: Progress,
    count: Count,
    phase: Phase = unmetered,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantised: str | None = None,
) -> list[Score]:
    """Score a model folder (or hub model) on the tasks of ``settings``, in their order.

    See `angelshare.evaluation.harness.evaluate_model` for the arguments; ``quantised`` is for the
    harness alone. Only the engines that ask are imported.
    """
    scores: list[Score] = []
    for engine in settings.engines:
        asked = settings.for_engine(engine)
        if engine == "lighteval":
            from angelshare.evaluation import lighteval

            scores += lighteval.evaluate_model(
                model,
                asked,
                progress,
                count,
                phase,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        else:
            from angelshare.evaluation import harness

            scores += harness.evaluate_model(
                model,
                asked,
                dataset,
                progress,
                count,
                phase,
                revision=revision,
                trust_remote_code=trust_remote_code,
                quantised=quantised,
            )
    order = [task.task for task in settings.tasks]
    return sorted(scores, key=lambda score: order.index(score.task))


def refuse_unready(settings: EvaluationSettings) -> None:
    """``AngelshareError`` for a task that its engine does not have, or an engine that is not here.

    Said before a study spends a joule; takes some ten seconds. No data are loaded.
    """
    if settings.harness_tasks:
        from angelshare.evaluation import harness

        harness.refuse_unknown(settings)
    if "lighteval" in settings.engines:
        from angelshare.evaluation import lighteval

        lighteval.refuse_unknown(settings.for_engine("lighteval"))
