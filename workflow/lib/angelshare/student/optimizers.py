"""Optimizers by name, with what is decayed and what is not decided in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor

from angelshare.student.settings import OptimizerSettings

BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95


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
        self.muon = torch.optim.Muon(
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
    return Adafactor(groups, lr=settings.learning_rate, scale_parameter=False, relative_step=False)
