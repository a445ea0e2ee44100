import copy
from pathlib import Path

import pytest
import yaml

from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.generated import contents
from angelshare.grid import plan_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def values():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def problems(values):
    with pytest.raises(AngelshareError) as raised:
        load_config(values)
    return str(raised.value)


def edit(values, path, value):
    *parents, last = path.split(".")
    for part in parents:
        values = values[int(part) if part.isdigit() else part]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("training.learning_rat", 1, "training.learning_rat is not a known key"),
        ("trainin", {}, "did you mean 'training'?"),
        (
            "loss.temperature",
            -1,
            "loss.temperature must be greater than 0 (got -1). See config/README.md#loss.",
        ),
        ("capture.codec.top_k", "many", "capture.codec.top_k must be a valid integer"),
        (
            "grid.0.students",
            ["tinny"],
            "grid[0].students: there is no 'tinny'; known are small, tiny. Did you mean 'tiny'?",
        ),
        ("grid.1.teacher", None, "grid[1].teacher is missing"),
        ("grid.0.temperature", [2.0], "does not use (logits: false)"),
        ("grid.1.temperature", [3.0], "add it to capture.temperatures"),
        ("loss.temperature", 3.0, "loss.temperature 3.0 is not one that the logit cache keeps"),
        ("capture.codec", {"name": "rskd", "top_k": 4}, "capture.codec.top_k is not a known"),
        ("grid.1.training", {"max_steps": 0}, "grid[1].training.max_steps must be greater than 0"),
        ("teachers.demo.tokenizer", "other", "teachers.demo.tokenizer: there is no 'other'"),
        ("students.tiny.tokenizer", "other", "students.tiny.tokenizer: there is no 'other'"),
        (
            "teachers.big",
            {"model": "allenai/OLMo-2-0325-32B-SFT"},
            "teachers.big.revision is missing",
        ),
        ("teachers.big", {"model": "./nowhere"}, "it must be a saved model's folder"),
        (
            "datasets.mine",
            {"source": "file", "path": "nowhere.jsonl"},
            "there is no file 'nowhere.jsonl'",
        ),
        (
            "datasets.mine",
            {"source": "files"},
            "datasets.mine.source must be one of 'word_problems', 'file', 'hub' (got 'files')",
        ),
        ("datasets.mine", {"path": "rows.jsonl"}, "datasets.mine.source is missing"),
        (
            "teachers.big",
            {"modell": "./nowhere", "model": "."},
            "teachers.big.modell is not a known key (did you mean 'model'?)",
        ),
        ("teachers.big", {}, "teachers.big.model is missing"),
        (
            "grid.1.training",
            {"max_stepz": 1},
            "grid[1].training.max_stepz is not a known key (did you mean 'max_steps'?). See "
            "config/README.md#training.",
        ),
        ("grid.1.temperature", [0], "grid[1].temperature[0] must be greater than 0 (got 0)"),
        ("training", None, "training must be a section of its own, `key: value` (got None)"),
        ("hardware", {"rules": {"capture": {}}}, "hardware.rules.capture must be 'prerun', "),
        (
            "generation",
            {"backend": "vllm", "tensor_parallel": 4},
            "generation.tensor_parallel is 4, a job of generate_corpus has 0 GPUs",
        ),
        ("results", "pyproject.toml/x", "results: "),
        (
            "pipelines.sft.features",
            "blocks",
            "pipelines.sft.features: there is no 'blocks' in states; known are none.",
        ),
        ("states", {"blocks": {"layers": [2, 1]}}, "in ascending order, each once (got [2, 1])"),
        ("loss", {"feature": {"loss": "l1"}}, "loss.feature.loss must be 'mse', 'cosine' or 'cka'"),
    ],
)
def test_bad_input_is_one_clear_line(values, monkeypatch, path, value, says):
    monkeypatch.chdir(ROOT)
    edit(values, path, value)
    message = problems(values)
    assert says in message
    assert len(message.splitlines()) == 2


