import json
import stat

import pytest

from angelshare.errors import AngelshareError
from angelshare.files import TEMPORARY_PREFIX
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore, StoredFile
from angelshare.store.consumers import Consumer, consumer_id
from angelshare.store.records import Receipt
from angelshare.store.verify import leftovers, repair, verify

RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1})


def make(store, tmp_path, parts=2, recipe=RECIPE, text="answers"):
    """A sealed artifact whose part ``i`` is one file with ``text`` and ``i``."""
    artifact = store.artifact("corpus", recipe_key("corpus", recipe))
    for part in range(parts):
        source = tmp_path / f"source-{part}"
        source.write_text(f"{text} {part}")
        artifact.commit(
            part, {"data.parquet": source}, inputs={"teacher": "c0ffee"}, rows=10, tokens=7
        )
    artifact.seal(recipe, parts)
    return artifact


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def test_content_comes_back_and_objects_are_read_only(store, tmp_path):
    artifact = make(store, tmp_path)
    paths = artifact.paths()
    assert [path.read_text() for path in paths] == ["answers 0", "answers 1"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in paths)
    assert artifact.manifest().rows == 20
    assert artifact.manifest().tokens == 14


def test_receipts_and_manifests_are_byte_stable_across_stores(tmp_path):
    files = []
    for name in ("one", "two"):
        artifact = make(ArtifactStore(tmp_path / name), tmp_path)
        files.append([artifact.manifest_path.read_bytes(), artifact.receipt_path(1).read_bytes()])
    assert files[0] == files[1]


def test_equal_content_is_stored_once(store, tmp_path):
    make(store, tmp_path)
    make(store, tmp_path, recipe=make_recipe("corpus", inputs={}, decoding={"seed": 2}))
    assert len(list(store.objects.root.glob("*/*.parquet"))) == 2


def test_adopting_a_finished_part(store, tmp_path):
    artifact = make(store, tmp_path)
    assert artifact.adopt(1).part == 1
    assert artifact.adopt(2) is None


def test_a_part_whose_object_is_gone_is_not_adopted(store, tmp_path):
    artifact = make(store, tmp_path)
    artifact.paths()[1].unlink()
    assert artifact.adopt(1) is None
    assert artifact.adopt(0) is not None


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_object_stops_the_reader_and_repair_mends_it(store, tmp_path, damage):
    artifact = make(store, tmp_path)
    intact = artifact.manifest()
    victim = artifact.paths()[1]
    victim.chmod(0o644)
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_text("answers" if damage == "truncated" else "answers X")

    with pytest.raises(AngelshareError) as raised:
        artifact.paths()
    message = str(raised.value)
    assert "part 1" in message
    assert str(victim) in message
    assert "angelshare verify --repair" in message
    if damage == "flipped":
        assert intact.parts[1].files[0].sha256 in message

    faults = verify(store)
    assert [(fault.artifact.key, fault.part) for fault in faults] == [(artifact.key, 1)]
    repair(faults)
    (left,) = verify(store)
    assert "makes this part again" in str(left)
    assert artifact.adopt(0) is not None
    assert artifact.adopt(1) is None
    assert make(store, tmp_path).manifest() == intact
    assert verify(store) == []


def test_putting_the_same_bytes_over_a_damaged_object_mends_it(store, tmp_path):
    artifact = make(store, tmp_path)
    victim = artifact.paths()[0]
    victim.chmod(0o644)
    victim.write_text("answers X")
    make(store, tmp_path)
    assert artifact.paths()[0].read_text() == "answers 0"


def test_damaged_receipts_and_manifests_are_found(store, tmp_path):
    artifact = make(store, tmp_path)
    path = artifact.receipt_path(0)
    receipt = json.loads(path.read_text())
    receipt["files"][0]["name"] = "../../etc/passwd"
    path.write_text(json.dumps(receipt))
    assert [fault.part for fault in verify(store)] == [0]
    with pytest.raises(AngelshareError, match=r"files\.0\.name"):
        artifact.seal(RECIPE, 2)


@pytest.mark.parametrize("damage", ["object", "folder"])
def test_a_link_out_of_the_store_is_no_object(store, tmp_path, damage):
    """Even one that leads to the right bytes: they are not the store's, and may change."""
    artifact = make(store, tmp_path)
    victim = artifact.paths()[1]
    elsewhere = tmp_path / "elsewhere"
    if damage == "object":
        victim.rename(elsewhere)
        victim.symlink_to(elsewhere)
    else:
        victim.parent.rename(elsewhere)
        victim.parent.symlink_to(elsewhere)
    with pytest.raises(AngelshareError, match="is a link"):
        artifact.paths()
    assert artifact.adopt(1) is None
    (fault,) = verify(store)
    assert fault.part == 1
    if damage == "object":
        repair([fault])
        assert elsewhere.exists()
        make(store, tmp_path)
        assert not victim.is_symlink()
        assert artifact.paths()[1] == victim


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "/etc/passwd", "..", ".x", "a\n", "a" * 300]
)
def test_names_that_are_no_plain_names_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        StoredFile(name=name, sha256="0" * 64, bytes=1)


