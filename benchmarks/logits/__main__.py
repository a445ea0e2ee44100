"""Logit caches and the distillation loss in one table: size, time, memory, and their targets.

    python -m benchmarks.logits [--rows 64] [--repeats 2] [--threads 2] [--out FILE.json]
                                [--model FOLDER --data FILE.jsonl]
    python -m benchmarks.logits quality …       what the codecs are worth to a student

Storage and reading are those of a made-up teacher with the 100,278 tokens of OLMo-2's tokenizer
(`benchmarks.logits.teachers`), capture, loss and step of random weights of OLMo-2 1B's width. With
a model, a folder as ``save_pretrained`` leaves it, storage, reading and capture are its own, on the
data (JSON lines of ``messages``, or ``question`` and ``answer``).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from angelshare.data.sequences import encode_table
from angelshare.teacher.cache import LogitCache, write_cache
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.models import load_causal_lm, load_tokenizer
from angelshare.teacher.settings import CaptureSettings, TopkTailSettings

from .capture import CODECS, capture, random_rows
from .figures import figures, table_of
from .loss import COMPARED, Sizes, loss, machine
from .reading import reading, waiting
from .step import OLMO2_1B, VOCAB, random_model, steps
from .storage import Captures, storage
from .teachers import nothing, read_table, shape, synthetic_logits, synthetic_rows

SETTINGS = {**CODECS, "top 100": CaptureSettings(codec=TopkTailSettings(top_k=100, top_p=1.0))}
WAITING_STUDENT = OLMO2_1B | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}


def captured(arguments: argparse.Namespace, folder: Path) -> tuple[Captures, dict[str, Path]]:
    """Every codec's rows, and the files that hold them."""
    paths = {name: folder / f"{name}.parquet" for name in SETTINGS}
    if arguments.model is None:
        made = synthetic_rows(arguments.rows, SETTINGS)
        for name, (rows, info) in made.items():
            write_cache(paths[name], rows, info)
        return made, paths
    table = read_table(arguments.data, arguments.rows)
    for name, settings in SETTINGS.items():
        capture_logits(
            arguments.model, table, settings, paths[name], progress=nothing, count=nothing
        )
    caches = {name: LogitCache([path]) for name, path in paths.items()}
    return {
        name: ([cache.row(number) for number in range(len(cache))], cache.info)
        for name, cache in caches.items()
    }, paths


def timed_capture(arguments: argparse.Namespace) -> dict[str, Any]:
    """Captures beside bare forward passes, of the given model or of random weights."""
    if arguments.model is None:
        model = random_model(OLMO2_1B | {"num_hidden_layers": 4}, "cpu", torch.float32).eval()
        return capture(model, random_rows(8, 128, VOCAB), VOCAB, CODECS, arguments.repeats)
    tokenizer, model = load_tokenizer(arguments.model), load_causal_lm(arguments.model)
    length = CODECS["topk_tail"].max_length
    rows = encode_table(read_table(arguments.data, arguments.rows), tokenizer, length)
    return capture(model, rows, len(tokenizer), CODECS, arguments.repeats)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that the table is made from."""
    captures, paths = captured(arguments, folder)
    info = captures["topk_tail"][1]
    found: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.logits", *sys.argv[1:]]),
        "machine": machine("cpu"),
        "teacher": arguments.model.name if arguments.model else "made up",
        "targets": info.targets,
        "vocabulary": info.vocab_size,
        "storage": storage(captures),
        "reading": {name: reading([path]) for name, path in paths.items()},
    }
    if arguments.model is None:
        found["shape"] = shape(synthetic_logits(256, 0))
    width = WAITING_STUDENT | {"vocab_size": info.vocab_size}
    student = random_model(width, "cpu", torch.float32)
    found["waiting"] = {
        name: waiting([paths["topk_tail"]], student, in_memory=name == "in memory")
        for name in ("in memory", "read ahead")
    }
    del student, captures
    found["capture"] = timed_capture(arguments)
    gc.collect()
    found["loss"] = loss(Sizes(), repeats=arguments.repeats, names=COMPARED)
    gc.collect()
    student = random_model(OLMO2_1B | {"num_hidden_layers": 1}, "cpu", torch.float32)
    found["step"] = steps(student, 2, 512, repeats=arguments.repeats)
    return found


def main() -> None:
    """Print the table; write figures and what they were made from where ``--out`` says."""
    if sys.argv[1:2] == ["quality"]:
        from .quality import main as quality

        return quality(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logits", description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data go together")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    found["figures"] = figures(found)
    print(table_of(found["figures"]))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return None


if __name__ == "__main__":
    main()
