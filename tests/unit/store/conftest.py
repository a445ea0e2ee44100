"""An artifact that was made, and remotes that it can be sent to."""

import pytest
from transfers import make, open_remote

from angelshare.recipes import make_recipe
from angelshare.store.artifacts import ArtifactStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus and the model it was made by, in one store."""
    folder = tmp_path_factory.mktemp("made") / "here"
    model = make(folder, make_recipe("model", inputs={}), "weights", kind="model", parts=1)
    recipe = make_recipe(
        "corpus",
        inputs={"teacher": {"kind": "model", "key": model.key}},
        source={"licence": "CC-BY-4.0"},
    )
    return make(folder, recipe, "answers")


@pytest.fixture
def artifact(made):
    return made


@pytest.fixture(params=["folder", "file", "memory", "s3", "moved"])
def each_remote(request, tmp_path, monkeypatch):
    return open_remote(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path, monkeypatch):
    return open_remote(request.param, request, tmp_path, monkeypatch)


@pytest.fixture
def there(tmp_path):
    return ArtifactStore(tmp_path / "there")
