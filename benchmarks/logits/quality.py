"""What each codec is worth to a student: one teacher, one student, one run per codec and seed.

    python -m benchmarks.logits quality [--steps 600] [--labelled 500] [--teacher-steps 900]
                                        [--seeds 1 2 3] [--temperature 1] [--skip dense]
                                        [--jobs 2] [--out FILE]
    python -m benchmarks.logits quality --model FOLDER --data FILE.jsonl [--rows 400] [--steps 60]
                                        [--leave-out 5]

The first trains the embedded default's teacher and its small student on word problems. With a model
the student is that model with one layer of every ``--leave-out`` missing, trained on the data but
for its last fifth, which is held out. `dense` is exact top-k over the whole vocabulary, the upper
mark; `hard` learns from labels alone. Held-out figures per target token: cross-entropy of the
labels and KL(teacher ‖ student) over the whole vocabulary at T = 1, in nats, and how often the
student's likeliest token is the label and the teacher's likeliest; for the word problems, exact
match as well. Means over seeds, with the standard error; and, because students of one seed begin
alike and see the same batches, the mean difference from exact top-k at the same seed, with its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from angelshare.teacher.cache import LogitCache
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.settings import CaptureSettings, RskdSettings, TopkTailSettings

from .students import World, real_model, word_problems
from .teachers import nothing

Codecs = dict[str, TopkTailSettings | RskdSettings | None]


def codecs(kept: int, vocab_size: int) -> Codecs:
    """The contenders; ``kept`` is the head's size."""
    return {
        "hard": None,
        "dense": TopkTailSettings(top_k=vocab_size, top_p=1.0),
        f"top {kept}": TopkTailSettings(top_k=kept, top_p=1.0),
        f"top {kept}, top-p 0.98": TopkTailSettings(top_k=kept, top_p=0.98),
        "rskd 50": RskdSettings(samples=50),
    }


def contenders(arguments: argparse.Namespace, world: World) -> Codecs:
    """Those that were not left out, and that can be read at the temperature."""
    return {
        name: codec
        for name, codec in codecs(arguments.kept, world.vocab_size()).items()
        if name not in arguments.skip
        and (arguments.temperature == 1 or codec is None or codec.name != "rskd")
    }


def quality(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every contender's figures by seed, and the bytes of its cache per target."""
    world = (word_problems if arguments.model is None else real_model)(arguments, folder)
    grid = tuple(sorted({1.0, arguments.temperature}))
    found: dict[str, Any] = {}
    paths: dict[str, Path | None] = {}
    for name, codec in contenders(arguments, world).items():
        found[name], paths[name] = {}, None
        if codec is not None:
            paths[name] = path = folder / f"{name}.parquet"
            settings = CaptureSettings(codec=codec, temperatures=grid, max_length=world.max_length)
            capture_logits(
                world.teacher, world.train, settings, path, progress=nothing, count=nothing
            )
            targets = LogitCache([path]).info.targets
            found[name] = {"bytes_per_target": path.stat().st_size / targets, "targets": targets}
    runs = trained(world, paths, arguments)
    for name, entry in found.items():
        entry["runs"] = [runs[name, seed] for seed in arguments.seeds]
    return found


def trained(
    world: World, paths: dict[str, Path | None], arguments: argparse.Namespace
) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of every contender's student of every seed, several at work at a time.

    Where one fails, those that have not begun are not.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    pool = ProcessPoolExecutor(
        arguments.jobs,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (max(1, arguments.threads // arguments.jobs),),
    )
    try:
        asked = {
            pool.submit(world.student, path, seed): (name, seed)
            for seed in arguments.seeds
            for name, path in paths.items()
        }
        for done in as_completed(asked):
            name, seed = asked[done]
            found[name, seed] = done.result()
            figures = ", ".join(f"{one} {value:.4f}" for one, value in found[name, seed].items())
            print(f"[{len(found)}/{len(asked)}] {name}, seed {seed}: {figures}", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def table_of(found: dict[str, Any], reference: str) -> str:
    """Means over seeds ± standard error, then differences from ``reference`` at the same seed."""
    metrics = list(found[reference]["runs"][0])
    heads = [metric.replace("_", " ") for metric in metrics]
    heads = ["", "bytes per target", *heads, *(f"Δ {head}" for head in heads)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, entry in found.items():
        size = f"{entry['bytes_per_target']:.1f}" if "bytes_per_target" in entry else ""
        values = {metric: [run[metric] for run in entry["runs"]] for metric in metrics}
        cells = [f"{mean_and_error(values[metric], '.4f')}" for metric in metrics]
        for metric in metrics:
            theirs = [run[metric] for run in found[reference]["runs"]]
            paired = [a - b for a, b in zip(values[metric], theirs, strict=True)]
            cells.append("" if name == reference else mean_and_error(paired, "+.4f"))
        lines.append(f"| {' | '.join([name, size, *cells])} |")
    return "\n".join(lines)


def mean_and_error(values: list[float], form: str) -> str:
    """The mean ± its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {error:.4f}"


def main(options: list[str]) -> None:
    """Print the table; write the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logits quality")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--teacher-steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--kept", type=int, default=100)
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--leave-out", type=int, default=5, help="one layer of so many, at least 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="students at work at a time")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(options)
    if arguments.model is not None and arguments.data is None:
        parser.error("--model needs --data")
    if arguments.leave_out < 2:
        parser.error("--leave-out 1 would leave no layer")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = quality(arguments, Path(folder))
    print(table_of(found, f"top {arguments.kept}"))
    if arguments.out is not None:
        found["command"] = f"python -m benchmarks.logits quality {' '.join(options)}"
        arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
