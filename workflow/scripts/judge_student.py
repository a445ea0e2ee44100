"""Have a judge rate one student's answers; every verdict is kept as soon as it is there."""

from pathlib import Path

import unpack
from angelshare.data.tables import read_table
from angelshare.files import publish_json, read_json
from angelshare.jobs import JobContext, job, planned_run


def main(context: JobContext) -> None:
    """Judge the answers, and record the run as a consumer of the teacher's own judgements."""
    # Imported inside the window: loading a judge costs energy too.
    from angelshare.evaluation.judged import UNMETERED, judge_answers

    answers, declared = Path(snakemake.input.answers), Path(snakemake.output.scores)
    judged = context.study.judged[snakemake.wildcards.benchmark]
    judge = context.config.judges[judged.settings.judge]
    table = answers.with_suffix(".parquet")
    context.window.read(table, read_json(answers)["sha256"])
    if judge.endpoint:
        context.window.warn("judge_unmetered", f"{UNMETERED}, at {judge.endpoint}")
    scores = judge_answers(
        read_table(table),
        judged.settings,
        judge,
        judged.judgements["judge"],
        declared.with_name(f"{declared.stem}.asked.jsonl"),
        progress=context.report,
        count=context.window.count,
    )
    run = planned_run(context, snakemake.wildcards.run)
    if run.distilled and (teacher := run.judged.get(snakemake.wildcards.benchmark)):
        context.record_consumer(run, [teacher, teacher.inputs["answers"]], scores[0].samples)
    publish_json(declared, [score.to_json() for score in scores])


with job(
    stage="judge",
    role="eval",
    attempts=unpack.attempts(snakemake),
    wildcards={"run": snakemake.wildcards.run, "benchmark": snakemake.wildcards.benchmark},
    **unpack.common(snakemake),
) as context:
    main(context)
