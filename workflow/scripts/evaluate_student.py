"""Score one trained student on its dataset's test split."""

from pathlib import Path
from typing import Any

import unpack
from angelshare.energy.phases import phases_of
from angelshare.errors import AngelshareError
from angelshare.files import publish_json, sha256_file
from angelshare.jobs import JobContext, job, planned_run


def main(context: JobContext) -> None:
    """Evaluate the student unless that was done, publish its scores."""
    training, scores = Path(snakemake.input.training), Path(snakemake.output.scores)
    recipe = {**snakemake.params.recipe, "student": sha256_file(training)}
    kept = scores.with_name(f"{scores.stem}.finished.json")
    with context.own_result(kept, recipe) as record:
        if record is None:
            record = {"recipe": recipe, "scores": evaluate(context, training.parent / "model")}
            publish_json(kept, record)
    publish_json(scores, record["scores"])


def evaluate(context: JobContext, model: Path) -> list[dict[str, Any]]:
    """Score the model folder, and record the run as a consumer of the teacher's own scores."""
    # Imported inside the window: loading torch and the harness costs energy too.
    from angelshare.evaluation.engines import evaluate_model

    run = planned_run(context, snakemake.wildcards.run)
    if not model.is_dir():
        raise AngelshareError(
            f"{model} is gone: delete {model.parent} and run the workflow again, which trains it."
        )
    with phases_of(context.window, context.config.energy.period_s) as phase:
        scores = evaluate_model(
            model,
            context.config.evaluation,
            context.rows(run.inputs["dataset"], ["test"]),
            context.report,
            context.window.count,
            phase=phase,
            quantised=run.quantised,
        )
    context.checks.join()
    if run.distilled and run.trained_as is None and run.scores:
        context.record_consumer(run, [run.scores], sum(score.samples for score in scores))
    return [score.to_json() for score in scores]


with job(
    stage="evaluate",
    role="eval",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run},
    **unpack.common(snakemake),
) as context:
    main(context)
