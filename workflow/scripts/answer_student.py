"""Let one trained student answer a judged benchmark; the answers are kept beside the record."""

from pathlib import Path

import unpack
from angelshare.energy.phases import phases_of
from angelshare.errors import AngelshareError
from angelshare.files import publish_json, sha256_file
from angelshare.jobs import JobContext, job
from angelshare.recipes import digest
from angelshare.store.journal import Journal


def main(context: JobContext) -> None:
    """Answer unless that was done, publish what the answers are."""
    training, declared = Path(snakemake.input.training), Path(snakemake.output.answers)
    recipe = {**snakemake.params.recipe, "student": sha256_file(training)}
    kept = declared.with_name(f"{declared.stem}.finished.json")
    table = declared.with_suffix(".parquet")
    with context.own_result(kept, recipe) as record:
        if record is None or not table.exists() or sha256_file(table) != record["sha256"]:
            rows = answer(context, training.parent / "model", table, recipe)
            record = {"recipe": recipe, "sha256": sha256_file(table), "rows": rows}
            publish_json(kept, record)
    publish_json(declared, record)


def answer(context: JobContext, model: Path, table: Path, recipe: dict) -> int:
    """Write the answers; what an earlier attempt wrote is taken up."""
    # Imported inside the window: loading torch costs energy too.
    from angelshare.evaluation.judged import answer_benchmark

    if not model.is_dir():
        raise AngelshareError(
            f"{model} is gone: delete {model.parent} and run the workflow again, which trains it."
        )
    journal = Journal(
        table.with_name(f".{table.stem}.unfinished"), digest("angelshare/answers", recipe)
    )
    with phases_of(context.window, context.config.energy.period_s) as phase:
        stats = answer_benchmark(
            model,
            context.study.judged[snakemake.wildcards.benchmark].settings,
            table,
            progress=context.report,
            count=context.window.count,
            phase=phase,
            journal=journal,
        )
    journal.discard()
    return stats.sequences


with job(
    stage="evaluate",
    role="eval",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run, "benchmark": snakemake.wildcards.benchmark},
    **unpack.common(snakemake),
) as context:
    main(context)
