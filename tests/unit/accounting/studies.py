"""Studies made up for tests: sidecars with known joules, and a realistic small one to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from angelshare.accounting.study import (
    Artifact,
    AttemptSource,
    Consumer,
    Run,
    Score,
    Study,
)

KWH = 3.6e6


def sidecar(
    name: str,
    stage: str,
    energy_j: float,
    *,
    status: str = "ok",
    attempt: int = 1,
    tokens: dict[str, int] | None = None,
    gpu: bool = False,
    gain: float = 0.05,
    board: str = "GPU-1",
    wildcards: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A valid record of one attempt whose total is `energy_j`: all GPU, or all estimated CPU."""
    u95 = (gain if gpu else 0.5) * energy_j
    component = {
        "id": "gpu0" if gpu else "cpu0",
        "kind": "gpu" if gpu else "cpu_package",
        "device": {"uuid": board, "model": "H100"} if gpu else {"uuid": board},
        "quality": "measured" if gpu else "estimated",
        "method": "nvml_counter" if gpu else "load_model",
        "energy_j": energy_j,
        "u95_j": u95,
        "u": {"gain_rel95": gain} if gpu else {"model_rel95": 0.5},
    }
    duration_s = energy_j / (500.0 if gpu else 12.0)
    carbon_g = energy_j / KWH * 1.1 * 350.0
    return {
        "schema": "energy-sidecar/1",
        "record": {
            "id": name,
            "rule": f"rule_{stage}",
            "stage": stage,
            "role": "other",
            "wildcards": wildcards or {},
            "attempt": attempt,
            "status": status,
            "complete": True,
        },
        "run": {"workflow_id": "w", "host": "n1"},
        "time": {
            "start_utc": f"2026-01-01T00:00:0{attempt}.000Z",
            "end_utc": "2026-01-01T01:00:00.000Z",
            "duration_s": duration_s,
            "start_mono_ns": 1,
            "end_mono_ns": 2,
        },
        "env": {"cpu_model": "a laptop processor"},
        "scope": {"boundary": "gpu board + cpu package", "exclusive": True},
        "components": [component],
        "total": {
            "energy_j": {"value": energy_j, "low": energy_j - u95, "high": energy_j + u95},
            "measured_j": energy_j if gpu else 0.0,
            "estimated_j": 0.0 if gpu else energy_j,
            "missing": ["dram"],
        },
        "work": {"tokens": tokens or {}},
        "carbon": {
            "pue": {"value": 1.1, "unit": "1", "source": "config", "kind": "declared"},
            "grid": [{"g_per_kwh": 350.0, "source": "config", "basis": "average"}],
            "co2e_g": {"value": carbon_g, "low": carbon_g, "high": carbon_g},
        },
        "trace": {"path": "x", "sha256": "0", "rows": 0},
        "meter": {"name": "angelshare", "version": "0"},
        "warnings": [],
        "a_field_of_tomorrow": {"unknown": True},
    }


