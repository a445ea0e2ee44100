"""Data of the harness task ``word_problems``: question and final number of each held-out problem.

Runs under the harness's own command as well: ``lm_eval --include_path <this folder> --tasks
word_problems --apply_chat_template --metadata '{"data_file": "test.parquet"}' …``.
"""

from __future__ import annotations

from typing import Any

import datasets
import pyarrow.parquet as pq


def load(data_file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The rows of a sequence table in Parquet as split ``test``; in memory, cached nowhere."""
    rows = []
    for messages in pq.read_table(data_file, columns=["messages"])["messages"].to_pylist():
        worked = messages[-1]["content"]
        rows.append(
            {"question": messages[0]["content"], "answer": worked.rsplit("#", 1)[1].strip()}
        )
    return {"test": datasets.Dataset.from_list(rows)}
