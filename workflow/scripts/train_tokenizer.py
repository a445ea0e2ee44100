"""Train a tokenizer on generated problems that no dataset of the study contains."""

from snakemake.script import snakemake

import unpack
from angelshare.data.problems import teacher_problems
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tokenizer import save_tokenizer, tokenizer_digest, train_tokenizer
from angelshare.jobs import PartJob, part_job


def main(job: PartJob) -> None:
    """Train the tokenizer of the recipe and commit its files."""
    settings = TokenizerSettings.model_validate(job.plan.recipe["settings"])
    problems = WordProblems.model_validate(job.plan.recipe["problems"])
    texts = [text for problem in teacher_problems(problems, settings.problems) for text in problem]
    tokenizer = train_tokenizer(texts, settings.vocab_size, settings.max_length)
    save_tokenizer(tokenizer, job.context.scratch)
    job.context.window.count(samples=settings.problems)
    job.commit(
        {path.name: path for path in sorted(job.context.scratch.iterdir())},
        rows=len(tokenizer),
        facts={"tokenizer_sha256": tokenizer_digest(tokenizer)},
    )


with part_job("tokenizer", **unpack.part(snakemake)) as job:
    if not job.adopted:
        main(job)
