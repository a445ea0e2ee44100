"""Say how much of the evaluation sets a dataset contains, and how often it repeats itself."""

from pathlib import Path

import unpack
from angelshare.files import publish_json
from angelshare.jobs import JobContext, job


def main(context: JobContext) -> None:
    """Compare the dataset's rows with every benchmark of the configuration, judged ones too."""
    # Imported inside the window: loading costs energy too.
    from angelshare.data.origins import read_texts
    from angelshare.data.overlap import asked_texts, overlap_report
    from angelshare.evaluation.judged import open_benchmark

    rows = context.rows(context.study.datasets[snakemake.wildcards.dataset])
    benchmarks = {name: read_texts(b) for name, b in context.config.benchmarks.items()}
    for name, judged in context.study.judged.items():
        benchmarks[name] = asked_texts(open_benchmark(judged.settings).prompts())
    report = overlap_report(rows, benchmarks, context.config.overlap)
    for name, found in report["benchmarks"].items():
        context.report.say(f"{name}: {found['contained']} of {found['items']} items contained")
    publish_json(Path(snakemake.output.report), report)


with job(
    stage="accounting",
    role="other",
    attempts=unpack.attempts(snakemake),
    wildcards={"dataset": snakemake.wildcards.dataset},
    **unpack.common(snakemake),
) as context:
    main(context)
