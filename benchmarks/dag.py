"""Planning and dispatching many jobs, beside a Snakefile that could not be smaller, in one run.

    python benchmarks/dag.py [--jobs 100 1000 5000] [--repeats 3] [--folder DIR]
                             [--out benchmarks/results/dag.json]

*ours*: the embedded default with as many seeds as give that many jobs. *minimum*: two rules of one
output each, the second made from the first, equally many jobs. Both run under the same Snakemake
with the triggers of the profiles:

parse     `--list-rules`: the Snakefile and the study, no job yet
dry_run   `-n` with nothing made: parse, the graph of all jobs, and the dry executor
dispatch  `--touch --forceall` with everything made: each job through the scheduler and Snakemake's
          bookkeeping, without its work and without the 0.1 s that Snakemake then waits after each
          job; jobs per second besides
no_op     the target again, with everything made and recorded: parse, graph, nothing to be done

Files are empty stand-ins: no job's work is done. Seconds of the clock and of the processor, each
the median over the repeats; on a machine with other work only the latter means something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FIXED_JOBS = 18
"""Jobs of the embedded default besides its students: teacher, data, sealing, tables, report."""
MINIMUM = """
JOBS = range(int(config["jobs"]) // 2)


rule all:
    input:
        expand("second/{i}.txt", i=JOBS),


rule first:
    output:
        "first/{i}.txt",
    shell:
        "touch {output}"


rule second:
    input:
        "first/{i}.txt",
    output:
        "second/{i}.txt",
    shell:
        "touch {output}"
"""
UNDELAYED = """
import snakemake.cli, snakemake.executors.touch
snakemake.executors.touch.Executor.SLEEPING_TIME = 0
snakemake.cli.main()
"""
TRIGGERS = ["--rerun-triggers", "mtime", "params"]


class Bench:
    """One Snakefile in a folder of its own."""

    def __init__(self, name: str, folder: Path, target: str, extra: list[str]) -> None:
        self.name, self.folder, self.target, self.extra = name, folder, target, extra

    def snakemake(self, *arguments: str) -> tuple[str, float, float]:
        """What it printed, seconds of the clock, seconds of the processor."""
        command = [sys.executable, "-c", UNDELAYED, *arguments, *self.extra]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{self.name}: {done.stderr[-3000:]}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.stdout + done.stderr, wall_s, cpu_s

    def stages(self, repeats: int) -> dict[str, dict[str, float]]:
        """Medians of every stage; the files are made between the dry run and the rest."""
        run = [self.target, "--cores", "8", *TRIGGERS]
        found = {}
        found["parse"], _ = self._median(repeats, ["--cores", "1", "--list-rules"])
        found["dry_run"], printed = self._median(repeats, [*run, "-n"])
        jobs = int(re.findall(r"^total\s+(\d+)$", printed, re.MULTILINE)[-1])
        self._make_outputs(self.snakemake(self.target, "--cores", "8", "--summary")[0])
        found["dispatch"], _ = self._median(repeats, [*run, "--touch", "--forceall"])
        found["dispatch"]["jobs_per_s"] = round(jobs / found["dispatch"]["wall_s"], 1)
        left, *_ = self.snakemake(*run, "-n")
        if "Nothing to be done" not in left:
            raise SystemExit(f"{self.name}: something was left to be done:\n{left[-3000:]}")
        found["no_op"], _ = self._median(repeats, run)
        return {"jobs": {"n": jobs}, **found}

    def _median(self, repeats: int, arguments: list[str]) -> tuple[dict[str, float], str]:
        runs = [self.snakemake(*arguments) for _ in range(repeats)]
        wall_s, cpu_s = (round(statistics.median(run[i] for run in runs), 3) for i in (1, 2))
        return {"wall_s": wall_s, "cpu_s": cpu_s}, runs[-1][0]

    def _make_outputs(self, summary: str) -> None:
        """A stand-in for every output that the summary names."""
        _, _, table = summary.partition("output_file\t")
        for line in table.splitlines()[1:]:
            name, *rest = line.split("\t")
            if rest:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")


def ours(folder: Path, jobs: int) -> Bench:
    """This checkout with a grid of that many jobs."""
    folder.mkdir(parents=True)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    for name in ("rules", "workflow", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "config/config.yaml"
    values = yaml.safe_load(path.read_text())
    students = max(2, (jobs - FIXED_JOBS) // 2)
    block = {"students": ["tiny"], "datasets": ["problems"], "teacher": "demo"}
    values["grid"] = [
        {**block, "pipeline": pipeline, "seeds": list(range(first, students, 3))}
        for first, pipeline in enumerate(["sft", "kd", "synthetic_sft"])
    ]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return Bench("ours", folder, "all_frontiers", [])


def minimum(folder: Path, jobs: int) -> Bench:
    """The smallest Snakefile of that many jobs."""
    folder.mkdir(parents=True)
    (folder / "Snakefile").write_text(MINIMUM)
    return Bench("minimum", folder, "all", ["--config", f"jobs={jobs}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results: dict[str, Any] = {"machine": platform.platform(), "repeats": arguments.repeats}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for jobs in arguments.jobs:
            both = {}
            for make in (minimum, ours):
                bench = make(Path(name, f"{make.__name__}-{jobs}"), jobs)
                both[bench.name] = bench.stages(arguments.repeats)
                shutil.rmtree(bench.folder)
            results[str(jobs)] = both
            for stage in ("parse", "dry_run", "dispatch", "no_op"):
                least, own = both["minimum"][stage], both["ours"][stage]
                print(
                    f"{jobs:>6} jobs  {stage:<9} minimum {least['wall_s']:7.2f} s "
                    f"({least['cpu_s']:6.2f} CPU), ours {own['wall_s']:7.2f} s "
                    f"({own['cpu_s']:6.2f} CPU): {own['wall_s'] / least['wall_s']:.2f} times, "
                    f"{own['cpu_s'] / least['cpu_s']:.2f} of CPU",
                    flush=True,
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
