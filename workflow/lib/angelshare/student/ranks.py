"""The processes that train one student together, seen from one of them.

Few things need more than the Trainer's own exchange: what the first process alone decides, and
whether any of them was asked to stop. These go through the CPU, so that no GPU is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process is number ``number`` of ``world``."""

    number: int = 0
    world: int = 1
    group: Any = None
    """The process group (gloo) of all of them; unused by one alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them made."""
        return self.number == 0

    def any(self, here: bool) -> bool:
        """Whether any process says yes; all of them must ask."""
        if self.world == 1:
            return here
        answer = torch.tensor(int(here))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.group)
        return bool(answer)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns in the first process, which alone calls it; all must ask."""
        made: list[Any] = [make() if self.is_first else None]
        if self.world > 1:
            dist.broadcast_object_list(made, src=0, group=self.group)
        value: Value = made[0]
        return value


ALONE = Ranks()
