"""lighteval as a second engine: what is asked of it, what is read of it, and its own command."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from angelshare.data.tokenizer import train_tokenizer
from angelshare.energy.probes.process_tree import ProcessTree
from angelshare.errors import AngelshareError
from angelshare.evaluation.engines import evaluate_model, refuse_unready
from angelshare.evaluation.lighteval_results import Results
from angelshare.evaluation.scores import Score, counted
from angelshare.evaluation.settings import EvaluationSettings, TaskSettings
from angelshare.student.models import make_student, publish_model
from angelshare.student.settings import ScratchStudent

ROWS = Path(__file__).resolve().parents[2] / "data/benchmarks"
ROOM = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model."""
    torch.set_num_threads(1)
    texts = [line for path in ROWS.glob("*.jsonl") for line in path.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, 300, ROOM)
    shape = ScratchStudent(hidden_size=64, layers=1, heads=2, intermediate_size=64)
    folder = tmp_path_factory.mktemp("model") / "random"
    publish_model(make_student(shape, tokenizer, ROOM, seed=0), tokenizer, folder)
    return folder


END = 2
"""The token that ends an answer; it pads too."""


def row(task: str, number: int, **reply: Any) -> dict[str, Any]:
    """Details of a problem that was answered with text: a prompt of three tokens and one of
    padding, an answer of two and padding."""
    doc = {"query": "Why?", "choices": ["so"], "gold_index": 0, "id": str(number)}
    tokens = {"input_tokens": [END, 1, 3, 3], "output_tokens": [[4, END, END]]}
    return {
        "doc": {**doc, "task_name": task, "generation_size": 8},
        "metric": {"acc": 1.0},
        "model_response": {**tokens, "text": ["x"], "padded_tokens_count": 1, **reply},
    }


CHOICES = {
    "input_tokens": [1, 1, 1, -1],
    "output_tokens": [[4, 5], [6, -1]],
    "text": [],
    "padded_tokens_count": 0,
}


def config(**more: Any) -> dict[str, Any]:
    metrics = [{"metric_name": "acc", "higher_is_better": True}]
    return {"version": 2, "num_fewshots": 1, "metrics": metrics, **more}


GROUP = Results(
    metrics={
        "pair:a|1": {"acc": 0.2, "acc_stderr": 0.03},
        "pair:b|1": {"acc": 0.6, "acc_stderr": 0.04},
        "pair:_average|1": {"acc": 0.4, "acc_stderr": 0.035},
        "all": {"acc": 0.4},
    },
    configs={"pair:a|1": config(), "pair:b|1": config(version=3)},
    details={
        "pair:a|1": [row("pair:a|1", 0), row("pair:a|1", 1)],
        "pair:b|1": [row("pair:b|1", 0, **CHOICES)],
    },
)


def test_a_group_is_the_mean_of_its_tasks_with_the_error_of_such_a_mean() -> None:
    task = TaskSettings(task="pair", few_shot=1)
    (value, stderr) = GROUP.values(task)["acc"]
    assert value == pytest.approx(0.4)
    assert stderr == pytest.approx(math.sqrt(0.03**2 + 0.04**2) / 2)
    assert len(GROUP.rows(task)) == 3
    assert GROUP.subtasks(TaskSettings(task="pair:a", few_shot=1)) == ["pair:a|1"]
    with pytest.raises(AngelshareError, match=r"no results of pair\|0"):
        GROUP.subtasks(TaskSettings(task="pair"))


def test_a_metric_that_one_task_lacks_is_none_of_the_group_s() -> None:
    """lighteval writes 0 for it, into the group and into the task."""
    other = {**row("pair:b|1", 0), "metric": {"em": 1.0}}
    mixed = Results(
        {**GROUP.metrics, "pair:b|1": {"em": 1.0, "acc": 0.0, "acc_stderr": 0.0}},
        {
            **GROUP.configs,
            "pair:b|1": config(metrics=[{"metric_name": "em", "higher_is_better": True}]),
        },
        {**GROUP.details, "pair:b|1": [other]},
    )
    assert mixed.values(TaskSettings(task="pair:b", few_shot=1)) == {"em": (1.0, None)}
    with pytest.raises(AngelshareError, match="share no metric: name its tasks"):
        mixed.values(TaskSettings(task="pair", few_shot=1))
    assert mixed.values(TaskSettings(task="pair:a", few_shot=1))["acc"] == (0.2, 0.03)


