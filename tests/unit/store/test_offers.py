"""Asking remotes, and where each artifact of a study then comes from."""

import socket
import time
from dataclasses import replace

import pytest

from angelshare.errors import AngelshareError
from angelshare.plans import ArtifactPlan, Study
from angelshare.recipes import make_recipe, recipe_key
from angelshare.reuse import fetch, offers_for, sources
from angelshare.settings import Settings
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.offers import ask, keep_offers, kept_offers
from angelshare.store.remote import Remote
from angelshare.store.transfer import push


def plan(kind, inputs, **settings):
    made_from = {role: {"kind": one.kind, "key": one.key} for role, one in inputs.items()}
    recipe = make_recipe(kind, inputs=made_from, **settings)
    key = recipe_key(kind, recipe)
    return ArtifactPlan(
        kind=kind,
        key=key,
        recipe=recipe,
        parts=1,
        inputs=inputs,
        name=kind,
        label=kind,
        settings=Settings(),
    )


class Reader:
    """As much of a student run as decides what is needed."""

    def __init__(self, *plans):
        self.inputs = {one.kind: one for one in plans}

    def compared_with(self):
        return []


@pytest.fixture
def study():
    """A student that reads a dataset and the corpus a model made of it."""
    dataset, model = plan("dataset", {}), plan("model", {})
    corpus = plan("corpus", {"teacher": model, "sequences": dataset})
    artifacts = {one.key: one for one in (dataset, model, corpus)}
    return Study(artifacts=artifacts, runs={"run": Reader(dataset, corpus)})


def make(store, one, folder):
    artifact = store.artifact(one.kind, one.key)
    source = folder / "source"
    source.write_text(one.kind)
    artifact.commit(0, {"data.json": source}, inputs={})
    artifact.seal(one.recipe, 1)
    return artifact


@pytest.fixture
def shared(study, tmp_path):
    """A remote with all of the study."""
    made = ArtifactStore(tmp_path / "made")
    for one in study.artifacts.values():
        push(make(made, one, tmp_path), Remote(str(tmp_path / "shared")))
    return tmp_path / "shared"


def by_kind(study, found):
    return {study.artifacts[key].kind: source for key, source in found.items()}


def test_everything_is_made_where_no_remote_offers_it(study, tmp_path):
    found = sources(study, ArtifactStore(tmp_path / "empty"), {})
    assert set(found.values()) == {"made"}


def test_what_is_offered_is_fetched_and_its_inputs_are_not_needed(study, shared, tmp_path):
    store = ArtifactStore(tmp_path / "empty")
    answer = offers_for(study, store, [str(shared)])
    assert answer.warnings == []
    assert {study.artifacts[key].kind for key in answer.offers} == {"dataset", "corpus"}
    expected = {"dataset": "remote", "corpus": "remote", "model": "not needed"}
    assert by_kind(study, sources(study, store, answer.offers)) == expected
    for key, url in answer.offers.items():
        fetch(store, study.artifacts[key], url, lambda text: None)
    # The jobs of a run make the choice of its main process, whatever has arrived meanwhile.
    assert by_kind(study, sources(study, store, answer.offers)) == expected
    # The next run has it all.
    assert offers_for(study, store, [str(shared)]).offers == {}
    assert set(sources(study, store, {}).values()) == {"store", "not needed"}


def test_what_a_made_artifact_needs_is_fetched_for_it(study, shared, tmp_path):
    (corpus,) = (one for one in study.artifacts.values() if one.kind == "corpus")
    (shared / "corpus" / corpus.key / "manifest.json").unlink()
    store = ArtifactStore(tmp_path / "empty")
    answer = offers_for(study, store, [str(shared)])
    expected = {"dataset": "remote", "corpus": "made", "model": "remote"}
    assert by_kind(study, sources(study, store, answer.offers)) == expected


def test_the_first_remote_that_has_it_counts(study, shared, tmp_path):
    answer = ask(
        [str(tmp_path / "none"), str(shared), f"file://{shared}"],
        [(one.kind, one.key) for one in study.artifacts.values()],
    )
    assert set(answer.offers.values()) == {str(shared)}
    (warning,) = answer.warnings
    assert "there is no store, or it is empty" in warning


def test_a_damaged_manifest_is_no_offer_but_a_warning(study, shared):
    (path,) = shared.glob("corpus/*/manifest.json")
    path.write_text("{}")
    answer = ask([str(shared)], [(one.kind, one.key) for one in study.artifacts.values()])
    assert len(answer.offers) == 2
    (warning,) = answer.warnings
    assert "is damaged" in warning
    assert "It is not fetched." in warning


def test_a_remote_that_hangs_is_not_waited_for(study, shared, monkeypatch):
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        began = time.monotonic()
        names = [(one.kind, one.key) for one in study.artifacts.values()]
        answer = ask(["s3://bucket/store", str(shared)], names, within_s=3.0)
        assert time.monotonic() - began < 30
    assert set(answer.offers.values()) == {str(shared)}
    (warning,) = answer.warnings
    assert "did not answer within 3 s" in warning


def test_a_fetch_that_fails_says_how_to_go_on(study, shared, tmp_path):
    (corpus,) = (one for one in study.artifacts.values() if one.kind == "corpus")
    for path in shared.glob("objects/*/*"):
        path.unlink()
    store = ArtifactStore(tmp_path / "empty")
    with pytest.raises(AngelshareError, match=r"is missing[\s\S]*Run the workflow again"):
        fetch(store, corpus, str(shared), lambda text: None)
    with pytest.raises(AngelshareError, match="has no corpus"):
        fetch(store, replace(corpus, key="0" * 32), str(shared), lambda text: None)


def test_the_choice_is_kept_for_the_jobs(tmp_path):
    assert kept_offers(tmp_path) == {}
    keep_offers(tmp_path, {"0" * 32: "s3://bucket/store"})
    assert kept_offers(tmp_path) == {"0" * 32: "s3://bucket/store"}
