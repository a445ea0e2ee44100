import json

from angelshare.energy import EnergySettings, Job, window
from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.catalogue import catalogue, write_catalogue
from angelshare.store.consumers import Consumer
from angelshare.store.provenance import Provenance

NASTY = "<script>alert('x')</script>"
RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1, "note": NASTY})
MADE = Provenance(
    licences={"dataset/1": "CC-BY-4.0", f"model {NASTY}": NASTY}, restricted=[f"model {NASTY}"]
)


def make(tmp_path):
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", recipe_key("corpus", RECIPE))
    source = tmp_path / "source"
    source.write_text("answers")
    files = {"data.parquet": source}
    artifact.commit(0, files, inputs={}, rows=3, tokens=20, provenance=MADE)
    artifact.seal(RECIPE, 1)
    artifact.add_consumer(Consumer(id="1", run="kd-1", team="ours", tokens_read=20, utc="2026"))
    return artifact


def measure(artifact):
    """A real attempt record beside the artifact."""
    job = Job(
        rule="generate_corpus",
        stage="teacher_generation",
        role="teacher",
        sidecar=artifact.folder / "energy.json",
        attempts=artifact.attempts,
        gpus=0,
    )
    with window(job, EnergySettings()):
        sum(range(10**6))


def test_the_catalogue_says_what_a_store_offers(tmp_path):
    artifact = make(tmp_path)
    measure(artifact)
    (entry,) = catalogue(artifact.store)["artifacts"]
    assert (entry["kind"], entry["key"]) == ("corpus", artifact.key)
    assert (entry["rows"], entry["tokens"], entry["bytes"]) == (3, 20, len("answers"))
    assert entry["licences"] == MADE.licences
    assert entry["restricted"] == MADE.restricted
    assert entry["settings"]["decoding.seed"] == 1
    assert [one["run"] for one in entry["consumers"]] == ["kd-1"]
    energy = entry["energy"]
    assert energy["attempts"] == 1
    assert 0 <= energy["low_j"] <= energy["energy_j"] <= energy["high_j"]


def test_licences_and_restrictions_are_those_that_the_parts_were_made_with(tmp_path):
    recipe = make_recipe("corpus", inputs={}, decoding={"seed": 2})
    artifact = ArtifactStore(tmp_path / "store").artifact("corpus", recipe_key("corpus", recipe))
    source = tmp_path / "source"
    source.write_text("answers")
    record = Provenance(licences={"data": "MIT", "big": None}, restricted=["big"])
    artifact.commit(0, {"data.parquet": source}, inputs={}, provenance=record)
    artifact.seal(recipe, 1)
    (entry,) = catalogue(artifact.store)["artifacts"]
    assert entry["licences"] == {"data": "MIT", "big": "not stated"}
    _, page_path = write_catalogue(artifact.store, tmp_path / "out")
    page = page_path.read_text()
    assert "MIT <small>(data)</small>" in page
    assert "big restricts training on its outputs" in page


def test_what_was_not_recorded_is_not_nothing(tmp_path):
    (entry,) = catalogue(make(tmp_path).store)["artifacts"]
    assert entry["energy"] is None


def test_the_page_stands_alone_and_runs_nothing_from_the_store(tmp_path):
    artifact = make(tmp_path)
    json_path, page_path = write_catalogue(artifact.store, tmp_path / "out")
    assert json.loads(json_path.read_text()) == catalogue(artifact.store)
    page = page_path.read_text()
    assert artifact.key in page
    assert "not recorded" in page
    assert "CC-BY-4.0" in page
    assert "restricts training on its outputs" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    write_catalogue(artifact.store, tmp_path / "again")
    assert (tmp_path / "again" / "catalogue.html").read_text() == page