def test_draws_are_refused_at_other_temperatures_than_one(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    edit(values, "capture.codec", {"name": "rskd"})
    message = problems(values)
    assert "loss.temperature 2.0 cannot be had from draws" in message
    assert "grid[3].temperature 4.0 cannot be had from draws" in message
    assert "use temperature 1, or the codec topk_tail" in message


@pytest.mark.parametrize(
    "loss",
    [{"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.5}, {"divergence": "uld"}],
)
def test_divergences_that_need_the_tail_are_refused_over_draws(values, monkeypatch, loss):
    monkeypatch.chdir(ROOT)
    edit(values, "capture.codec", {"name": "rskd"})
    edit(values, "loss", loss)
    edit(values, "grid.3.temperature", [1.0])
    message = problems(values)
    assert f"loss.divergence {loss['divergence']} needs the mass of the tokens" in message
    assert "use forward_kl, or the codec topk_tail" in message
    assert len(message.splitlines()) == 2
    edit(values, "loss", {"divergence": "forward_kl"})
    load_config(values)
    edit(values, "loss", loss)
    values["grid"] = [block for block in values["grid"] if block["pipeline"] != "kd"]
    load_config(values)  # nothing reads a cache


def test_a_student_with_another_tokenizer_is_refused_before_the_teachers_pass(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    edit(values, "tokenizers.same", dict(values["tokenizers"]["demo"]))
    edit(values, "students.tiny.tokenizer", "same")
    load_config(values)  # another name of the same tokenizer
    edit(values, "tokenizers.same.vocab_size", 512)
    message = problems(values)
    assert "grid[1]: student 'tiny' reads with tokenizer 'same', teacher 'demo' with" in message
    assert "distil from a synthetic corpus" in message
    assert "compare ranks instead of tokens (loss: {divergence: uld}" in message
    assert len(message.splitlines()) == 2
    edit(values, "pipelines.kd.loss", {"divergence": "uld"})
    load_config(values)
    edit(values, "states", {"last": {"layers": 1}})
    edit(values, "pipelines.kd.features", "last")
    message = problems(values)
    assert "another token. Give the student tokenizer 'demo', or distil from a synthetic" in message
    assert "divergence" not in message  # vectors have no ranks
    values["grid"] = [block for block in values["grid"] if block["pipeline"] != "kd"]
    load_config(values)  # sequences may be read by another tokenizer


def test_a_distance_by_rank_shares_the_teacher_s_cache_and_reads_its_tokenizer(values):
    edit(values, "tokenizers.other", {"dataset": "problems", "vocab_size": 128})
    edit(values, "students.foreign", {**values["students"]["tiny"], "tokenizer": "other"})
    edit(
        values, "pipelines.uld", {"data": "dataset", "logits": True, "loss": {"divergence": "uld"}}
    )
    before = study_of(values)
    values["grid"].append({**values["grid"][1], "pipeline": "uld", "students": ["foreign"]})
    study = study_of(values)
    assert set(before.runs) < set(study.runs)
    runs = [run for run in study.runs.values() if run.pipeline == "uld"]
    new = [study.artifacts[key] for key in set(study.artifacts) - set(before.artifacts)]
    assert [(plan.kind, plan.name) for plan in new] == [("tokenizer", "other")]
    for run in runs:
        assert run.inputs["logits"].key in before.artifacts
        assert run.inputs["tokenizer"].name == "other"
        assert run.inputs["teacher_tokenizer"].name == "demo"
        assert run.recipe["loss"]["divergence"] == run.loss.divergence == "uld"
        assert run.loss.alpha == values["loss"]["alpha"]
    for run in before.runs.values():
        assert "teacher_tokenizer" not in run.inputs


def with_routes(values, pipeline="kd", **changes):
    edit(values, "datasets.more", {**values["datasets"]["problems"], "seed": 9, "labelled": 300})
    edit(values, "teachers.second", {**values["teachers"]["demo"], "demo": {"seed": 5}})
    routes = {"problems": "demo", "more": "second"}
    block = {"pipeline": pipeline, "students": ["tiny"], "routes": routes, "seeds": [1], **changes}
    values["grid"].append(block)
    return values


def test_a_routed_run_reads_each_dataset_s_own_teacher(values):
    before = study_of(values)
    study = study_of(with_routes(values, "synthetic_sft"))
    (run,) = [run for run in study.runs.values() if len(run.lessons) > 1]
    assert run.name.startswith("synthetic_sft-tiny-problems-more-s1-")
    assert run.inputs["corpus"].key in before.artifacts
    assert run.inputs["corpus_2"].inputs["sequences"] is run.inputs["dataset_2"]
    assert run.inputs["corpus_2"].name == "second"
    assert (run.dataset, run.taught_by) == ("problems+more", "demo on problems + second on more")
    assert run.scores.name == "demo"
    assert set(study.datasets) == {"problems", "more"}
    edit(values, "pipelines.both", {"data": "corpus", "logits": True})
    values["grid"][-1]["pipeline"] = "both"
    (run,) = [run for run in study_of(values).runs.values() if len(run.lessons) > 1]
    assert run.inputs["logits_2"].inputs["sequences"] is run.inputs["corpus_2"]
    assert run.inputs["logits"].inputs["sequences"] is run.inputs["corpus"]
    values["grid"][-1]["routes"] = {"more": "second", "problems": "demo"}
    (turned,) = [run for run in study_of(values).runs.values() if len(run.lessons) > 1]
    assert turned.key != run.key  # another one is scored on


def test_a_routed_run_reads_of_each_artifact_what_its_lesson_has(values):
    study = study_of(with_routes(values))
    (run,) = [run for run in study.runs.values() if len(run.lessons) > 1]
    shares = {plan.key: share for plan, share in run.shares_of([0.75, 0.25])}
    for role, share in (("dataset", 0.75), ("dataset_2", 0.25), ("tokenizer", 1.0)):
        assert shares[run.inputs[role].key] == share
    for role, share in (("logits", 0.75), ("logits_2", 0.25)):
        assert shares[run.inputs[role].key] == share
        assert shares[run.inputs[role].inputs["teacher"].key] == share
    assert {plan.key for plan, _ in run.shares_of([0.5, 0.5])} == {p.key for p in run.upstream()}
    (mixed, *_) = study.runs.values()
    assert {share for _, share in mixed.shares_of([1.0])} == {1.0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": ["problems"]}, "with datasets, or with routes"),
        ({"routes": {}}, "with datasets, or with routes"),
        ({"teacher": "demo"}, "no teacher or teachers beside"),
        ({"routes": {"problems": "demo"}}, "with routes from several datasets"),
        ({"routes": {"problems": "demo", "mroe": "demo"}}, "grid[4].routes: there is no 'mroe'"),
        ({"routes": {"problems": "demo", "more": "dmeo"}}, "grid[4].routes: there is no 'dmeo'"),
        ({"pipeline": "feature"}, "reads hidden states, which one run has of one dataset"),
    ],
)
def test_routes_that_mean_nothing_are_one_clear_line(values, monkeypatch, changes, says):
    monkeypatch.chdir(ROOT)
    edit(values, "states", {"last": {"layers": 1}})
    edit(values, "pipelines.feature", {"data": "dataset", "features": "last"})
    assert says in problems(with_routes(values, **changes))


def test_a_pipeline_s_own_loss_is_checked_where_it_stands(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    edit(values, "pipelines.kd.loss", {"divergence": "ULD", "temprature": 1.0})
    message = problems(values)
    assert "pipelines.kd.loss.divergence must be 'forward_kl', 'reverse_kl'" in message
    assert (
        "pipelines.kd.loss.temprature is not a known key (did you mean 'temperature'?)" in message
    )
    edit(values, "pipelines.kd.loss", {"temperature": 3.0})
    assert "loss.temperature 3.0 is not one that the logit cache keeps" in problems(values)


def test_what_vllm_cannot_give_is_refused_before_any_job(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    edit(values, "capture.backend", "vllm")
    assert "capture must be with temperatures [1.0] where backend is vllm" in problems(values)
    edit(values, "capture.temperatures", [1.0])
    message = problems(values)
    assert "loss.temperature 2.0 cannot be had from a cache that vLLM makes" in message
    assert "grid[3].temperature 4.0 cannot be had from a cache that vLLM makes" in message


def test_a_capture_over_more_gpus_than_its_job_has_is_refused(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    edit(values, "capture", {"backend": "vllm", "temperatures": [1.0], "tensor_parallel": 4})
    edit(values, "hardware", {"rules": {"capture_logits": {"gpus": 2}}})
    assert "capture.tensor_parallel is 4, a job of capture_logits has 2 GPUs" in problems(values)
    edit(values, "hardware.rules.capture_logits.gpus", 4)
    assert "tensor_parallel" not in problems(values)


def test_a_store_that_cannot_be_written_is_said_before_any_job(values, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "store.root: " in problems(values)
    assert "is not writable" in problems(values)


def test_every_problem_is_named_at_once(values):
    edit(values, "loss.alpha", 2)
    edit(values, "capture.codec.top_k", 0)
    assert len(problems(values).splitlines()) == 3


def test_generated_files_have_not_drifted():
    for name, text in contents().items():
        assert (ROOT / name).read_text() == text, f"{name} has drifted: run `make schemas`"


# -- the study -----------------------------------------------------------------------------------


def study_of(values, **edits):
    values = copy.deepcopy(values)
    for path, value in edits.items():
        edit(values, path.replace("__", "."), value)
    return plan_study(load_config(values))


def test_the_default_grid(values):
    study = study_of(values)
    kinds = sorted(plan.kind for plan in study.artifacts.values())
    assert kinds == ["corpus", "dataset", "logits", "model", "scores", "tokenizer"]
    assert len(study.runs) == 3 * 2 * 3 + 2 * 3
    caches = {run.inputs["logits"].key for run in study.runs.values() if "logits" in run.inputs}
    assert len(caches) == 1, "the temperature sweep must reuse one cache"


def test_a_hyperparameter_touches_its_own_runs_and_no_artifact(values):
    before, after = study_of(values), study_of(values, grid__1__alpha=[0.3])
    assert before.artifacts == after.artifacts
    changed = set(before.runs) - set(after.runs)
    assert {before.runs[name].pipeline for name in changed} == {"kd"}
    assert len(changed) == 6


def test_teacher_settings_reach_only_what_reads_them(values):
    before, after = study_of(values), study_of(values, generation__seed=5)
    assert {before.artifacts[key].kind for key in set(before.artifacts) - set(after.artifacts)} == {
        "corpus"
    }
    gone = set(before.runs) - set(after.runs)
    assert {before.runs[name].pipeline for name in gone} == {"synthetic_sft"}


def test_an_unrelated_key_changes_no_recipe(values):
    before, after = study_of(values), study_of(values, carbon={"pue": 1.2})
    assert (set(before.artifacts), set(before.runs)) == (set(after.artifacts), set(after.runs))


def test_parts_cover_every_row(values):
    study = study_of(values, hardware={"part_rows": 1000})
    parts = {plan.kind: plan.parts for plan in study.artifacts.values()}
    assert parts["corpus"] == 5  # 500 + 4000 prompts
    assert parts["logits"] == 1  # 500 labelled problems


def test_a_distilled_run_stands_on_its_teacher_and_a_baseline_does_not(values):
    kinds = {}
    for run in study_of(values).runs.values():
        kinds.setdefault(run.pipeline, sorted(plan.kind for plan in run.billed()))
    assert kinds == {
        "sft": ["dataset", "tokenizer"],
        "kd": ["dataset", "logits", "model", "scores", "tokenizer"],
        "synthetic_sft": ["corpus", "dataset", "model", "scores", "tokenizer"],
    }


STATES = {
    "blocks": {"layers": 2, "format": "int8"},
    "sequences": {"positions": "mean_of_tokens"},
}


def with_states(values):
    """The default with a pipeline that reads all that a teacher can give."""
    values = copy.deepcopy(values)
    values["states"] = copy.deepcopy(STATES)
    values["pipelines"]["all"] = {
        "data": "corpus",
        "logits": True,
        "features": "blocks",
        "relations": "sequences",
    }
    values["grid"].append({**values["grid"][1], "pipeline": "all", "seeds": [1, 2]})
    return values


def test_a_run_that_reads_everything_is_billed_for_it_and_its_siblings_share(values):
    values = with_states(values)
    study = study_of(values)
    runs = [run for run in study.runs.values() if run.pipeline == "all"]
    assert len(runs) == 4
    for run in runs:
        kinds = sorted(plan.kind for plan in run.billed())
        assert kinds == [
            *("corpus", "dataset", "logits", "model", "scores", "states", "states", "tokenizer")
        ]
        assert run.distilled
        assert run.inputs["features"].inputs["sequences"] is run.inputs["corpus"]
    assert len({run.inputs[role].key for run in runs for role in ("features", "relations")}) == 2


def test_further_terms_change_no_run_that_does_not_read_them(values):
    before = set(study_of(values).runs)
    changed = {"temperature": 2.0, "alpha": 0.2, "feature": {"weight": 3}, "relation": {"angle": 5}}
    after = study_of(with_states(values), loss=changed).runs
    assert before < set(after)
    again = study_of(with_states(values), loss=changed | {"relation": {"angle": 6}}).runs
    gone = [after[name].pipeline for name in set(after) - set(again)]
    assert gone == ["all"] * 4


def test_a_limit_is_no_part_of_what_states_are(values):
    values = with_states(values)
    limited = study_of(values, states__blocks__limit_gb=1.0)
    assert set(limited.artifacts) == set(study_of(values).artifacts)
    smaller = study_of(values, states__blocks__format="float16")
    kinds = {limited.artifacts[key].kind for key in set(limited.artifacts) - set(smaller.artifacts)}
    assert kinds == {"states"}


def test_states_that_cannot_serve_are_refused_before_any_job(values, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = with_states(values)
    load_config(values)
    wrong = copy.deepcopy(values)
    edit(wrong, "pipelines.all.relations", "blocks")
    said = "pipelines.all.relations: relations are between sequences, but states.blocks has"
    assert said in problems(wrong)
    wrong = copy.deepcopy(values)
    edit(wrong, "states.blocks.layers", [2, 5])
    assert "states.blocks.layers asks for 5, teacher 'demo' has 4 blocks" in problems(wrong)
    wrong = copy.deepcopy(values)
    edit(wrong, "states.blocks.layers", [2, 4])
    edit(wrong, "loss.feature", {"layers": {2: 3}})
    message = problems(wrong)
    assert "loss.feature.layers names no layer of the student for [4] of states.blocks" in message
    assert "loss.feature.layers names layer 3, student 'tiny' has 2 blocks" in message
    wrong = copy.deepcopy(values)
    edit(wrong, "states.sequences.limit_gb", 0.0011)
    message = problems(wrong)
    assert "states.sequences: 4,500 sequences of 'problems' take 0.0012 GB, limit_gb is" in message
    assert "use format int8, or raise limit_gb" in message
    wrong = copy.deepcopy(values)
    edit(wrong, "tokenizers.same", {**wrong["tokenizers"]["demo"], "vocab_size": 512})
    edit(wrong, "students.tiny.tokenizer", "same")
    edit(wrong, "pipelines.all.logits", False)
    wrong["grid"] = wrong["grid"][-1:]
    assert "student 'tiny' reads with tokenizer 'same'" in problems(wrong)


def test_a_local_model_is_known_by_its_content(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = []
    for content in ("one", "two", "two"):
        folder = tmp_path / f"model-{len(keys)}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(content)
        study = study_of(values, teachers={"demo": {"model": str(folder)}})
        keys.append(next(key for key, plan in study.artifacts.items() if plan.kind == "logits"))
    assert keys[0] != keys[1]
    assert keys[1] == keys[2]
