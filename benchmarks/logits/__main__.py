"""One table: bytes per target token, capture and reading beside the paper's storage and the limits.

    python -m benchmarks.logits [--rows 64] [--model FOLDER --data FILE.jsonl] [--threads 2]
                                [--out benchmarks/results/logits.json]
    python -m benchmarks.logits quality …       what the codecs are worth to a student

Without a model the storage is that of a made-up teacher with the 100,278 tokens of OLMo-2's
tokenizer (`benchmarks.logits.teachers`); with one, a folder as ``save_pretrained`` leaves it, its
own answers to the data (JSON lines of ``messages``, or ``question`` and ``answer``) are captured,
and the capture is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from angelshare.teacher.cache import LogitCache, write_cache
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.settings import CaptureSettings, RskdSettings, TopkTailSettings

from .capture import capture
from .reading import reading
from .storage import storage
from .teachers import read_table, shape, synthetic_logits, synthetic_rows

SETTINGS = {
    "topk_tail": CaptureSettings(codec=TopkTailSettings(top_k=100, top_p=0.98)),
    "top 100": CaptureSettings(codec=TopkTailSettings(top_k=100, top_p=1.0)),
    "rskd": CaptureSettings(codec=RskdSettings(samples=50)),
}


def nothing(*_: object, **__: object) -> None:
    """Progress and counts, which a benchmark does not look at."""


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every figure of the table."""
    captures, paths = {}, {}
    for name, settings in SETTINGS.items():
        paths[name] = folder / f"{name}.parquet"
        if arguments.model is None:
            rows, info = synthetic_rows(arguments.rows, settings)
            write_cache(paths[name], rows, info)
        else:
            table = read_table(arguments.data, arguments.rows)
            capture_logits(
                arguments.model, table, settings, paths[name], progress=nothing, count=nothing
            )
            cache = LogitCache([paths[name]])
            rows, info = [cache.row(number) for number in range(len(cache))], cache.info
        captures[name] = rows, info
    found: dict[str, Any] = {
        "teacher": str(arguments.model.name) if arguments.model else "made up",
        "targets": captures["rskd"][1].targets,
        "vocabulary": captures["rskd"][1].vocab_size,
        "storage": storage(captures),
        "reading": {name: reading([path]) for name, path in paths.items()},
    }
    if arguments.model is None:
        found["shape"] = shape(synthetic_logits(256, 0))
    else:
        table = read_table(arguments.data, arguments.rows)
        timed = {name: SETTINGS[name] for name in ("topk_tail", "rskd")}
        found["capture"] = capture(arguments.model, table, timed, arguments.repeats)
    return found


def table_of(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    paper = found["storage"]["paper"]
    lines = [
        f"{found['targets']:,} targets, vocabulary {found['vocabulary']:,}, {found['teacher']}",
        "",
        "| | bytes per target | entropy of the rows | paper's position ÷ ours | tokens kept "
        "| read, cold | read, warm |",
        "|---|---|---|---|---|---|---|",
        f"| paper | {paper['bytes_per_target']:,.0f} ({paper['bytes_per_position']:,.0f} a "
        "position) | | 1 | 100 | | |",
    ]
    for name in SETTINGS:
        one, read = found["storage"][name], found["reading"][name]
        lines.append(
            f"| {name} | {one['bytes_per_target']:.1f} | {one['entropy_bytes_per_target']:.1f} | "
            f"{one['paper_per_position_over_ours']:.1f} | {one['kept']:.1f} | "
            f"{read['cold']['targets_per_s']:,.0f}/s | {read['warm']['targets_per_s']:,.0f}/s |"
        )
    if "capture" in found:
        timed = found["capture"]
        lines += [
            "",
            "| | tokens per second | over forward with head | over forward without |",
            "|---|---|---|---|",
        ]
        for name in ("topk_tail", "rskd"):
            one = timed[name]
            lines.append(
                f"| {name} | {one['tokens_per_s']:,.0f} | {one['over_forward']:+.1%} | "
                f"{one['over_base']:+.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table; write the figures where ``--out`` says."""
    if sys.argv[1:2] == ["quality"]:
        from .quality import main as quality

        return quality(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logits", description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.model is not None and arguments.data is None:
        parser.error("--model needs --data")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    print(table_of(found))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return None


if __name__ == "__main__":
    main()
