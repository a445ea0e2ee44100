"""What work of the same kind has cost so far: this store's and these results' own sidecars.

One observation per job that succeeded and did work, from its declared sidecar: stage, hardware,
model, operations, joules, seconds, and how many tokens a row had. The newest artifacts and runs are
read, a bounded number of each, so that a plan stays quick beside a large store.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from angelshare.files import read_json
from angelshare.planning.devices import EFFICIENCY, PREFILL
from angelshare.planning.models import ModelSize, from_name, from_shape
from angelshare.store.artifacts import ArtifactStore

MOST_ARTIFACTS = 24
"""The newest artifacts of a kind that are read."""
MOST_RUNS = 120
"""The newest runs that are read."""

TEACHER_KINDS = ("model", "logits", "states", "corpus", "scores")
START_KINDS = ("dataset", "tokenizer")
ON_POLICY = "on_policy_train"
"""A training in which the student answers and a teacher in memory reads: the record's stage is that
of any training, but what it costs tells nothing of others."""
COMPUTE = {
    "demo_teacher": "train",
    "assistant_train": "train",
    "student_train": "train",
    ON_POLICY: "train",
    "teacher_logits": "forward",
    "teacher_hidden": "forward",
    "teacher_generation": "decode",
    "teacher_evaluate": "decode",
    "evaluate": "decode",
}
"""What the model does in a stage: train, one forward pass, or decode token by token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A finished job."""

    stage: str
    rule: str
    hardware: str
    energy_j: float
    duration_s: float
    start_utc: str
    model: ModelSize | None = None
    flops: float = 0.0
    dataset: str | None = None
    """The key of the dataset whose rows it went through, with what was read of it."""
    tokens_per_row: float | None = None
    decoded: float = 1.0
    """Share of the tokens that were decoded one by one, where the stage decodes."""


@dataclass(frozen=True, slots=True)
class History:
    """Observations by stage; `starts` are jobs that ran no model, by rule."""

    stages: Mapping[str, tuple[Observation, ...]]
    starts: Mapping[str, tuple[Observation, ...]]

    def hardware(self) -> str | None:
        """The hardware of the latest job that ran a model."""
        every = [one for found in self.stages.values() for one in found]
        return max(every, key=lambda one: one.start_utc).hardware if every else None

    def read(self, stage: str, dataset: str) -> list[Observation]:
        """The jobs of a stage that went through this dataset, where a row's tokens are known."""
        return [
            one
            for one in self.stages.get(stage, ())
            if one.dataset == dataset and one.tokens_per_row
        ]


def read_history(
    store: ArtifactStore, results: Path, models: Mapping[str, ModelSize | None]
) -> History:
    """The history of a store (its layers included) and a results folder.

    `models` are the sizes of the study's own models by `model_id` of what recipes say of them.
    What cannot be read is passed over: a plan is no place to stop at a damaged record.
    """
    stages: dict[str, list[Observation]] = {}
    starts: dict[str, list[Observation]] = {}
    roots = [store, *store.layers]
    for home in roots:
        for one in _artifacts(home, models):
            if one.stage in COMPUTE:
                stages.setdefault(one.stage, []).append(one)
            else:
                starts.setdefault(one.rule, []).append(one)
    for one in _runs(results, store, models):
        stages.setdefault(one.stage, []).append(one)
    return History(
        {stage: tuple(found) for stage, found in stages.items()},
        {rule: tuple(found) for rule, found in starts.items()},
    )


def model_id(recipe_value: Any) -> str:
    """What names a model in `models`: the canonical text of what a recipe says of it."""
    return json.dumps(recipe_value, sort_keys=True)


def hardware_of(components: Iterable[Mapping[str, Any]], cpu_model: str | None) -> str:
    """The GPUs of a record, or the processor where there is none, as accounting names them."""
    models = Counter(
        (part.get("device") or {}).get("model") or "GPU"
        for part in components
        if part.get("kind") == "gpu"
    )
    if models:
        return " + ".join(f"{count} x {model}" for model, count in sorted(models.items()))
    return cpu_model or "processor"


