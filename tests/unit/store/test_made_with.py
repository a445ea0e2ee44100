"""What parts were made with: visible, deterministic, and decisive for nothing."""

from angelshare.recipes import make_recipe, recipe_key
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.provenance import Provenance, licence_texts, restricted_models
from angelshare.store.verify import verify

RECIPE = make_recipe("corpus", inputs={}, decoding={"seed": 1})
OLD = Provenance(software={"torch": "2.9.0"}, licences={"dataset/1": None})
NEW = Provenance(
    software={"torch": "2.13.0"}, licences={"dataset/1": "MIT"}, restricted=["model/2"]
)


def make(root, tmp_path, provenances):
    artifact = ArtifactStore(root).artifact("corpus", recipe_key("corpus", RECIPE))
    for part, provenance in enumerate(provenances):
        source = tmp_path / "source"
        source.write_text(f"answers {part}")
        artifact.commit(part, {"data.parquet": source}, inputs={}, provenance=provenance)
    artifact.seal(RECIPE, len(provenances))
    return artifact


def test_parts_of_different_software_are_one_artifact_and_told_apart(tmp_path):
    artifact = make(tmp_path / "mixed", tmp_path, [OLD, NEW, OLD])
    manifest = artifact.manifest()
    assert manifest.provenances == [(OLD, [0, 2]), (NEW, [1])]
    assert verify(artifact.store) == []
    plain = make(tmp_path / "plain", tmp_path, [None, None, None]).manifest()
    assert plain.content_sha256 == manifest.content_sha256
    assert plain.key == manifest.key


def test_licences_of_all_parts_are_told(tmp_path):
    records = [
        part.provenance for part in make(tmp_path / "s", tmp_path, [OLD, NEW]).manifest().parts
    ]
    assert licence_texts(records) == {"dataset/1": "not stated or MIT"}
    assert restricted_models(records) == ["model/2"]
