"""AlpacaEval 2 of made-up instructions, and a judge whose preferences a test knows."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

BASE = "Base answer"


def write_benchmark(folder: Path, count: int) -> dict[str, str]:
    """Write ``count`` instructions with a baseline's answers, and annotations to steady the
    regression; the fields that name the two files."""
    draw = random.Random(0)
    baseline = [
        {
            "dataset": "made",
            "instruction": f"Say something of number {n}.",
            "output": f"{BASE} {n}: " + "blah " * draw.randint(1, 60),
            "generator": "baseline",
        }
        for n in range(count)
    ]
    (folder / "baseline.json").write_text(json.dumps(baseline))
    difficulty = [draw.gauss(0, 1) for _ in range(count)]
    columns = ("model", "index", "preference", "std_delta_len")
    with (folder / "gamed.csv").open("w") as stream:
        rows = csv.writer(stream)
        rows.writerow((*columns, "instruction_difficulty", "not_gamed_baseline"))
        for model, shift in (("concise", -1.0), ("verbose", 1.0)):
            for n in range(count):
                preference = 1 / (1 + math.exp(-shift - difficulty[n]))
                rows.writerow([model, n, preference, shift, difficulty[n], False])
    return {"data": str(folder / "baseline.json"), "gamed": str(folder / "gamed.csv")}


def prefers(body: dict[str, Any], mine: float) -> dict[str, Any]:
    """A reply that gives the answer under judgement this probability, wherever it stands."""
    asked = body["messages"][-1]["content"]
    first = asked.index('"model_identifier": "M"') < asked.index(BASE)
    p = mine if first else 1 - mine
    tokens = [{"token": t, "logprob": math.log(q)} for t, q in (("m", p), ("M", 1 - p))]
    content = [{**tokens[0], "bytes": None, "top_logprobs": tokens}]
    return {"text": "m", "choice": {"logprobs": {"content": content, "refusal": None}}}
