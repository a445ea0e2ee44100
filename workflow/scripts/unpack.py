"""From Snakemake's object to plain values; the library sees only these.

Imported before the library: a job uses the library of its own checkout, installed or not.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))


def common(snakemake: Any) -> dict[str, Any]:
    """What every job passes on."""
    return {
        "rule": snakemake.rule,
        "config": snakemake.config,
        "sidecar": snakemake.output.energy,
        "log": snakemake.log[0],
        "threads": snakemake.threads,
        "gpus": _gpus(snakemake.resources),
    }


def _gpus(resources: Any) -> int | None:
    """How many GPUs the job was given: 0 for a rule that runs no model, None (all that are
    visible) where a rule runs one without having asked for a number."""
    gpus = resources.get("gpu")
    return 0 if gpus is None else int(gpus) or None


def part(snakemake: Any) -> dict[str, Any]:
    """What a job that makes one part of a shared artifact passes on."""
    return {
        "key": snakemake.wildcards.key,
        "part": snakemake.wildcards.part,
        "receipt": snakemake.output.receipt,
        **common(snakemake),
    }


def artifact(snakemake: Any) -> dict[str, Any]:
    """What a job after which a shared artifact is whole passes on."""
    return {
        "kind": snakemake.wildcards.kind,
        "key": snakemake.wildcards.key,
        "recipe": snakemake.params.recipe,
        "manifest": snakemake.output.manifest,
        **common(snakemake),
    }


def attempts(snakemake: Any) -> Path:
    """The undeclared folder for the attempts of a job of this team's own."""
    return Path(snakemake.output.energy.removesuffix(".json") + ".attempts")
