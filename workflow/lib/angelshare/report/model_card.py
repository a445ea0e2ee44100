"""The card of a student's folder: where it comes from, what it scores, what it cost.

Written after the accounting, because a student's share of its teacher's bill is known only then.
The front matter is the hub's own (`huggingface_hub`): base model, data sets, results and
``co2_eq_emissions``, so the folder can be uploaded as it is. Emissions are of the amortised view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from angelshare.accounting.tables import Tables
from angelshare.config import Config
from angelshare.data.settings import HubSource
from angelshare.files import publish_bytes, read_json
from angelshare.gather import score_records
from angelshare.plans import RunPlan, Study
from angelshare.provenance import restricted_of
from angelshare.report.style import VIEW_CAPTIONS, VIEW_TITLES
from angelshare.revisions import is_local
from angelshare.teacher.settings import PretrainedTeacher

SOURCES = {
    "lm-evaluation-harness": "https://github.com/EleutherAI/lm-evaluation-harness",
    "lighteval": "https://github.com/huggingface/lighteval",
    "alpaca_eval": "https://github.com/tatsu-lab/alpaca_eval",
    "MT-Bench-101": "https://github.com/mtbench101/mt-bench-101",
}
"""Where the programs and benchmarks that score are, by a word in ``harness``."""
SOURCE = "Angelshare: the run's own stages and its share of the teacher artifacts that it read"


def write_cards(tables: Tables, config: Config, study: Study, hardware: str) -> list[Path]:
    """Write ``README.md`` into the model folder of every run that still has one; their paths.

    ``hardware`` names the device that the students were trained on.
    """
    costs = {row["run"]: row for row in tables.runs.iter_rows(named=True)}
    written = []
    for run in study.runs.values():
        folder = Path(config.results, "students", run.name)
        if not (folder / "model").is_dir() or run.name not in costs:
            continue
        text = card(
            run,
            config,
            costs[run.name],
            read_json(folder / "training.json"),
            score_records(config, run),
            hardware,
        )
        publish_bytes(folder / "model/README.md", text.encode())
        written.append(folder / "model/README.md")
    return written


def card(
    run: RunPlan,
    config: Config,
    cost: Mapping[str, Any],
    training: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    hardware: str,
) -> str:
    """The card as text.

    Args:
        cost: the run's row of ``runs.parquet``: joules and grams of CO2e under the three views.
        training: its ``training.json``.
        scores: its scores, as engines and judges gave them.
    """
    data = metadata(run, config, cost, scores, hardware)
    restrictions = restricted_of(config, run)
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {run.name}\n",
        f"A student of the pipeline `{run.pipeline}`, trained and metered by Angelshare.\n",
        "## Lineage\n",
        _table(("what", "which"), _lineage(run, config, training)),
        "## Scores\n",
        _table(
            ("benchmark", "metric", "score", "standard error", "problems"),
            [_score_row(score) for score in scores],
        ),
        f"Validation cross-entropy {training['cross_entropy']:.4f} nats per token, best at step "
        f"{training['best_step']} of {training['steps']}.\n",
        "## Energy and emissions\n",
        _table(("view", "energy", "CO2e", "what it counts"), _views(cost)),
    ]
    if restrictions:
        parts.append(
            f"**Licence**: outputs of {', '.join(restrictions)} restrict what this model may be "
            "used for.\n"
        )
    return "\n".join(parts)


def metadata(
    run: RunPlan,
    config: Config,
    cost: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    hardware: str,
) -> ModelCardData:
    """The front matter, in the hub's own terms."""
    sources = [config.datasets[lesson.dataset] for lesson in run.lessons]
    emissions: dict[str, Any] = {"source": SOURCE, "training_type": "fine-tuning"}
    if cost["amortized_co2e_g"] is not None:
        emissions["emissions"] = round(cost["amortized_co2e_g"], 6)
    if config.carbon.country_iso:
        emissions["geographical_location"] = config.carbon.country_iso
    emissions["hardware_used"] = hardware
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["angelshare", "distillation", run.pipeline],
        base_model=_base_model(run, config),
        datasets=[one.name for one in sources if isinstance(one, HubSource)] or None,
        model_name=run.name,
        co2_eq_emissions=emissions,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=score["task"],
                dataset_name=score["task"],
                metric_type=score["metric"],
                metric_value=score["value"],
                metric_name=_how(score),
                source_name=score["harness"],
                source_url=next(
                    (url for name, url in SOURCES.items() if name in score["harness"]), None
                ),
            )
            for score in scores
        ],
    )


