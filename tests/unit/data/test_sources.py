from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from angelshare.data.settings import DataSource, FileSource, HubSource, WordProblems
from angelshare.data.sources import load_source
from angelshare.data.tables import in_splits
from angelshare.errors import AngelshareError

ROWS = [
    {
        "id": f"tulu_{number}",
        "messages": [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": f"Answer {number}"},
        ],
        "source": "allenai/sample",
    }
    for number in range(20)
]
COUNTS = {"unlabelled": 4, "validation": 3, "test": 2, "id_field": "id"}


def write_jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_jsonl_and_parquet_give_the_same_seeded_splits(tmp_path) -> None:
    jsonl = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    settings = FileSource(source="file", path=jsonl, **COUNTS)
    table, _ = load_source(settings)
    parquet = settings.model_copy(update={"path": str(tmp_path / "rows.parquet")})
    assert table.equals(load_source(parquet)[0])
    assert not table.equals(load_source(settings.model_copy(update={"seed": 1}))[0])
    sizes = {split: in_splits(table, [split]).num_rows for split in set(table["split"].to_pylist())}
    assert sizes == {"train": 11, "unlabelled": 4, "validation": 3, "test": 2}
    assert set(table["id"].to_pylist()) == {row["id"] for row in ROWS}
    for row in table.to_pylist():
        number = row["id"].removeprefix("tulu_")
        expected = [f"Question {number}"]
        if row["split"] != "unlabelled":
            expected.append(f"Answer {number}")
        assert [message["content"] for message in row["messages"]] == expected


def test_a_repeated_prompt_is_taken_once(tmp_path) -> None:
    again = {**ROWS[0], "id": "again"}
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, again])
    table, counts = load_source(FileSource(source="file", path=path, **COUNTS))
    assert table.num_rows == 20
    assert len({"again", "tulu_0"} & set(table["id"].to_pylist())) == 1
    assert counts.dropped == {"repeated prompt": 1}


def test_a_subsample_leaves_the_rest_out(tmp_path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    table, counts = load_source(FileSource(source="file", path=path, labelled=5, validation=2))
    assert (counts.source_rows, counts.examined_rows) == (20, 7)
    assert sorted(table["split"].to_pylist()) == ["train"] * 5 + ["validation"] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 2: no field 'messages'; it has prompt"),
        ({"messages": "text"}, "row 2: 'messages' must be a list of messages"),
        ({"messages": [{"role": "user"}]}, "row 2, message 1: no content"),
        ({"messages": [{"content": "a"}]}, "row 2, message 1: no role"),
        ({"messages": [{"role": "human", "content": "a"}]}, "role 'human' is none of system"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(AngelshareError, match=message):
        load_source(FileSource(source="file", path=path, validation=1))


def test_files_that_cannot_be_read_are_named(tmp_path) -> None:
    with pytest.raises(AngelshareError, match="no such file"):
        load_source(FileSource(source="file", path=str(tmp_path / "none.jsonl")))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(AngelshareError, match=r"\.jsonl or \.parquet"):
        load_source(FileSource(source="file", path=str(tmp_path / "rows.csv")))
    (tmp_path / "rows.jsonl").write_text('{"messages":\n')
    with pytest.raises(AngelshareError, match="row 1: not JSON"):
        load_source(FileSource(source="file", path=str(tmp_path / "rows.jsonl")))
    path = write_jsonl(tmp_path / "few.jsonl", ROWS)
    with pytest.raises(AngelshareError, match="20 usable rows with different prompts do not fill"):
        load_source(FileSource(source="file", path=path, validation=20))


def test_a_hub_dataset_is_read_at_its_revision(monkeypatch) -> None:
    asked = {}

    def load_dataset(name, subset, **options):
        asked.update(name=name, subset=subset, **options)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = HubSource(source="hub", name="allenai/sample", revision="a" * 40, **COUNTS)
    assert load_source(settings)[0].num_rows == 20
    assert asked == {
        "name": "allenai/sample",
        "subset": None,
        "revision": "a" * 40,
        "split": "train",
    }


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch) -> None:
    def load_dataset(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(AngelshareError, match=r"cannot be loaded .* set HF_HOME"):
        load_source(HubSource(source="hub", name="allenai/sample", revision="a" * 40))


def test_the_source_field_decides_the_settings() -> None:
    adapter = TypeAdapter(DataSource)
    assert adapter.validate_python({"source": "word_problems"}) == WordProblems()
    hub = adapter.validate_python({"source": "hub", "name": "a/b", "revision": "main"})
    assert isinstance(hub, HubSource)
    with pytest.raises(ValidationError, match="prompt_field and answer_field"):
        adapter.validate_python({"source": "file", "path": "a.jsonl", "prompt_field": "question"})


def test_a_damaged_parquet_file_is_named(tmp_path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"not parquet")
    with pytest.raises(AngelshareError, match=r"rows\.parquet: not a readable Parquet file"):
        load_source(FileSource(source="file", path=str(tmp_path / "rows.parquet")))
