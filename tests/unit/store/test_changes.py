"""An input whose content changed under the same recipe."""

import pytest

from angelshare.errors import AngelshareError
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.changes import refuse_changed
from angelshare.store.consumers import Consumer
from angelshare.store.verify import repair, verify

DATASET = make_recipe("dataset", inputs={}, source="problems")
DATASET_KEY = recipe_key("dataset", DATASET)
LOGITS = make_recipe(
    "logits", inputs={"sequences": {"kind": "dataset", "key": DATASET_KEY}}, capture=1
)
LOGITS_KEY = recipe_key("logits", LOGITS)
PARTS = 2


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    make_dataset(store, tmp_path, "rows")
    make_logits(store, tmp_path)
    return store


def make_dataset(store, tmp_path, text):
    source = tmp_path / "dataset"
    source.write_text(text)
    artifact = store.artifact("dataset", DATASET_KEY)
    artifact.commit(0, {"data.parquet": source}, inputs={})
    return artifact.seal(DATASET, 1)


def make_logits(store, tmp_path, parts=PARTS):
    content = store.artifact("dataset", DATASET_KEY).manifest().content_sha256
    artifact = store.artifact("logits", LOGITS_KEY)
    for part in range(parts):
        source = tmp_path / "logits"
        source.write_text(f"{content} {part}")
        artifact.commit(
            part,
            {"logits.parquet": source},
            inputs={"sequences": content},
            input_keys={"sequences": f"dataset/{DATASET_KEY}"},
        )
    if parts == PARTS:
        artifact.seal(LOGITS, PARTS)
    return artifact


def collect(store, kind, key):
    artifact = store.artifact(kind, key)
    artifact.manifest_path.unlink()
    for path in (artifact.folder / "parts").iterdir():
        path.unlink()


def remake_dataset(store, tmp_path, text):
    """What a stage does that is not deterministic, after its artifact was collected."""
    collect(store, "dataset", DATASET_KEY)
    return make_dataset(store, tmp_path, text)


def test_the_same_content_made_again_changes_nothing(store, tmp_path):
    remake_dataset(store, tmp_path, "rows")
    refuse_changed(store, store.artifact("logits", LOGITS_KEY))
    assert verify(store) == []


def test_an_input_that_is_not_there_says_nothing(store):
    collect(store, "dataset", DATASET_KEY)
    refuse_changed(store, store.artifact("logits", LOGITS_KEY))
    assert verify(store) == []


def test_a_changed_input_is_reported_refused_and_repaired(store, tmp_path):
    logits = store.artifact("logits", LOGITS_KEY)
    logits.add_consumer(Consumer(id="1", run="kd-1", team="ours", tokens_read=5, utc=""))
    was = store.artifact("dataset", DATASET_KEY).manifest().content_sha256
    now = remake_dataset(store, tmp_path, "other rows").content_sha256

    faults = verify(store)
    assert [(fault.artifact.key, fault.part) for fault in faults] == [
        (LOGITS_KEY, part) for part in range(PARTS)
    ]
    assert was[:12] in str(faults[0])
    assert now[:12] in str(faults[0])
    assert "read by kd-1 of ours" in str(faults[0])
    with pytest.raises(AngelshareError, match="angelshare verify --repair") as raised:
        refuse_changed(store, logits)
    assert f"logits {LOGITS_KEY}, part 0" in str(raised.value)

    objects = sorted(store.objects.root.glob("*/*"))
    assert repair(faults) == PARTS + 1
    assert sorted(store.objects.root.glob("*/*")) == objects
    assert not logits.manifest_path.exists()
    assert logits.adopt(0) is None
    make_logits(store, tmp_path)
    refuse_changed(store, logits)
    assert verify(store) == []


def test_the_former_parts_of_an_unsealed_artifact_are_found(store, tmp_path):
    """One part of two is there when the input changes: sealing refuses, repair takes it."""
    collect(store, "logits", LOGITS_KEY)
    make_logits(store, tmp_path, parts=1)
    now = remake_dataset(store, tmp_path, "other rows").content_sha256
    logits = store.artifact("logits", LOGITS_KEY)
    source = tmp_path / "logits"
    logits.commit(1, {"logits.parquet": source}, inputs={"sequences": now})
    with pytest.raises(AngelshareError, match="different inputs"):
        logits.seal(LOGITS, PARTS)
    faults = verify(store)
    assert [(fault.artifact.key, fault.part) for fault in faults] == [(LOGITS_KEY, 0)]
    repair(faults)
    make_logits(store, tmp_path)
    assert verify(store) == []


def test_receipts_of_older_versions_name_their_inputs_by_the_recipe(store, tmp_path):
    logits = store.artifact("logits", LOGITS_KEY)
    for part in range(PARTS):
        path = logits.receipt_path(part)
        made_from = path.read_text()
        path.unlink()
        content = logits.manifest().parts[part].inputs
        assert DATASET_KEY in made_from
        source = tmp_path / "logits"
        logits.commit(part, {"logits.parquet": source}, inputs=content)
    logits.seal(LOGITS, PARTS)
    remake_dataset(store, tmp_path, "other rows")
    assert len(verify(store)) == PARTS


def test_a_layer_is_compared_with_what_a_job_would_read(store, tmp_path):
    ours = ArtifactStore(tmp_path / "ours", [store.root])
    logits = ours.artifact("logits", LOGITS_KEY)
    assert logits.store is not ours
    refuse_changed(ours, logits)
    source = tmp_path / "dataset"
    source.write_text("other rows")
    mine = ArtifactStore(tmp_path / "ours").artifact("dataset", DATASET_KEY)
    mine.commit(0, {"data.parquet": source}, inputs={})
    mine.seal(DATASET, 1)
    with pytest.raises(AngelshareError, match="other content of its sequences"):
        refuse_changed(ours, logits)


def test_a_run_that_read_the_former_content_says_so_until_it_is_repeated(store, tmp_path):
    dataset = store.artifact("dataset", DATASET_KEY)
    read = Consumer(
        id="1",
        run="kd-1",
        team="ours",
        tokens_read=5,
        utc="",
        content_sha256=dataset.manifest().content_sha256,
    )
    dataset.add_consumer(read)
    now = remake_dataset(store, tmp_path, "other rows").content_sha256
    assert dataset.consumers() == [read]
    dataset.add_consumer(read.model_copy(update={"content_sha256": now, "tokens_read": 6}))
    assert [(c.content_sha256, c.tokens_read) for c in dataset.consumers()] == [(now, 6)]
    dataset.add_consumer(read.model_copy(update={"content_sha256": now, "tokens_read": 7}))
    assert [c.tokens_read for c in dataset.consumers()] == [6]