def hardware_of(machine: Mapping[str, Any]) -> str:
    """The GPUs of a machine, or its processor where it has none, from the prerun's record."""
    named = [(d["component"], d["device"]) for d in machine["devices"] if d["device"]]
    gpus = [device for component, device in named if component.startswith("gpu")]
    return ", ".join(dict.fromkeys(gpus or [device for _, device in named])) or "unknown"


def _base_model(run: RunPlan, config: Config) -> str | None:
    """The hub's name of the model that the weights come from; None for what the hub has not."""
    model = getattr(config.students[run.student].init, "model", None)
    return None if model is None or is_local(model) else str(model)


def _lineage(run: RunPlan, config: Config, training: Mapping[str, Any]) -> list[tuple[str, ...]]:
    init = config.students[run.student].init
    model = getattr(init, "model", None)
    start = f"{model} at {getattr(init, 'revision', None) or 'its content'}" if model else "random"
    kept = getattr(init, "keep_layers", None)
    rows: list[tuple[str, ...]] = [("first weights", start + (f", layers {kept}" if kept else ""))]
    if (lora := config.students[run.student].lora) is not None:
        rows.append(("trained", f"a low-rank update, rank {lora.rank}, merged into the weights"))
    for named, weight in run.teachers.items() if run.distilled else ():
        teacher = config.teachers[named]
        if isinstance(teacher, PretrainedTeacher):
            named = f"{teacher.model} at {teacher.revision or 'its content'}"
        rows.append(("teacher", named if weight == 1 else f"{named}, weight {weight:g}"))
    rows += [(f"{plan.kind}: {plan.label}", f"`{plan.key}`") for plan in run.upstream()]
    rows += [(name, f"{value:g}") for name, value in run.hyperparameters.items()]
    rows += [
        ("seed", str(run.seed)),
        ("run's recipe", f"`{run.key}`"),
        ("parameters", f"{training['parameters']:,}"),
        ("trained tokens", f"{training['trained_tokens']:,}"),
    ]
    return rows


def _how(score: Mapping[str, Any]) -> str:
    """A metric with what its value hangs on: the examples before a question, or the judge."""
    judge = score.get("judge")
    said = f"judged by {judge['model']}" if judge else f"{score['few_shot']}-shot"
    return f"{score['metric']} ({said})"


def _score_row(score: Mapping[str, Any]) -> tuple[str, ...]:
    error = "–" if score["stderr"] is None else f"{score['stderr']:.4f}"
    return (
        f"{score['task']} (version {score['task_version']})",
        _how(score),
        f"{score['value']:.4f}",
        error,
        str(score["samples"]),
    )


def _views(cost: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for view in VIEW_TITLES:
        energy = f"{cost[f'{view}_j']:,.1f} J"
        low, high = cost[f"{view}_low_j"], cost[f"{view}_high_j"]
        if low is not None and high is not None:
            energy += f" ({low:,.1f} to {high:,.1f})"
        grams = cost["co2e_g"] if view == "one_off" else cost[f"{view}_co2e_g"]
        co2e = "–" if grams is None else f"{grams:,.4g} g"
        rows.append((VIEW_TITLES[view], energy, co2e, VIEW_CAPTIONS[view]))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