@pytest.mark.parametrize("name", ["model.bin", "x.pkl", "x.pt", "modeling.py", "x", "x.json.gz"])
def test_formats_whose_reading_may_run_code_are_no_part_of_a_store(store, tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        StoredFile(name=name, sha256="0" * 64, bytes=1)
    source = tmp_path / "source"
    source.write_text("x")
    artifact = store.artifact("corpus", recipe_key("corpus", RECIPE))
    with pytest.raises(ValueError, match="pattern"):
        artifact.commit(0, {name: source}, inputs={})
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("kind", "key"), [("../../etc", "passwd"), ("corpus", "../x"), ("a/b", "0"), ("corpus", "")]
)
def test_what_names_an_input_never_leads_out_of_the_store(store, kind, key):
    with pytest.raises(AngelshareError, match="are not the kind and key"):
        store.artifact(kind, key)
    with pytest.raises(ValueError, match="input_keys"):
        Receipt(kind="logits", key="0", part=0, files=[], input_keys={"teacher": f"{kind}/{key}"})


@pytest.mark.parametrize("suffix", ["parquet/../../x", "PARQUET", "", "x" * 17, "a\n"])
def test_suffixes_that_are_none_are_refused(store, suffix):
    with pytest.raises(AngelshareError, match="is not the name of an object"):
        store.objects.path("0" * 64, suffix)


@pytest.mark.parametrize("change", [{"part": 7}, {"part": -1}, {"kind": "logits"}, {"key": "../x"}])
def test_a_manifest_whose_parts_are_anothers_is_refused(store, tmp_path, change):
    artifact = make(store, tmp_path)
    manifest = json.loads(artifact.manifest_path.read_text())
    manifest["parts"][1].update(change)
    artifact.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(AngelshareError, match=r"does not describe|is damaged"):
        artifact.manifest()


def test_a_manifest_of_another_recipe_is_refused(store, tmp_path):
    artifact = make(store, tmp_path)
    text = artifact.manifest_path.read_text().replace('"seed": 1', '"seed": 9')
    artifact.manifest_path.write_text(text)
    with pytest.raises(AngelshareError, match="does not describe"):
        artifact.manifest()


def test_sealing_needs_every_part_and_the_right_recipe(store, tmp_path):
    artifact = make(store, tmp_path)
    with pytest.raises(AngelshareError, match=r"00002\.json cannot be read"):
        artifact.seal(RECIPE, 3)
    with pytest.raises(AngelshareError, match="configuration changed"):
        artifact.seal(make_recipe("corpus", inputs={}, decoding={"seed": 3}), 2)


def test_parts_made_from_different_inputs_are_not_sealed(store, tmp_path):
    artifact = make(store, tmp_path)
    artifact.receipt_path(1).unlink()
    source = tmp_path / "source-1"
    artifact.commit(1, {"data.parquet": source}, inputs={"teacher": "another"})
    with pytest.raises(AngelshareError, match="different inputs"):
        artifact.seal(RECIPE, 2)


def test_a_failed_put_leaves_nothing_behind(store, tmp_path):
    artifact = store.artifact("corpus", recipe_key("corpus", RECIPE))
    with pytest.raises(FileNotFoundError):
        artifact.commit(0, {"data.parquet": tmp_path / "nowhere"}, inputs={})
    assert leftovers(store) == []
    assert not artifact.receipt_path(0).exists()


def test_leftovers_of_a_killed_job_are_listed(store, tmp_path):
    make(store, tmp_path)
    stray = store.objects.root / f"{TEMPORARY_PREFIX}x"
    stray.write_text("half")
    assert leftovers(store) == [stray]


def test_a_consumer_is_recorded_once_and_teams_are_told_apart(store, tmp_path):
    artifact = make(store, tmp_path)
    for team, tokens in (("ours", 5), ("ours", 6), ("theirs", 7)):
        artifact.add_consumer(
            Consumer(
                id=consumer_id(team, "run-key"), run="kd-1", team=team, tokens_read=tokens, utc=""
            )
        )
    assert sorted((c.team, c.tokens_read) for c in artifact.consumers()) == [
        ("ours", 5),
        ("theirs", 7),
    ]
    foreign = store.foreign_consumers("ours", [("corpus", artifact.key), ("logits", "0")])
    assert foreign == {artifact.key: [consumer_id("theirs", "run-key")]}


def test_files_appear_under_their_own_names(store, tmp_path):
    artifact = make(store, tmp_path, parts=1)
    with artifact.as_folder() as folder:
        assert (folder / "data.parquet").read_text() == "answers 0"
    assert not folder.exists()


def test_a_layer_is_read_where_it_lies_and_never_written(tmp_path):
    theirs = ArtifactStore(tmp_path / "theirs")
    original = make(theirs, tmp_path)
    original.add_consumer(Consumer(id="1", run="kd-1", team="theirs", tokens_read=5, utc=""))
    before = sorted(theirs.root.rglob("*"))

    ours = ArtifactStore(tmp_path / "ours", [theirs.root])
    artifact = ours.artifact("corpus", original.key)
    assert [path.read_text() for path in artifact.paths()] == ["answers 0", "answers 1"]
    artifact.add_consumer(Consumer(id="1", run="kd-1", team="theirs", tokens_read=5, utc=""))
    artifact.add_consumer(Consumer(id="2", run="kd-1", team="ours", tokens_read=5, utc=""))
    assert [c.team for c in ours.artifact("corpus", original.key).consumers()] == ["theirs", "ours"]
    assert sorted(theirs.root.rglob("*")) == before

    other = make_recipe("corpus", inputs={}, decoding={"seed": 2})
    assert make(ours, tmp_path, recipe=other).folder.is_relative_to(ours.root)
