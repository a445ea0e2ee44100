"""Checking everything a store holds besides objects and receipts, and saying whom it concerns."""

import shutil
from pathlib import Path

import pytest

from angelshare.energy.attempts import read_attempts
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.consumers import Consumer
from angelshare.store.verify import repair, verify

RECORD = Path(__file__).parents[2] / "data/energy_sidecar.example.json"
PARTS = 3


def make(store, tmp_path, seed=1, part_bytes=100):
    recipe = make_recipe("corpus", inputs={}, decoding={"seed": seed})
    artifact = store.artifact("corpus", recipe_key("corpus", recipe))
    source = tmp_path / "source"
    for part in range(PARTS):
        source.write_bytes(f"{seed} {part} ".encode().ljust(part_bytes))
        artifact.commit(part, {"data.parquet": source}, inputs={})
        shutil.copy(RECORD, artifact.receipt_path(part).with_suffix(".energy.json"))
    artifact.seal(recipe, PARTS)
    shutil.copy(RECORD, artifact.folder / "energy.json")
    artifact.attempts.mkdir()
    for number in range(2):
        shutil.copy(RECORD, artifact.attempts / f"{number}.json")
    return artifact


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def spoil(path):
    path.write_text(path.read_text().replace('"energy-sidecar/1"', '"energy-sidecar/0"'))


def test_a_sound_store_with_all_its_records_has_no_fault(store, tmp_path):
    make(store, tmp_path)
    assert verify(store) == []


@pytest.mark.parametrize(("name", "part"), [("energy.json", None), ("parts/00001.energy.json", 1)])
def test_a_declared_sidecar_against_the_schema_is_taken_away_to_be_made_again(
    store, tmp_path, name, part
):
    artifact = make(store, tmp_path)
    path = artifact.folder / name
    spoil(path)
    (fault,) = verify(store)
    assert fault.part == part
    assert "no valid energy sidecar" in fault.text
    repair([fault])
    assert not path.exists()
    assert verify(store) == []


def test_a_damaged_attempt_is_set_aside_and_the_other_joules_stay(store, tmp_path):
    artifact = make(store, tmp_path)
    spoil(artifact.attempts / "0.json")
    (fault,) = verify(store)
    assert "no valid energy sidecar" in fault.text
    repair([fault])
    assert (artifact.attempts / "0.json.damaged").exists()
    assert len(read_attempts(artifact.attempts)) == 1
    assert verify(store) == []


def test_a_damaged_consumer_is_set_aside(store, tmp_path):
    artifact = make(store, tmp_path)
    for run in ("kd-1", "kd-2"):
        artifact.add_consumer(Consumer(id=run, run=run, team="ours", tokens_read=1, utc=""))
    (artifact.folder / "consumers/kd-1.json").write_text("{")
    (fault,) = verify(store)
    assert "no consumer record" in fault.text
    repair([fault])
    assert [consumer.run for consumer in artifact.consumers()] == ["kd-2"]
    assert verify(store) == []


def test_a_fault_names_the_runs_of_each_team_that_read_it(store, tmp_path):
    artifact = make(store, tmp_path)
    for team, run in (("ours", "kd-2"), ("ours", "kd-1"), ("theirs", "kd-1")):
        name = f"{team}-{run}"
        artifact.add_consumer(Consumer(id=name, run=run, team=team, tokens_read=1, utc=""))
    artifact.paths()[1].unlink()
    (fault,) = verify(store)
    assert "part 1 (read by kd-1, kd-2 of ours; kd-1 of theirs)" in str(fault)


def test_objects_are_read_once_and_progress_is_in_bytes(store, tmp_path):
    make(store, tmp_path, seed=1, part_bytes=5_000_000)
    shared = make(store, tmp_path, seed=2)
    copy = make_recipe("corpus", inputs={}, decoding={"seed": 3})
    twin = store.artifact("corpus", recipe_key("corpus", copy))
    for part, path in enumerate(shared.paths()):
        twin.commit(part, {"data.parquet": path}, inputs={})
    seen = []
    shared.paths()[0].chmod(0o644)
    shared.paths()[0].write_bytes(b"x" * 100)
    faults = verify(store, lambda done, of: seen.append((done, of)))
    assert {fault.artifact.key for fault in faults} == {shared.key, twin.key}
    whole = PARTS * (5_000_000 + 100)
    assert seen[0] == (0, whole)
    assert seen[-1] == (whole, whole)
    assert seen == sorted(seen)
    assert len(seen) > 2
