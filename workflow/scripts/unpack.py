"""From Snakemake's object to plain values; the library sees only these."""

from typing import Any


def common(snakemake: Any) -> dict[str, Any]:
    """What every job passes on."""
    return {
        "rule": snakemake.rule,
        "config": snakemake.config,
        "sidecar": snakemake.output.energy,
        "log": snakemake.log[0],
        "threads": snakemake.threads,
    }


def part(snakemake: Any) -> dict[str, Any]:
    """What a job that makes one part of a shared artifact passes on."""
    return {
        "key": snakemake.wildcards.key,
        "part": snakemake.wildcards.part,
        "receipt": snakemake.output.receipt,
        **common(snakemake),
    }
