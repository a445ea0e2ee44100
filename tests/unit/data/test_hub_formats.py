"""The hubs' own row formats, read from a file and through `datasets`, split by hand."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from angelshare.data.settings import FileSource, HubSource
from angelshare.data.sources import load_source, unusable
from angelshare.data.tables import in_splits

HUB = Path(__file__).resolve().parents[2] / "data/hub"
FORMATS = {
    "tulu_3_sft_mixture": {"id_field": "id", "count_field": "source", "validation": 2},
    "openr1_math_220k": {"id_field": "uuid", "validation": 1},
    "codeforces_cots_solutions": {"id_field": "id", "validation": 1},
    "gsm8k_main": {"prompt_field": "question", "answer_field": "answer", "validation": 1},
}


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (HUB / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_file_parquet_and_hub_give_one_table(name, tmp_path, monkeypatch) -> None:
    rows = rows_of(name)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    settings = FORMATS[name]
    origins = [
        FileSource(source="file", path=str(HUB / f"{name}.jsonl"), **settings),
        FileSource(source="file", path=str(tmp_path / "rows.parquet"), **settings),
        HubSource(source="hub", name="a/b", revision="a" * 40, **settings),
    ]
    (table, counts), *others = [load_source(origin) for origin in origins]
    for other_table, other_counts in others:
        assert other_table.equals(table)
        assert other_counts == counts


def test_the_mixture_s_rows_by_hand() -> None:
    path = str(HUB / "tulu_3_sft_mixture.jsonl")
    table, counts = load_source(
        FileSource(source="file", path=path, **FORMATS["tulu_3_sft_mixture"])
    )
    assert (counts.source_rows, counts.examined_rows) == (10, 10)
    assert counts.dropped == {
        "empty message": 1,
        "no answer at the end": 1,
        "repeated prompt": 1,
        "roles do not alternate": 1,
    }
    assert counts.splits == {"train": 4, "unlabelled": 0, "validation": 2, "test": 0}
    assert counts.messages == {"user": 8, "assistant": 8, "system": 1}
    assert counts.values == {
        "hand/multi-turn": 1,
        "hand/one-turn": 3,
        "hand/over-long": 1,
        "hand/system": 1,
    }
    by_id = {row["id"]: row["messages"] for row in table.to_pylist()}
    source = {row["id"]: row["messages"] for row in rows_of("tulu_3_sft_mixture")}
    for row_id, messages in by_id.items():
        assert messages == source[row_id]


def test_a_problem_with_several_solutions_is_taken_once() -> None:
    path = str(HUB / "codeforces_cots_solutions.jsonl")
    table, counts = load_source(
        FileSource(source="file", path=path, **FORMATS["codeforces_cots_solutions"])
    )
    assert sorted(table["id"].to_pylist()) == ["9001/A", "9001/B", "9002/A"]
    assert counts.dropped == {"repeated prompt": 1}


def test_mathematics_is_learnt_from_the_verified_generation() -> None:
    path = str(HUB / "openr1_math_220k.jsonl")
    table, _ = load_source(FileSource(source="file", path=path, **FORMATS["openr1_math_220k"]))
    answers = {row["id"]: row["messages"][1]["content"] for row in table.to_pylist()}
    assert answers["00000000-0000-4000-8000-000000000002"].endswith("$\\boxed{4}$.")


def test_a_question_and_its_answer_become_two_messages() -> None:
    path = str(HUB / "gsm8k_main.jsonl")
    table, _ = load_source(FileSource(source="file", path=path, **FORMATS["gsm8k_main"]))
    first = {row["id"]: row["messages"] for row in table.to_pylist()}["row-0000001"]
    assert [message["role"] for message in first] == ["user", "assistant"]
    assert first[0]["content"].startswith("A cooper makes 4 casks")
    assert first[1]["content"].endswith("#### 20")


def test_only_the_columns_that_are_needed_are_read(monkeypatch) -> None:
    """OpenR1-Math's other generations are most of its bytes."""
    loaded = datasets.Dataset.from_list(rows_of("openr1_math_220k"))
    asked = []

    class Watched:
        column_names = loaded.column_names

        def select_columns(self, names):
            asked.extend(names)
            return loaded.select_columns(names)

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Watched())
    settings = HubSource(source="hub", name="a/b", revision="a" * 40, **FORMATS["openr1_math_220k"])
    load_source(settings)
    assert asked == ["messages", "uuid"]


def numbered(count: int) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}"},
                {"role": "assistant", "content": f"Answer {number}"},
            ]
        }
        for number in range(count)
    ]


def test_a_small_sample_of_a_large_source_reads_few_rows_and_is_nested(monkeypatch) -> None:
    loaded = datasets.Dataset.from_list(numbered(1000))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    held_out, trained = [], []
    for labelled in (30, 60):
        settings = HubSource(
            source="hub", name="a/b", revision="a" * 40, labelled=labelled, validation=10, test=5
        )
        table, counts = load_source(settings)
        assert counts.examined_rows == labelled + 15
        held_out.append(in_splits(table, ["validation", "test"]).to_pylist())
        trained.append(set(in_splits(table, ["train"])["id"].to_pylist()))
    assert held_out[0] == held_out[1]
    assert trained[0] < trained[1]
    assert len(trained[1]) == 60


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("ua", None),
        ("suaua", None),
        ("", "no answer at the end"),
        ("s", "no answer at the end"),
        ("uau", "no answer at the end"),
        ("aua", "roles do not alternate"),
        ("uua", "roles do not alternate"),
        ("usa", "roles do not alternate"),
        ("utua", "roles do not alternate"),
    ],
)
def test_what_can_be_trained_on(roles, reason) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    assert unusable([{"role": names[role], "content": "x"} for role in roles]) == reason