def _newest(folder: Path, count: int) -> list[Path]:
    """The folders in a folder that changed last."""
    try:
        found = [(path.stat().st_mtime_ns, path) for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return [path for _, path in heapq.nlargest(count, found)]


def _artifacts(
    store: ArtifactStore, models: Mapping[str, ModelSize | None]
) -> Iterator[Observation]:
    for kind in (*START_KINDS, *TEACHER_KINDS):
        for folder in _newest(store.root / kind, MOST_ARTIFACTS):
            manifest = _with_recipe(folder / "manifest.json")
            if manifest is None or "on_policy" in manifest["recipe"].get("student", {}):
                continue
            recipe = manifest["recipe"]
            model = _model_of(recipe, store, models)
            for path in sorted((folder / "parts").glob("*.energy.json")):
                record = _json(path)
                receipt = _json(path.with_name(path.name.replace(".energy.json", ".json")))
                if record is not None and receipt is not None:
                    yield from _observed(record, model, receipt.get("rows"), _rows_of(recipe))


def _rows_of(recipe: Mapping[str, Any]) -> str | None:
    inputs = recipe.get("inputs", {})
    source = inputs.get("sequences") or inputs.get("corpus") or inputs.get("dataset")
    return source["key"] if source else None


def _model_of(
    recipe: Mapping[str, Any], store: ArtifactStore, models: Mapping[str, ModelSize | None]
) -> ModelSize | None:
    """The model that made an artifact, as its recipe (or that of the teacher's artifact) says."""
    if recipe["kind"] == "model":
        return _trained_here(recipe)
    named = recipe.get("teacher")
    if named is not None:
        if (known := models.get(model_id(named))) is not None:
            return known
        return from_name(named["hub"]) if "hub" in named else None
    teacher = recipe.get("inputs", {}).get("teacher")
    if teacher is None:
        return None
    manifest = _with_recipe(store.root / "model" / teacher["key"] / "manifest.json")
    return _trained_here(manifest["recipe"]) if manifest else None


def _trained_here(recipe: Mapping[str, Any]) -> ModelSize | None:
    """A model that is an artifact: the embedded teacher, or an assistant."""
    shape = recipe["student"]["init"] if "student" in recipe else recipe["settings"]
    if "layers" in shape:
        return from_shape("teacher", shape, 256)
    return from_name(str(shape.get("hub", "")))


def _runs(
    results: Path, store: ArtifactStore, models: Mapping[str, ModelSize | None]
) -> Iterator[Observation]:
    for folder in _newest(results / "students", MOST_RUNS):
        training = _with_recipe(folder / "training.json")
        if training is None:
            continue
        recipe = training["recipe"]
        model = _student(training)
        inputs = recipe["inputs"]
        read = (inputs.get("corpus") or inputs["dataset"])["key"]
        record = _json(folder / "energy.json")
        if record is not None:
            trained = _observed(record, model, None, read)
            teacher = _model_of(recipe, store, models) if "on_policy" in recipe else None
            yield from (_on_policy(one, record, recipe, teacher) for one in trained)
        scored = _json(results / "scores" / f"{folder.name}.energy.json")
        if scored is not None:
            yield from _observed(scored, model, None, inputs["dataset"]["key"])


def _on_policy(
    one: Observation,
    record: Mapping[str, Any],
    recipe: Mapping[str, Any],
    teacher: ModelSize | None,
) -> Observation:
    """A training as an observation of its own kind."""
    if "on_policy" not in recipe:
        return one
    tokens, share = record["work"]["tokens"]["trained"], recipe["on_policy"]["student_share"]
    more = online_operations(one.model, teacher, share, tokens, one.tokens_per_row or 0.0)
    return replace(one, stage=ON_POLICY, flops=one.flops + more)


def _student(training: Mapping[str, Any]) -> ModelSize:
    recipe = training["recipe"]
    init = recipe["init"]
    layers, width = init.get("layers"), init.get("hidden_size")
    if layers is None:
        named = from_name(str(init.get("hub", ""))) or from_name(f"{training['parameters']}M")
        layers, width = (named.layers, named.width) if named else (0, 0)
    parameters, frozen = int(training["parameters"]), "lora" in recipe
    return ModelSize("student", parameters, layers, width, "training.json", frozen)


def _observed(
    record: Mapping[str, Any], model: ModelSize | None, rows: int | None, dataset: str | None
) -> Iterator[Observation]:
    """The observation in a sidecar; none where a part was adopted or the energy is unknown."""
    total, what = record["total"].get("energy_j"), record["record"]
    if total is None or what["status"] != "ok":
        return
    stage, work = what["stage"], record.get("work") or {}
    tokens, samples = work.get("tokens") or {}, work.get("samples")
    passed = float(_passed(stage, tokens))
    if stage in COMPUTE and (model is None or not passed):
        return
    count = samples or rows
    per_row = passed / count if passed and count else None
    generated = tokens.get("generated")
    decoded = 1.0 if generated is None or not passed else generated / passed
    validated = float(tokens.get("evaluated") or 0)
    yield Observation(
        stage=stage,
        rule=what["rule"],
        hardware=hardware_of(record["components"], (record.get("env") or {}).get("cpu_model")),
        energy_j=float(total["value"]),
        duration_s=float(record["time"]["duration_s"]),
        start_utc=record["time"]["start_utc"],
        model=model,
        flops=operations(stage, model, passed, per_row or 0.0, validated, decoded),
        dataset=dataset,
        tokens_per_row=per_row,
        decoded=decoded,
    )


def operations(
    stage: str,
    model: ModelSize | None,
    tokens: float,
    length: float,
    validated: float,
    decoded: float,
) -> float:
    """Operations of a job: `tokens` through the stage's model, and when training also `validated`
    tokens forward on the validation split. Where a stage decodes, they are operations at its
    speed: of tokens that are not `decoded` (a share) the part that takes as long."""
    if model is None:
        return 0.0
    if COMPUTE.get(stage) == "decode":
        tokens *= decoded + PREFILL * (1.0 - decoded)
    if COMPUTE.get(stage) == "train":
        return model.training_flops(tokens, length) + model.forward_flops(validated, length)
    return model.forward_flops(tokens, length)


def online_operations(
    student: ModelSize | None,
    teacher: ModelSize | None,
    share: float,
    tokens: float,
    length: float,
) -> float:
    """What an on-policy training takes besides training, in operations at its speed: the teacher
    reads every token, the student answers a ``share`` of the steps token by token."""
    read = teacher.forward_flops(tokens, length) if teacher else 0.0
    answers = student.forward_flops(share * tokens, length) if student else 0.0
    return read + answers * EFFICIENCY["train"].value / EFFICIENCY["decode"].value


def _passed(stage: str, tokens: Mapping[str, int | None]) -> int:
    """Tokens that passed through the model in a stage."""
    if COMPUTE.get(stage) == "train":
        return tokens.get("trained") or 0
    if stage == "teacher_generation":
        return (tokens.get("prompt") or 0) + (tokens.get("generated") or 0)
    return tokens.get("evaluated") or tokens.get("cached") or 0


def _json(path: Path) -> Any:
    """A JSON file; None where it is missing, torn or not an object."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _with_recipe(path: Path) -> Any:
    """A record of what was made; None where it does not say how."""
    value = _json(path)
    return value if value is not None and isinstance(value.get("recipe"), dict) else None
