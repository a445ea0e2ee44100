"""A student spread over several processes by FSDP, and the checkpoints of one that is not.

Every block of the model is a unit of its own (what torch's FSDP calls transformer auto-wrap) whose
weights are gathered for the time of its passes; what lies outside the blocks is the last unit.
Weights, gradients and optimizer states are DTensors, of which each process holds a part.

Checkpoints are those of a single process: whole tensors, in the same files. So a training may go on
with another number of processes than it began with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device, world: int) -> None:
    """Spread ``model`` over all processes, block by block, on their devices; in place."""
    mesh = init_device_mesh(device.type, (world,))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are without sharding, on the CPU; all processes must ask."""
    return {name: whole(value) for name, value in model.state_dict().items()}


def whole(value: Any) -> Any:
    """``value`` with every DTensor within gathered on the CPU; all processes must ask."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    value = full(value)
    return value.cpu() if isinstance(value, Tensor) else value


def full(value: Any) -> Any:
    """``value``, gathered where it lies if it is a DTensor; all processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, distributed as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


@torch.no_grad()
def load_whole_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take over whole weights."""
    for name, value in model.state_dict().items():
        value.copy_(part_of(weights[name], value))