def test_tokens_are_counted_as_the_harness_counts_them() -> None:
    # Two answers of two tokens to prompts of three; choices of two and one behind such a prompt.
    assert GROUP.tokens(TaskSettings(task="pair", few_shot=1), END) == {
        "samples": 3,
        "prompt": 6,
        "generated": 4,
        "evaluated": 2 * (3 + 2) + (3 + 2) + (3 + 1),
    }


def settings_of(*tasks: Any, **more: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"tasks": list(tasks), **more})


def test_which_engine_asks_is_part_of_what_decides_a_score() -> None:
    usual = settings_of("word_problems", "gsm8k")
    assert "engine" not in usual.identity()["tasks"][0], "as before there was a second engine"
    said = settings_of("word_problems", {"task": "gsm8k", "engine": "transformers"})
    assert said.identity() == usual.identity()
    mixed = settings_of("word_problems", {"task": "gsm8k", "engine": "lighteval"})
    assert mixed.identity() != usual.identity()
    assert mixed.engines == ["transformers", "lighteval"]
    assert mixed.harness_tasks == []
    assert [task.task for task in mixed.for_engine("lighteval").tasks] == ["gsm8k"]


@pytest.mark.parametrize(
    ("tasks", "more", "says"),
    [
        (["word_problems"], {"engine": "lighteval"}, "lighteval for word_problems"),
        (
            [{"task": "gsm8k", "engine": "lighteval", "max_gen_toks": 9}],
            {},
            "would cut its prompts",
        ),
        ([{"task": "a", "engine": "vllm"}, "b"], {}, "both transformers and vllm"),
    ],
)
def test_what_no_engine_can_do_is_refused(tasks, more, says) -> None:
    with pytest.raises(ValidationError, match=says):
        settings_of(*tasks, **more)


