"""What a study amounts to, on one screen: shared artifacts with their readers, runs by student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from angelshare.plans import ArtifactPlan, RunPlan, Study


def overview(study: Study, sources: Mapping[str, str]) -> str:
    """Lines of text: every artifact with its state and who shares it, then the runs.

    ``sources`` says where each artifact comes from, by key: the store, a remote, or made here.
    """
    runs = list(study.trainings.values())
    shared = [["shared artifact", "", "parts", "from", "shared by"]]
    shared += [_artifact(plan, sources[plan.key], runs) for plan in study.artifacts.values()]
    students = list(dict.fromkeys(run.student for run in runs))
    counts = Counter((run.pipeline, run.student) for run in runs)
    table = [["student runs", *students]]
    table += [
        [pipeline, *(str(counts[pipeline, student] or "") for student in students)]
        for pipeline in dict.fromkeys(run.pipeline for run in runs)
    ]
    return "\n".join([*_aligned(shared), "", *_aligned(table), f"{len(runs)} runs in all"])


def _artifact(plan: ArtifactPlan, source: str, runs: Sequence[RunPlan]) -> list[str]:
    readers = [run for run in runs if any(plan.key == other.key for other in run.billed())]
    return [plan.kind, plan.label, str(plan.parts), source, _shared_by(readers)]


def _shared_by(readers: Iterable[RunPlan]) -> str:
    """``30 runs: sft 9, kd 12, synthetic_sft 9``."""
    counts = Counter(run.pipeline for run in readers)
    pipelines = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{counts.total()} runs: {pipelines}" if counts else "no run (a comparison only)"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
