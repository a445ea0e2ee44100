"""Which of how many processes of one job this is, as launchers say it in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
"""Rank and number of ranks: torchrun, Open MPI, MPICH, srun. The innermost launcher comes first."""

LAUNCH = (
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_ID",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
)
"""What is the same in all processes that one command started, and tells its restarts apart."""


@dataclass(frozen=True, slots=True)
class Launch:
    """This process is number `rank` of `world`; `name` is shared by all of them."""

    rank: int
    world: int
    name: str


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """What a launcher says of this process, None where none started it.

    A batch script is no rank of its job: Slurm tells only the processes of a step their number.
    """
    for rank, world in LAUNCHERS:
        numbers = environment.get(rank, ""), environment.get(world, "")
        if all(number.isdigit() for number in numbers) and int(numbers[0]) < int(numbers[1]):
            said = (f"{name}={environment[name]}" for name in LAUNCH if name in environment)
            return Launch(int(numbers[0]), int(numbers[1]), " ".join(said))
    return None
