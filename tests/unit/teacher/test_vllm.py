"""The vLLM back end for real, in a process of its own: an engine and transformers do not mix."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_teacher import nothing

from angelshare.data.tables import write_table
from angelshare.teacher.generate import generate_corpus
from angelshare.teacher.settings import DecodingSettings

GREEDY = DecodingSettings(max_new_tokens=12)
SCRIPT = """
import json, sys
from pathlib import Path
from angelshare.data.sequences import prompt_ids
from angelshare.data.tables import read_table
from angelshare.teacher.generate import generate_corpus
from angelshare.teacher.models import load_tokenizer
from angelshare.teacher.prompts import Prompt
from angelshare.teacher.settings import DecodingSettings
from angelshare.teacher.vllm_backend import VllmGenerator

model, folder = sys.argv[1], Path(sys.argv[2])
table = read_table(folder / "table")
greedy = DecodingSettings(backend="vllm", max_new_tokens=12)
generate_corpus(
    model, table, greedy, folder / "greedy", progress=lambda *_: None, count=lambda **_: None
)
tokenizer = load_tokenizer(model)
sampled = VllmGenerator(
    model,
    tokenizer,
    DecodingSettings(backend="vllm", max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3),
)
prompts = [
    Prompt(id=row["id"], token_ids=prompt_ids(tokenizer, row["messages"]))
    for row in table.to_pylist()
]
answers = [
    {answer.id: answer.token_ids for some in sampled.generate(chosen) for answer in some}
    for chosen in (prompts, prompts[5:9])
]
(folder / "sampled.json").write_text(json.dumps([*answers, len(tokenizer)]))
"""


@pytest.fixture(scope="module")
def made(model_dir, dataset, tmp_path_factory) -> Path:
    """A folder with a greedy corpus, and sampled answers to all prompts and to some."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    folder = tmp_path_factory.mktemp("vllm")
    write_table(dataset, folder / "table")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model_dir), str(folder)],
        check=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    return folder


def test_greedy_answers_equal_those_of_transformers(made, model_dir, dataset, tmp_path) -> None:
    generate_corpus(model_dir, dataset, GREEDY, tmp_path / "t", progress=nothing, count=nothing)
    assert pq.read_table(made / "greedy").equals(pq.read_table(tmp_path / "t"))


def test_a_sample_depends_on_the_seed_and_the_row_alone(made) -> None:
    everything, some, vocab_size = json.loads((made / "sampled.json").read_text())
    assert len(some) == 4
    assert some == {row_id: everything[row_id] for row_id in some}
    assert len({tuple(tokens) for tokens in everything.values()}) > 20
    assert all(token < vocab_size for tokens in everything.values() for token in tokens)