def write(folder: Path, *records: dict[str, Any]) -> Path:
    """Write records as attempt files; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        path = folder / f"20260101T000000Z-{record['record']['id']}.json"
        path.write_text(json.dumps(record))
    return folder


def demo_study(
    root: Path, scale: float = 1.0, *, gpu: bool = False, seeds: int = 3, others: int = 5
) -> Study:
    """Three pipelines, two students, seeds, a temperature sweep over one cache, and another team.

    Energies are hundreds of joules times `scale`; one training failed once, one teacher attempt
    was killed; the demo teacher's own pretraining is listed and not charged.
    """
    rng = np.random.default_rng(7)
    runs: list[Run] = []
    scores: list[Score] = []
    sources = [AttemptSource(write(root / "prerun", sidecar("pre", "prerun", 30 * scale, gpu=gpu)))]
    teacher = {
        "logits": ("9f3a6c01", 300.0),
        "corpus": ("41bb7d20", 450.0),
        "dataset": ("d0", 25.0),
    }
    quality = {"sft": (0.26, 0.41), "kd": (0.31, 0.47), "synthetic_sft": (0.62, 0.83)}
    cost = {"sft": (520.0, 1150.0), "kd": (455.0, 1010.0), "synthetic_sft": (540.0, 1120.0)}
    grid = [("sft", s, None) for s in (0, 1)] + [("synthetic_sft", s, None) for s in (0, 1)]
    grid += [("kd", 0, 1.0), ("kd", 0, 2.0), ("kd", 0, 4.0), ("kd", 1, 2.0)]
    for pipeline, size, temperature in grid:
        for seed in range(1, seeds + 1):
            student = ("small", "large")[size]
            name = f"{pipeline}-{student}" + (f"-T{temperature:g}" if temperature else "")
            name = f"{name}-s{seed}"
            energy_j = cost[pipeline][size] * scale * (1 + 0.03 * rng.standard_normal())
            drop = 0.0 if temperature is None else 0.02 * abs(temperature - 2)
            score = quality[pipeline][size] - drop + 0.012 * rng.standard_normal()
            records = [
                sidecar(
                    f"t-{name}", "student_train", energy_j, gpu=gpu, tokens={"trained": 400_000}
                )
            ]
            if name == "kd-large-T2-s1":
                records.append(
                    sidecar(f"f-{name}", "student_train", 130 * scale, gpu=gpu, status="failed")
                )
            evaluated = {"evaluated": 12_000}
            used_j = (30.0, 52.0)[size] * scale * (1 + 0.02 * rng.standard_normal())
            records.append(sidecar(f"e-{name}", "evaluate", used_j, gpu=gpu, tokens=evaluated))
            sources.append(AttemptSource(write(root / "runs" / name, *records), run=name))
            needed = {"sft": (), "kd": ("logits",), "synthetic_sft": ("corpus",)}[pipeline]
            runs.append(
                Run(
                    run=name,
                    pipeline=pipeline,
                    student=student,
                    dataset="word-problems",
                    seed=seed,
                    hyperparameters={} if temperature is None else {"temperature": temperature},
                    artifacts=tuple((kind, teacher[kind][0]) for kind in ("dataset", *needed)),
                    tokens=400_000,
                    parameters=(110_000, 350_000)[size],
                )
            )
            scores.append(Score(name, "exact_match", 0.95 * score, 0.012, 0.95))
            scores.append(Score(name, "cross_entropy", 1 - score, None, 0.015, in_quality=False))
    artifacts = []
    for kind, (key, energy_j) in teacher.items():
        stage = {"logits": "teacher_logits", "corpus": "teacher_generation"}.get(kind, "preprocess")
        records = [
            sidecar(
                f"{kind}-{part}",
                stage,
                energy_j * scale / 2,
                gpu=gpu,
                tokens={"cached": 40_000, "generated": 34_000, "prompt": 40_000},
                wildcards={"part": str(part)},
            )
            for part in (0, 1)
        ]
        if kind == "corpus":
            records.append(sidecar("corpus-k", stage, 60 * scale, gpu=gpu, status="killed"))
        sources.append(
            AttemptSource(write(root / kind, *records), artifact_kind=kind, artifact_key=key)
        )
        consumers = [
            Consumer(f"ours/{r.run}", r.run, "ours", 68_000, f"2026-01-02T00:{i:02d}:00Z")
            for i, r in enumerate(runs)
            if (kind, key) in r.artifacts
        ]
        if kind == "logits":
            consumers += [
                Consumer(f"them/{i}", f"their-run-{i}", "them", 68_000, "2026-01-03T00:00:00Z")
                for i in range(others)
            ]
        label = {"logits": "top-16 logits", "corpus": "4,000 answers"}.get(kind, "word problems")
        artifacts.append(Artifact(kind, key, label, 68_000, 5_400_000, True, tuple(consumers)))
    pretraining = sidecar(
        "demo", "demo_teacher", 1900 * scale, gpu=gpu, tokens={"trained": 900_000}
    )
    sources.append(
        AttemptSource(
            write(root / "demo", pretraining), artifact_kind="model", artifact_key="demo-teacher"
        )
    )
    artifacts.append(Artifact("model", "demo-teacher", "demo teacher", 900_000, 3_200_000, False))
    return Study("ours", tuple(runs), tuple(artifacts), tuple(scores), tuple(sources))
