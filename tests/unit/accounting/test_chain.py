"""A student that teaches: its plan, its bill, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import sidecar

from angelshare.accounting.attempts import Record, attempt_frames
from angelshare.accounting.settings import AccountingSettings
from angelshare.accounting.study import Artifact, AttemptSource, Run
from angelshare.accounting.study import Study as Ledger
from angelshare.accounting.tables import make_tables
from angelshare.config import load_config
from angelshare.errors import AngelshareError
from angelshare.gather import charged
from angelshare.grid import plan_study
from angelshare.planning.records import History
from angelshare.planning.work import WorkList
from angelshare.plans import ArtifactPlan, RunPlan, Study

ROOT = Path(__file__).resolve().parents[3]
Values = dict[str, Any]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def values() -> Values:
    return dict(yaml.safe_load((ROOT / "config/grids/chain.yaml").read_text()))


def study(values: Values) -> Study:
    return plan_study(load_config(values))


def with_assistant(values: Values, **changes: Any) -> Values:
    changed = copy.deepcopy(values)
    changed["teachers"]["assistant"].update(changes)
    return changed


def taught(planned: Study, teacher: str, student: str = "tiny") -> RunPlan:
    """The first run of the pipeline kd that learns from ``teacher``."""
    found = (r for r in planned.runs.values() if (r.pipeline, r.student) == ("kd", student))
    return next(run for run in found if run.taught_by == teacher)


def of_kind(plans: list[ArtifactPlan], kind: str) -> list[str]:
    return [plan.name for plan in plans if plan.kind == kind]


def test_all_ancestors_are_on_the_bill_of_a_chain(values: Values) -> None:
    planned = study(values)
    billed = taught(planned, "assistant").billed()
    assert of_kind(billed, "model") == ["demo", "assistant"]
    assert of_kind(billed, "logits") == ["demo", "assistant"]
    assert of_kind(billed, "scores") == ["demo"]
    assert [(plan.name, charged(plan)) for plan in billed if plan.kind == "model"] == [
        ("demo", False),
        ("assistant", True),
    ]
    baseline = next(run for run in planned.runs.values() if run.pipeline == "sft")
    assert not of_kind(baseline.billed(), "model")


def test_an_assistant_is_made_as_the_equivalent_run_of_the_grid(values: Values) -> None:
    planned = study(values)
    (key,) = planned.assistants
    model, run = planned.artifacts[key], planned.assistants[key]
    twin = taught(planned, "demo", student="small")
    assert run.recipe == twin.recipe
    assert model.recipe["student"] == twin.recipe
    assert model.inputs == twin.inputs
    assert model.work.stage == "assistant_train"
    demo = next(p for p in planned.artifacts.values() if p.kind == "model" and p.key != key)
    assert demo.work.stage == "demo_teacher"


def test_self_distillation_is_an_assistant_of_the_students_own_shape(values: Values) -> None:
    """Born-again: the teacher is a plain student of the same shape and data."""
    values["teachers"] = {
        "demo": values["teachers"]["demo"],
        "twin": {"pipeline": "sft", "student": "small", "dataset": "problems", "seed": 1},
    }
    values["grid"] = [
        {"pipeline": "kd", "students": ["small"], "datasets": ["problems"], "teacher": "twin"}
        | {"seeds": [2]}
    ]
    planned = study(values)
    (run,) = planned.runs.values()
    (teacher,) = planned.assistants.values()
    assert teacher.recipe["init"] == run.recipe["init"]
    assert run.scores is not None
    assert run.scores.name == "twin", "no other teacher stands behind it"
    assert of_kind(run.billed(), "model") == ["twin"]


def test_quality_is_relative_to_the_first_of_the_chain(values: Values) -> None:
    values["teachers"]["second"] = dict(values["teachers"]["assistant"], teacher="assistant")
    values["grid"][2]["teacher"] = "second"
    planned = study(values)
    names = {run.scores.name for run in planned.runs.values() if run.scores}
    assert names == {"demo"}
    run = taught(planned, "second")
    assert of_kind(run.billed(), "model") == ["demo", "assistant", "second"]


def test_what_decides_an_assistant_reaches_its_students_alone(values: Values) -> None:
    before, after = study(values), study(with_assistant(values, temperature=1.0))
    for teacher, same in (
        ("demo", True),
        ("assistant", False),
        ("0.5 demo + 0.5 assistant", False),
    ):
        keys = [taught(one, teacher).key for one in (before, after)]
        assert (keys[0] == keys[1]) is same, teacher
    steps = study(with_assistant(values, training={"max_steps": 30})).assistants
    assert {run.training.max_steps for run in steps.values()} == {30}


def test_both_teachers_of_a_mixture_are_on_the_bill(values: Values) -> None:
    planned = study(values)
    run = taught(planned, "0.5 demo + 0.5 assistant")
    (lesson,) = run.lessons
    assert lesson.teachers == {"demo": 0.5, "assistant": 0.5}
    assert lesson.caches == {"demo": "logits", "assistant": "logits_2"}
    assert {name: run.inputs[role].name for name, role in lesson.caches.items()} == {
        "demo": "demo",
        "assistant": "assistant",
    }
    assert of_kind(run.billed(), "logits") == ["demo", "assistant"]
    assert run.recipe["teachers"] == [0.5, 0.5]
    assert run.scores is not None
    assert run.scores.name == "demo", "the first one's"
    values["grid"][3]["teachers"] = {"assistant": 0.5, "demo": 0.5}
    turned = taught(study(values), "0.5 assistant + 0.5 demo")
    assert turned.key != run.key, "roles are swapped"
    assert turned.scores == run.scores, "the first of the assistant's chain is the same"


def test_answers_of_a_mixture_are_the_first_teachers(values: Values) -> None:
    values["grid"][3]["pipeline"] = "sequence_and_token"
    planned = study(values)
    run = next(run for run in planned.runs.values() if len(run.teachers) == 2)
    assert run.inputs["corpus"].name == "demo"
    assert len(run.lessons[0].caches) == 2
    for role in run.lessons[0].caches.values():
        assert run.inputs[role].inputs["sequences"] == run.inputs["corpus"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teachers": {"demo": 0.5, "assistant": 0.4}}, "whose weights sum to 1"),
        ({"teachers": {"demo": 1.5, "assistant": -0.5}}, "must be greater than 0"),
        ({"teacher": "demo"}, "not both"),
        ({"teachers": {"demo": 0.5, "asistant": 0.5}}, "Did you mean 'assistant'?"),
        ({"pipeline": "sft"}, "name one teacher"),
        ({"teachers": {}}, "grid[3].teacher is missing"),
    ],
)
def test_what_is_no_mixture_is_one_clear_line(
    values: Values, change: dict[str, Any], says: str
) -> None:
    values["grid"][3].update(change)
    with pytest.raises(AngelshareError) as refused:
        load_config(values)
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def test_a_mixture_of_other_tokenizers_is_refused_before_any_pass(values: Values) -> None:
    values["tokenizers"]["large"] = {"dataset": "problems", "vocab_size": 300}
    values["teachers"]["other"] = dict(values["teachers"]["demo"], tokenizer="large")
    values["grid"][3]["teachers"] = {"demo": 0.5, "other": 0.5}
    with pytest.raises(AngelshareError, match=r"teacher 'other' with 'large'.*synthetic corpus"):
        load_config(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student": "smal"}, "teachers.assistant.student: there is no 'smal'"),
        ({"teacher": "dem"}, "teachers.assistant.teacher: there is no 'dem'"),
        ({"pipeline": "kdd"}, "teachers.assistant.pipeline: there is no 'kdd'"),
        ({"dataset": "problem"}, "teachers.assistant.dataset: there is no 'problem'"),
        ({"teacher": None}, "teachers.assistant.teacher is missing"),
        ({"teacher": "assistant"}, "'assistant' learns from 'assistant'"),
        ({"temperature": 3.0}, "teachers.assistant.temperature 3.0 is not one"),
        ({"training": {"max_steps": 0}}, "teachers.assistant.training.max_steps must be"),
        ({"sead": 1}, "teachers.assistant.sead is not a known key"),
    ],
)
def test_what_makes_no_assistant_is_one_clear_line(
    values: Values, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(AngelshareError) as refused:
        load_config(with_assistant(values, **change))
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def test_a_chain_that_bites_its_tail_is_refused(values: Values) -> None:
    values["teachers"]["other"] = dict(values["teachers"]["assistant"], teacher="assistant")
    with pytest.raises(AngelshareError, match="must begin with a teacher") as refused:
        load_config(with_assistant(values, teacher="other"))
    assert "'assistant' learns from 'other' learns from 'assistant'" in str(refused.value)


def test_an_assistant_is_planned_as_a_training(values: Values, tmp_path: Path) -> None:
    config = load_config(values)
    planned = plan_study(config)
    work = WorkList(config, planned, config.store.open(), History({}, {}), {})
    items = {item.rule: item for item in work.items()}
    (made,) = [item for item in work.items() if item.rule == "train_assistant"]
    trained = next(
        item
        for item in work.items()
        if item.run and "kd-small" in item.run and item.action == "train"
    )
    assert made.flops == trained.flops is not None
    assert {plan.work.rule for plan in planned.artifacts.values()} <= items.keys()


def test_a_chains_bill_holds_its_ancestors_and_shares_are_conserved(values: Values) -> None:
    planned = study(values)
    artifacts = [
        Artifact(plan.kind, plan.key, plan.label, 0, 0, charged(plan))
        for plan in planned.artifacts.values()
    ]
    records = [
        (
            AttemptSource(Path(plan.key), None, plan.kind, plan.key),
            sidecar(plan.key, plan.work.stage, 100.0 + number),
        )
        for number, plan in enumerate(planned.artifacts.values())
    ]
    records += [
        (AttemptSource(Path(name), name), sidecar(name, "student_train", 7.0))
        for name in planned.runs
    ]
    ledger = Ledger(
        team="ours",
        runs=tuple(
            Run(
                *(run.name, run.pipeline, run.student, run.dataset, run.seed),
                artifacts=tuple((p.kind, p.key) for p in run.billed()),
                tokens=10,
            )
            for run in planned.runs.values()
        ),
        artifacts=tuple(artifacts),
        sources=tuple(source for source, _ in records),
    )
    attempts, components = attempt_frames(
        [(Record(Path("record.json"), record), source) for source, record in records]
    )
    tables = make_tables(ledger, attempts, components, AccountingSettings(draws=200))
    joules = {row["key"]: row["energy_j"] for row in tables.artifacts.iter_rows(named=True)}
    for row in tables.artifacts.iter_rows(named=True):
        assert row["shared_j"] + row["unallocated_j"] == pytest.approx(row["energy_j"])
    for row in tables.runs.iter_rows(named=True):
        run = planned.runs[row["run"]]
        ancestors = sum(joules[plan.key] for plan in run.billed() if charged(plan))
        assert row["one_off_j"] == pytest.approx(7.0 + ancestors)
    (key,) = planned.assistants
    readers = tables.shares.filter(key=key)["run"].to_list()
    with_it = [run.name for run in planned.runs.values() if "assistant" in run.teachers]
    assert sorted(readers) == sorted(with_it)
    (assistant,) = tables.artifacts.filter(key=key).iter_rows(named=True)
    assert assistant["teacher"]
    assert assistant["shared_j"] == pytest.approx(joules[key])
