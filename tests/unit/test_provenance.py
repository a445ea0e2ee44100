"""What jobs say of their making, from the configuration and from what they read."""

import copy
import hashlib
import sys
from pathlib import Path

import pytest
import yaml

from angelshare.config import load_config
from angelshare.grid import plan_study
from angelshare.provenance import Making, licence_warnings, licences, name_of, restricted, software
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.provenance import Provenance
from angelshare.teacher.settings import PretrainedTeacher

ROOT = Path(__file__).resolve().parents[2]
HUB = {"model": "allenai/OLMo-2-0325-32B-SFT", "revision": "0" * 40}
CHAT = {"source": "hub", "name": "allenai/tulu-3-sft-mixture", "revision": "1" * 40}
ON_CORPUS = {"data": "corpus", "logits": True}


@pytest.fixture
def values(tmp_path):
    """The default, with a pretrained teacher on a hub's data beside the embedded one."""
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    values["results"] = str(tmp_path / "results")
    values["datasets"]["chat"] = dict(CHAT)
    values["teachers"]["big"] = dict(HUB)
    values["pipelines"]["kd_on_corpus"] = dict(ON_CORPUS)
    values["grid"] = [
        {"pipeline": pipeline, "students": ["tiny"], "datasets": [data], "teacher": teacher}
        | {"seeds": [1]}
        for data, teacher in (("problems", "demo"), ("chat", "big"))
        for pipeline in ("kd", "kd_on_corpus")
    ]
    return values


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def keys(values):
    study = plan_study(load_config(values))
    return {*study.artifacts, *(run.key for run in study.runs.values())}


def plans(values, kind, teacher):
    """Config and plans of a kind made by a teacher; those from the dataset first."""
    config = load_config(values)
    found = [
        p for p in plan_study(config).artifacts.values() if (p.kind, p.name) == (kind, teacher)
    ]
    return config, sorted(found, key=lambda plan: len(list(plan.closure())))


def test_a_corrected_licence_changes_no_key(values):
    before = keys(values)
    corrected = copy.deepcopy(values)
    for section, name in (("datasets", "problems"), ("datasets", "chat"), ("teachers", "big")):
        corrected[section][name]["license"] = "ODC-By-1.0"
    corrected["teachers"]["demo"] |= {"license": "MIT", "outputs_restricted": True}
    corrected["teachers"]["big"]["outputs_restricted"] = True
    assert keys(corrected) == before


def test_remote_code_is_part_of_the_key_only_where_it_may_run(values):
    before = keys(values)
    values["teachers"]["big"]["trust_remote_code"] = False
    assert keys(values) == before
    values["teachers"]["big"]["trust_remote_code"] = True
    after = keys(values)
    assert len(before - after) == 3 + 1 + 2  # logits, logits of the corpus, corpus; scores; runs


def test_licences_of_all_that_a_cache_stands_on_are_told(values, store):
    values["datasets"]["chat"]["license"] = "ODC-By-1.0"
    values["teachers"]["big"]["license"] = "Apache-2.0"
    config, (direct, of_corpus) = plans(values, "logits", "big")
    told = {
        name_of(direct.inputs["sequences"]): "ODC-By-1.0",
        f"{HUB['model']}@{HUB['revision']}": "Apache-2.0",
    }
    assert licences(config, store, direct) == told
    assert licences(config, store, of_corpus) == told
    config, (embedded, _) = plans(values, "logits", "demo")
    assert set(licences(config, store, embedded).values()) == {"Apache-2.0"}
    assert {name.partition("/")[0] for name in licences(config, store, embedded)} == {
        "dataset",
        "model",
        "tokenizer",
    }


def test_what_the_hub_said_of_its_data_is_kept(values, store, tmp_path):
    config, (direct, _) = plans(values, "logits", "big")
    dataset = direct.inputs["sequences"]
    assert licences(config, store, direct)[name_of(dataset)] is None
    making = Making()
    making.licence(dataset, "odc-by")
    source = tmp_path / "source"
    source.write_text("rows")
    artifact = store.artifact("dataset", dataset.key)
    record = making.record(config, store, dataset)
    artifact.commit(0, {"data.parquet": source}, inputs={}, provenance=record)
    artifact.seal(dataset.recipe, 1)
    assert licences(config, store, direct)[name_of(dataset)] == "odc-by"
    values["datasets"]["chat"]["license"] = "ODC-By-1.0"
    config, (direct, _) = plans(values, "logits", "big")
    assert licences(config, store, direct)[name_of(dataset)] == "ODC-By-1.0"


def test_a_restricted_teacher_warns_of_its_outputs_alone(values):
    assert licence_warnings(load_config(values), plan_study(load_config(values))) == []
    values["teachers"]["big"]["outputs_restricted"] = True
    config = load_config(values)
    study = plan_study(config)
    warned = licence_warnings(config, study)
    assert len(warned) == 3
    assert all("restricts training on its outputs" in line for line in warned)
    for plan in study.artifacts.values():
        made = plan.kind in ("corpus", "logits") and plan.name == "big"
        assert restricted(config, plan) == ([f"{HUB['model']}@{HUB['revision']}"] if made else [])


def test_the_files_of_a_pretrained_model_are_named_by_digest(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "optimizer.pt", ".hidden.json"):
        (folder / name).write_text(name)
    making = Making()
    making.model(PretrainedTeacher(model=str(folder)), str(tmp_path / "results"))
    assert making._model_files == {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("config.json", "model.safetensors")
    }


def test_a_readme_beside_a_model_decides_nothing(values, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    values["teachers"]["big"] = {"model": str(folder)}
    before = keys(values)
    (folder / "README.md").write_text("hello")
    assert keys(values) == before
    (folder / "model.safetensors").write_text("weights")
    assert keys(values) != before


def test_software_is_what_is_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    found = software()
    assert found["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "vllm" not in found

    class Loaded:
        __version__ = "0.11.0"

    monkeypatch.setitem(sys.modules, "vllm", Loaded())
    assert software()["vllm"] == "0.11.0"


def test_records_hold_no_time_and_no_host(values, store):
    config, (plan, _) = plans(values, "logits", "demo")
    first, second = (Making().record(config, store, plan) for _ in range(2))
    assert first == second
    assert set(Provenance.model_fields) == {
        "software",
        "device",
        "model_files",
        "tokenizer_sha256",
        "chat_template_sha256",
        "licences",
        "restricted",
    }
