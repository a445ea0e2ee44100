"""Optimizers by name, with what is decayed and what is not decided in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.optimization import Adafactor

from angelshare.student.settings import OptimizerSettings
from angelshare.student.sharding import full, part_of

BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95


class _WholeSteps(torch.optim.Optimizer):
    """Steps that need a whole matrix, also on parameters that several processes share.

    Means over rows and columns, or an orthogonal factor, are not those of the parts. So each
    process gathers one parameter after the other with its gradient and state, makes the same step
    as a single process would, and keeps its part.
    """

    alone: Callable[..., torch.optim.Optimizer]
    """The optimizer of whole parameters."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step all parameters."""
        shared = any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"])
        if not shared:
            return super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_whole(group, parameter)
        return None

    def _step_whole(self, group: dict[str, Any], parameter: Any) -> None:
        whole = nn.Parameter(full(parameter))
        whole.grad = full(parameter.grad)
        alone = self.alone([{**group, "params": [whole]}])
        alone.state[whole] = {key: full(value) for key, value in self.state[parameter].items()}
        alone.step()
        self.state[parameter] = _parts(alone.state[whole], parameter)
        parameter.copy_(part_of(whole.detach(), parameter))


class SharedAdafactor(_WholeSteps, Adafactor):  # type: ignore[misc]
    """Adafactor; of a matrix every process keeps the factored state, a row and a column."""

    alone = Adafactor


class SharedMuon(_WholeSteps, torch.optim.Muon):
    """Muon; momentum is shared as the parameters are."""

    alone = torch.optim.Muon


def _parts(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """A parameter's whole state, with what has its shape distributed as it is."""
    return {
        key: part_of(value, parameter)
        if isinstance(value, Tensor) and value.shape == parameter.shape
        else value
        for key, value in state.items()
    }


class MuonAdamW(torch.optim.Optimizer):
    """Muon on some parameters and AdamW on the others: one optimizer to schedule and checkpoint.

    ``param_groups`` are the groups of both, the same objects, so that a scheduler reaches them.
    """

    def __init__(
        self, matrices: list[nn.Parameter], rest: list[nn.Parameter], settings: OptimizerSettings
    ) -> None:
        """``matrices`` are two-dimensional; embeddings belong to ``rest``."""
        groups = [{"params": matrices}, {"params": rest}]
        super().__init__(groups, {"lr": settings.learning_rate})
        self.muon = SharedMuon(
            matrices,
            lr=settings.learning_rate,
            momentum=MUON_MOMENTUM,
            weight_decay=settings.weight_decay,
        )
        self.adamw = torch.optim.AdamW(
            rest, lr=settings.adamw_learning_rate, betas=BETAS, weight_decay=0.0
        )
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both."""
        loss = closure() if closure is not None else None
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both, by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()


def shared_out(saved: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """A saved state of ``optimizer`` with what has a parameter's shape distributed as that is."""
    bare = getattr(optimizer, "optimizer", optimizer)
    if isinstance(bare, MuonAdamW):
        both = {"muon": bare.muon, "adamw": bare.adamw}
        return {name: shared_out(saved[name], one) for name, one in both.items()}
    parameters = (p for group in bare.param_groups for p in group["params"])
    state = {
        number: _parts(saved["state"][number], parameter)
        for number, parameter in enumerate(parameters)
        if number in saved["state"]
    }
    return {**saved, "state": state}


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer of ``settings`` over the trainable parameters of ``model``.

    Only matrices of the blocks are decayed (and are Muon's); embeddings, the output head and
    vectors are not.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and id(parameter) not in embeddings and "lm_head" not in name
        (matrices if inner else rest).append(parameter)
    if settings.name == "muon":
        return MuonAdamW(matrices, rest, settings)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS)
    return SharedAdafactor(
        groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False
    )