STAND_IN = '''#!{python}
"""Answers as lighteval's interpreter does, from what a test put beside it."""
import json, os, shutil, sys, time
from pathlib import Path

here = Path(__file__).parent
if sys.argv[1] == "-c":
    if "Registry" in sys.argv[2] and "nonsense" in sys.argv[3]:
        sys.exit("ValueError: Cannot find task nonsense in task list")
    print("0.13.0")
    sys.exit()
assert "PYTHONPATH" not in os.environ
with (here / "asked.jsonl").open("a") as stream:
    given = json.loads(Path(sys.argv[4]).read_text())["model_parameters"]
    print(json.dumps([sys.argv[4:], given, sorted(os.listdir("model"))]), file=stream)
if (here / "fails").exists():
    print("│ a frame of a traceback")
    sys.exit("ConnectionError: no data")
if (here / "hangs").exists():
    (here / "pid").write_text(str(os.getpid()))
    time.sleep(60)
ends = time.process_time() + 0.3
while time.process_time() < ends:
    pass
shutil.copytree(here / "out", "out")
'''


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An interpreter that behaves like that of lighteval's environment, and `GROUP` as results."""
    folder = tmp_path / "stand_in"
    results = folder / "out/results/model"
    results.mkdir(parents=True)
    report = {"results": GROUP.metrics, "config_tasks": GROUP.configs}
    (results / "results_2026.json").write_text(json.dumps(report))
    details = folder / "out/details/model/2026"
    details.mkdir(parents=True)
    for name, rows in GROUP.details.items():
        pq.write_table(pa.Table.from_pylist(list(rows)), details / f"details_{name}_2026.parquet")
    python = folder / "python"
    python.write_text(STAND_IN.replace("{python}", sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def scored(model: Path, python: Path, *tasks: Any, **more: Any) -> tuple[list[Score], Counter]:
    counts: Counter[str] = Counter()
    settings = settings_of(
        *tasks, engine="lighteval", lighteval_python=str(python), batch_size=3, **more
    )
    scores = evaluate_model(
        model, settings, None, lambda *_: None, lambda **tokens: counts.update(tokens)
    )
    return scores, counts


def asked_of(python: Path) -> list[Any]:
    return [json.loads(line) for line in (python.parent / "asked.jsonl").read_text().splitlines()]


def test_a_child_asks_what_the_settings_say(model: Path, stand_in: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "lighteval_tasks.py").write_text("TASKS_TABLE = []")
    tree = ProcessTree(os.getpid())
    before_s, _ = tree.sample()
    scores, counts = scored(
        model,
        stand_in,
        {"task": "pair", "few_shot": 1},
        {"task": "pair:a", "few_shot": 1, "limit": 2, "chat_template": False},
        task_folder=str(tasks),
    )
    assert tree.sample()[0] - before_s > 2 * 0.3, "what the children used is the job's"
    (first, given, files), (second, *_) = asked_of(stand_in)
    assert first[1:4] == ["pair|1", "--output-dir", "out"]
    assert first[first.index("--custom-tasks") + 1] == str(tasks / "lighteval_tasks.py")
    assert "--max-samples" not in first
    assert second[second.index("--max-samples") + 1] == "2"
    assert (given["model_name"], given["batch_size"]) == ("model", 3)
    assert given["override_chat_template"] is True
    assert "config.json" in files, "its cache is not in the model's folder"
    assert not [name for name in os.listdir(model) if "." not in name]
    assert counts["samples"] == 3 + 2

    group, single = scores
    assert (group.task, group.metric, group.value) == ("pair", "acc", pytest.approx(0.4))
    assert group.harness == "lighteval 0.13.0 (transformers)"
    assert (group.task_version, group.few_shot, group.samples) == ("2, 3", 1, 3)
    assert (group.batch_size, group.limited) == (3, False)
    assert len(group.chat_template_sha256 or "") == 64
    assert (single.limited, single.chat_template_sha256) == (True, None)
    assert single.problems_sha256 != group.problems_sha256
    assert counted([score.to_json() for score in scores], []) == {"pair_acc", "pair_a_acc"}


def test_its_failure_is_told_in_its_own_words(model: Path, stand_in: Path) -> None:
    (stand_in.parent / "fails").touch()
    with pytest.raises(AngelshareError, match=r"failed on pair \(status 1\): Conn.*: no data$"):
        scored(model, stand_in, {"task": "pair", "few_shot": 1})


def test_it_ends_with_the_job(model: Path, stand_in: Path) -> None:
    """Whatever ends the job raises in it, as a signal does."""
    (stand_in.parent / "hangs").touch()
    pid = stand_in.parent / "pid"

    class EndedError(Exception):
        pass

    def end(*_: object) -> None:
        if pid.exists() and pid.read_text():
            raise EndedError
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, end)
    try:
        end()
        with pytest.raises(EndedError):
            scored(model, stand_in, {"task": "pair", "few_shot": 1})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not Path("/proc", pid.read_text()).exists()


def test_a_missing_environment_says_how_to_make_it(model: Path, tmp_path: Path) -> None:
    for python in (tmp_path / "nowhere/python", Path("/bin/false")):
        with pytest.raises(AngelshareError, match=r"no lighteval at .* `make lighteval` lays out"):
            scored(model, python, "gsm8k")
        with pytest.raises(AngelshareError, match=r"evaluation\.lighteval_python"):
            refuse_unready(settings_of("a", engine="lighteval", lighteval_python=str(python)))


def test_a_task_that_it_does_not_have_is_refused_before_any_job(stand_in: Path) -> None:
    given = {"engine": "lighteval", "lighteval_python": str(stand_in)}
    refuse_unready(settings_of("gsm8k", **given))
    with pytest.raises(AngelshareError, match="Cannot find task nonsense"):
        refuse_unready(settings_of("nonsense", **given))


def test_results_that_are_not_whole_are_refused(model: Path, stand_in: Path) -> None:
    (details,) = stand_in.parent.rglob("details_pair:b*.parquet")
    details.unlink()
    with pytest.raises(AngelshareError, match=r"no details of pair:b\|1"):
        scored(model, stand_in, {"task": "pair", "few_shot": 1})
    (results,) = stand_in.parent.rglob("results_*.json")
    results.write_text("{}")
    with pytest.raises(AngelshareError, match="not as expected"):
        scored(model, stand_in, {"task": "pair", "few_shot": 1})
    results.unlink()
    with pytest.raises(AngelshareError, match="left 0 results files"):
        scored(model, stand_in, {"task": "pair", "few_shot": 1})


def test_a_prompt_that_leaves_no_room_is_refused(model: Path, stand_in: Path) -> None:
    (details,) = stand_in.parent.rglob("details_pair:a*.parquet")
    said = rf"pair: a prompt has {ROOM - 5} tokens, and a model of {ROOM} has room for {ROOM - 8} "
    for reply in ({}, {**CHOICES, "output_tokens": [[4] * 8]}):
        long = row("pair:a|1", 0, **{**reply, "input_tokens": [1] * (ROOM - 5)})
        long["model_response"]["padded_tokens_count"] = 0
        pq.write_table(pa.Table.from_pylist([long]), details)
        with pytest.raises(AngelshareError, match=said):
            scored(model, stand_in, {"task": "pair", "few_shot": 1})


def test_a_metric_that_is_not_there_is_refused(model: Path, stand_in: Path) -> None:
    with pytest.raises(AngelshareError, match=r"pair has no em; its metrics .* are acc \(none\)"):
        scored(model, stand_in, {"task": "pair", "few_shot": 1, "metric": "em"})


# -- the real one ---------------------------------------------------------------------------------

PYTHON = Path(os.environ.get("ANGELSHARE_LIGHTEVAL", ".lighteval/bin/python")).absolute()
real = pytest.mark.skipif(
    not PYTHON.exists(), reason="no lighteval: `make lighteval`, or ANGELSHARE_LIGHTEVAL=PYTHON"
)
TASKS = """
from pathlib import Path

from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def arc(line, task_name=None):
    answers = line["choices"]
    return Doc(
        task_name=task_name,
        query=f"Question: {line['question']}\\nAnswer:",
        choices=[f" {text}" for text in answers["text"]],
        gold_index=answers["label"].index(line["answerKey"]),
    )


def gsm8k(line, task_name=None):
    asked = f"Question: {line['question']}\\nAnswer:"
    return Doc(task_name=task_name, query=asked, choices=[line["answer"]], gold_index=0)


def task(name, rows, prompt, metric, **more):
    return LightevalTaskConfig(
        name=name,
        prompt_function=prompt,
        hf_repo=str(Path(__file__).parent / rows),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        few_shots_split="test",
        metrics=[metric],
        version=3,
        **more,
    )


written = {"generation_size": 8, "stop_sequence": ["\\n"]}
TASKS_TABLE = [
    task("made_arc", "arc", arc, Metrics.loglikelihood_acc),
    task("made_gsm8k", "gsm8k", gsm8k, Metrics.exact_match, **written),
    task("made_pair:arc", "arc", arc, Metrics.loglikelihood_acc),
    task("made_pair:again", "arc", arc, Metrics.loglikelihood_acc),
]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder with rows of this project's own."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "lighteval_tasks.py").write_text(TASKS)
    for name in ("arc", "gsm8k"):
        (folder / name).mkdir()
        (folder / name / "test.jsonl").write_bytes((ROWS / f"{name}.jsonl").read_bytes())
    return folder


ASKED = (
    {"task": "made_arc", "chat_template": False},
    {"task": "made_gsm8k", "few_shot": 1, "chat_template": False},
    {"task": "made_pair", "chat_template": False},
)


@real
def test_lighteval_s_own_command_gives_the_same_scores(
    model: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    settings = {"task_folder": str(tasks)}
    refuse_unready(
        settings_of(*ASKED, engine="lighteval", lighteval_python=str(PYTHON), **settings)
    )
    before = sorted(os.listdir(model))
    scores, counts = scored(model, PYTHON, *ASKED, **settings)
    assert sorted(os.listdir(model)) == before
    assert counts["samples"] == 3 + 4 + 2 * 3
    assert 0 < counts["generated"] <= 4 * 8
    command = [
        *(str(PYTHON), "-m", "lighteval", "accelerate"),
        f"model_name={model},batch_size=3,override_chat_template=False,cache_dir={tmp_path}/cache",
        "made_arc|0,made_gsm8k|1,made_pair|0",
        *("--custom-tasks", str(tasks / "lighteval_tasks.py"), "--output-dir", str(tmp_path)),
    ]
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(report.read_text())["results"]
    names = {
        "made_arc": "made_arc|0",
        "made_gsm8k": "made_gsm8k|1",
        "made_pair": "made_pair:_average|0",
    }
    assert {score.task for score in scores} == set(names)
    for score in scores:
        assert score.value == theirs[names[score.task]][score.metric]
        assert score.task_version == "3"
        if score.task != "made_pair":
            stderr = theirs[names[score.task]][f"{score.metric}_stderr"]
            assert score.stderr == pytest.approx(stderr)


@real
def test_the_chat_template_is_the_model_s(model: Path, tasks: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    task = {"task": "made_gsm8k", "limit": 2}
    (plain,), few = scored(model, PYTHON, {**task, "chat_template": False}, task_folder=str(tasks))
    (chat,), more = scored(model, PYTHON, task, task_folder=str(tasks))
    assert more["prompt"] > few["prompt"], "the template's own tokens"
    assert plain.problems_sha256 == chat.problems_sha256
    assert chat.limited
    assert chat.samples == 2


@real
def test_a_task_of_lighteval_that_is_not_there(tasks: Path) -> None:
    given = {"engine": "lighteval", "lighteval_python": str(PYTHON), "task_folder": str(tasks)}
    with pytest.raises(AngelshareError, match=r"lighteval says: .*Cannot find task made_nothing"):
        refuse_unready(settings_of("made_nothing", **given))
