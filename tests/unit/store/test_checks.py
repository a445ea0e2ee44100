"""Checking beside reading: nothing unchecked is published, and damage stops a job early."""

import hashlib
import threading

import pytest

from angelshare.errors import AngelshareError
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store import objects as objects_module
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.checks import Checks

RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1})


@pytest.fixture
def artifact(tmp_path):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", recipe_key("corpus", RECIPE))
    for part in range(2):
        source = tmp_path / "source"
        source.write_text(f"answers {part}")
        artifact.commit(part, {"data.parquet": source}, inputs={})
    artifact.seal(RECIPE, 2)
    return artifact


@pytest.fixture
def checks():
    checks = Checks()
    yield checks
    checks.close()


def flip(path):
    path.chmod(0o644)
    path.write_text("answers X")


def test_paths_are_there_before_their_digests_are_known(artifact, checks, monkeypatch):
    may_go_on, original = threading.Event(), hashlib.file_digest

    def digest(*arguments):
        assert may_go_on.wait(20)
        return original(*arguments)

    monkeypatch.setattr(objects_module.hashlib, "file_digest", digest)
    paths = artifact.paths(checks)
    assert [path.read_text() for path in paths] == ["answers 0", "answers 1"]
    checks.stop_if_damaged()
    may_go_on.set()
    checks.join()


def test_damage_is_found_beside_reading_and_before_publishing(artifact, checks):
    victim = artifact.paths()[1]
    flip(victim)
    assert artifact.paths(checks)[1] == victim
    with pytest.raises(AngelshareError, match=r"part 1, data\.parquet.*has digest"):
        checks.join()
    with pytest.raises(AngelshareError, match="angelshare verify --repair"):
        checks.stop_if_damaged()


@pytest.mark.parametrize("damage", ["missing", "truncated", "link"])
def test_what_a_look_tells_is_told_at_once(artifact, checks, damage, tmp_path):
    victim = artifact.paths()[1]
    victim.chmod(0o644)
    if damage == "truncated":
        victim.write_text("answers")
    else:
        victim.rename(tmp_path / "elsewhere")
    if damage == "link":
        victim.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AngelshareError, match="part 1"):
        artifact.paths(checks)


def test_an_object_is_digested_once_per_job_unless_it_is_another_file(
    artifact, checks, monkeypatch
):
    digested = []
    original = objects_module._digest
    monkeypatch.setattr(
        objects_module, "_digest", lambda path: digested.append(path) or original(path)
    )
    for _ in range(3):
        paths = artifact.paths(checks)
    checks.join()
    assert sorted(digested) == sorted(paths)

    content = paths[0].read_bytes()
    paths[0].unlink()
    paths[0].write_bytes(content[::-1])
    artifact.paths(checks)
    with pytest.raises(AngelshareError, match="has digest"):
        checks.join()
