"""Records of finished jobs, made up, in a store and a results folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studies import sidecar

from angelshare.config import Config
from angelshare.grid import plan_study
from angelshare.store.artifacts import ArtifactStore


def record(
    stage: str, rule: str, energy_j: float, tokens: dict[str, int], samples: int = 0, **more: Any
) -> dict[str, Any]:
    """A sidecar with this work."""
    made = sidecar(more.pop("name", rule), stage, energy_j, tokens=tokens, **more)
    made["record"]["rule"] = rule
    made["work"]["samples"] = samples
    return made


def put(path: Path, value: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def finished_run(
    config: Config, name: str, energy_j: float, *, tokens: int = 400_000, parameters: int = 67_872
) -> None:
    """A run that was trained and evaluated, as the workflow leaves it."""
    results = Path(config.results)
    run = plan_study(config).runs.get(name) or next(iter(plan_study(config).runs.values()))
    training = {"recipe": run.recipe, "parameters": parameters, "trained_tokens": tokens}
    put(results / "students" / name / "training.json", training)
    trained = record(
        "student_train",
        "train_student",
        energy_j,
        {"trained": tokens, "evaluated": 10_000},
        tokens // 30,
        name=f"t-{name}",
    )
    put(results / "students" / name / "energy.json", trained)
    put(results / "students" / name / "energy.attempts" / f"{name}.json", trained)
    scored = record(
        "evaluate", "evaluate_student", 0.3 * energy_j, {"evaluated": 6_000}, 100, name=f"e-{name}"
    )
    put(results / "scores" / f"{name}.json", [])
    put(results / "scores" / f"{name}.energy.json", scored)
    put(results / "scores" / f"{name}.energy.attempts" / f"{name}.json", scored)


def finished_artifact(config: Config, kind: str, energy_j: float, team: str = "ours") -> None:
    """The study's artifact of a kind, sealed, with a sidecar per part."""
    store = ArtifactStore(Path(config.store.root))
    plan = next(p for p in plan_study(config).artifacts.values() if p.kind == kind)
    artifact = store.artifact(kind, plan.key)
    work = {"logits": {"cached": 20_000}, "corpus": {"generated": 60_000, "prompt": 40_000}}
    stages = {"logits": "teacher_logits", "corpus": "teacher_generation", "dataset": "preprocess"}
    source = Path(config.results).parent / "content"
    for part in range(plan.parts):
        source.write_text(f"{kind} {part}")
        artifact.commit(part, {"data.json": source}, inputs={}, rows=1000, tokens=20_000)
        made = record(
            stages[kind], f"make_{kind}", energy_j, work.get(kind, {}), name=f"{kind}-{part}"
        )
        made["run"]["workflow_id"] = team
        put(artifact.folder / "parts" / f"{part:05d}.energy.json", made)
        put(artifact.attempts / f"{part}.json", made)
    artifact.seal(plan.recipe, plan.parts)
