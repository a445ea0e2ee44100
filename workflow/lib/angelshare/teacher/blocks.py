"""The blocks of a decoder, and what comes out of them.

Layer 0 is what goes into the first block, layer i what the i-th block gives to the next, the
residual stream included. Teacher and student are read by this one module, so that equal layer
numbers mean the same point of a block on both sides. ``output_hidden_states`` would not do: most
architectures apply the last norm to its last entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from angelshare.errors import AngelshareError


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks of a causal language model, in order.

    ``AngelshareError`` where its decoder has no list of as many blocks as its configuration says.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    depth = bare.config.get_text_config().num_hidden_layers
    for module in bare.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise AngelshareError(
        f"{type(bare).__name__}: there is no list of {depth} blocks in its decoder, so its hidden "
        "states cannot be told apart; use another model"
    )


@contextmanager
def block_outputs(model: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A mapping that each forward pass within fills: layer number to states [B, L, H]."""
    found: dict[int, Tensor] = {}
    handles = []
    blocks = blocks_of(model) if layers else nn.ModuleList()
    for layer in layers:
        if layer == 0:
            hook = partial(_keep_input, found)
            handles.append(blocks[0].register_forward_pre_hook(hook, with_kwargs=True))
        else:
            hook = partial(_keep_output, found, layer)
            handles.append(blocks[layer - 1].register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep_input(
    found: dict[int, Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    found[0] = args[0] if args else kwargs["hidden_states"]


def _keep_output(found: dict[int, Tensor], layer: int, _: nn.Module, __: Any, output: Any) -> None:
    found[layer] = output if isinstance(output, Tensor) else output[0]


def picked_states(states_BTW: Tensor, kept_BT: Tensor, pooled: bool) -> Tensor:
    """float32 [N, W]: the states of the marked positions, or their mean for each sequence."""
    if not pooled:
        return states_BTW[kept_BT].float()
    weights_BT = kept_BT.float() / kept_BT.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("btw,bt->bw", states_BTW.float(), weights_BT)


@torch.no_grad()
def without_later_blocks(model: Any, last: int) -> None:
    """Drop the blocks behind layer ``last``, which need not be computed to know it; in place."""
    blocks = blocks_of(model)
    del blocks[max(1, last) :]
    model.config.get_text_config().num_hidden_layers = len(blocks)


def chosen_layers(asked: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """The layer numbers of a model of ``depth`` blocks: those asked for, or so many at equal steps.

    ``AngelshareError`` where the model has no such layer, or not so many.
    """
    most = asked if isinstance(asked, int) else max(asked)
    if most > depth:
        what = f"{asked} layers" if isinstance(asked, int) else f"layer {most}"
        raise AngelshareError(
            f"states.layers asks for {what}, the model has {depth} blocks (layer 0 is what goes "
            "into the first of them)"
        )
    if isinstance(asked, int):
        return tuple(nearest(step * depth, asked) for step in range(1, asked + 1))
    return tuple(asked)


def nearest(numerator: int, denominator: int) -> int:
    """The quotient, rounded; halves up."""
    return math.floor(numerator / denominator + 0.5)
