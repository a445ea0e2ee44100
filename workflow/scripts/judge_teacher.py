"""Have a judge rate the teacher's answers, once for every team that shares the store."""

from pathlib import Path

import unpack
from angelshare.files import publish_json
from angelshare.part_jobs import PartJob, part_job
from angelshare.recipes import digest


def main(job: PartJob) -> None:
    """Judge the answers as the students' are, and commit scores and verdicts."""
    # Imported inside the window: loading a judge costs energy too.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from angelshare.evaluation.judged import UNMETERED, judge_answers
    from angelshare.evaluation.judges.asking import Ledger

    context, settings = job.context, job.plan.settings
    judge = context.config.judges[settings.judge]
    if judge.endpoint:
        context.window.warn("judge_unmetered", f"{UNMETERED}, at {judge.endpoint}")
    answers = job.plan.inputs["answers"]
    # What only decides how verdicts become a score has none of them asked for again.
    judged_by = digest("angelshare/judge", job.plan.recipe["judge"])[:8]
    verdicts = Path(
        context.config.results,
        "judgements",
        settings.benchmark,
        f"{answers.key}-{judged_by}.asked.jsonl",
    )
    scores = judge_answers(
        context.rows(answers),
        settings,
        judge,
        job.plan.recipe["judge"],
        verdicts,
        progress=context.report,
        count=context.window.count,
    )
    path = context.scratch / "scores.json"
    publish_json(path, [score.to_json() for score in scores])
    kept = context.scratch / "verdicts.parquet"
    pq.write_table(pa.Table.from_pylist(Ledger(verdicts).rows()), kept)
    job.commit({path.name: path, kept.name: kept}, rows=len(scores))


with part_job("judgements", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
