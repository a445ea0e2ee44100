"""What a student's hidden states add to its loss: features and relations.

Both are means over an **optimizer step**: over its vectors, its sequences, their pairs and triples,
however the step was cut into passes and processes. What is a sum of vectors (``mse``, ``cosine``)
is divided by the step's number of them. What is none (``cka``, relations) is computed in two passes
where a step has several: first the states of all of them without a graph, gathered from all
processes, and from these the gradient by every vector; then each pass is computed again and that
gradient sent back through it (gradient caching: Gao et al. 2021, arXiv:2101.06983). It equals the
gradient of a single large pass, as long as the student draws no dropout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from angelshare.errors import AngelshareError
from angelshare.student.dataset import Batch
from angelshare.student.features import (
    CkaSums,
    cosine_distances,
    make_projector,
    projected,
    squared_errors,
)
from angelshare.student.relations import relation_loss
from angelshare.student.settings import FeatureSettings, LossSettings, RelationSettings
from angelshare.teacher.blocks import nearest, picked_states
from angelshare.teacher.states import StatesInfo

PROJECTORS = "projectors"
"""The student's submodule that holds what only its training needs."""
Pairs = list[tuple[Tensor, Tensor]]
"""The student's and the teacher's vectors [M, H], [M, W] in each layer, of one pass."""


def student_layers(
    info: StatesInfo, depth: int, named: Mapping[int, int] | None, where: str
) -> dict[int, int]:
    """The student's layer for each cached layer of the teacher: the same point of a block.

    Proportional: round(layer · depth / teacher's depth), halves up; no block is compared with what
    goes into the first. ``AngelshareError`` for a name that is missing or too deep.
    """
    found = {}
    for layer in info.layers:
        if named is None:
            found[layer] = max(min(layer, 1), nearest(layer * depth, info.depth))
        elif layer not in named:
            raise AngelshareError(
                f"{where}.layers names no layer of the student for the teacher's {layer}; cached "
                f"are {list(info.layers)}"
            )
        else:
            found[layer] = named[layer]
        if found[layer] > depth:
            raise AngelshareError(
                f"{where}.layers names layer {found[layer]} of a student of {depth} blocks"
            )
    return found


class StateTerm(ABC):
    """One term: which states it compares, and what it gives for a pass."""

    name: str
    """Of its value, in the log."""
    whole_step: bool
    """Whether its gradient needs all states of an optimizer step."""

    def __init__(
        self, info: StatesInfo, settings: FeatureSettings | RelationSettings, where: str, depth: int
    ) -> None:
        self.info, self.weight = info, settings.weight
        self.layers = student_layers(info, depth, settings.layers, where)

    def pairs(self, outputs: Mapping[int, Tensor], batch: Batch) -> Pairs:
        """Picked from a pass's block outputs, in float32."""
        kept_BL, found = batch["kept"], []
        for place, layer in enumerate(self.layers.values()):
            states_BLH = outputs[layer]
            if layer and torch.is_grad_enabled() and not states_BLH.requires_grad:
                raise AngelshareError(
                    f"the student's states of layer {layer} have no gradient: they are frozen, or "
                    "hidden by how activations are checkpointed (set gradient_checkpointing false)"
                )
            ours = picked_states(states_BLH, kept_BL, self.info.pooled)
            if self.info.pooled:
                ours = ours[kept_BL.any(1)]
            found.append((ours, batch["vectors"][place]))
        return found

    @abstractmethod
    def share(self, pairs: Pairs, batch: Batch, student: nn.Module) -> Tensor:
        """This pass's part of the term: over all passes of the step they sum to its value."""

    def count(self, vectors: int) -> dict[str, float]:
        """What else to log of a step with so many vectors."""
        return {}


class FeatureTerm(StateTerm):
    """The student's states are drawn to the teacher's."""

    name = "feature_loss"

    def __init__(self, info: StatesInfo, settings: FeatureSettings, where: str, depth: int) -> None:
        super().__init__(info, settings, where, depth)
        self.loss = settings.loss
        self.whole_step = settings.loss == "cka"

    def projectors(self, width: int, seed: int) -> nn.ModuleDict:
        """A projector for each layer; none for ``cka``, which compares different widths."""
        layers = [] if self.loss == "cka" else self.info.layers
        return nn.ModuleDict(
            {
                f"layer_{layer:03d}": make_projector(width, self.info.width, 1000 * seed + layer)
                for layer in layers
            }
        )

    def share(self, pairs: Pairs, batch: Batch, student: nn.Module) -> Tensor:
        """Of a sum of vectors, its quotient by their number in the step."""
        if self.whole_step:
            sums = batch.get("sums") or [CkaSums.of(*pair) for pair in pairs]
            parts = [
                _with_gradient(ours, one.loss(), one.gradient(ours, wanted), batch["count"])
                for one, (ours, wanted) in zip(sums, pairs, strict=True)
            ]
            return torch.stack(parts).mean()
        parts = []
        for layer, square, (ours, wanted) in zip(
            self.info.layers, self.info.mean_square, pairs, strict=True
        ):
            found = projected(getattr(student, PROJECTORS)[f"layer_{layer:03d}"], ours)
            if self.loss == "mse":
                parts.append(squared_errors(found, wanted, square))
            else:
                parts.append(cosine_distances(found, wanted))
        return torch.stack(parts).mean() / batch["count"]


class RelationTerm(StateTerm):
    """The distances and angles between the step's sequences are drawn to the teacher's."""

    name, whole_step = "relation_loss", True

    def __init__(
        self, info: StatesInfo, settings: RelationSettings, where: str, depth: int
    ) -> None:
        super().__init__(info, settings, where, depth)
        self.settings = settings

    def whole(self, ours: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient by all embeddings of a step in one layer."""
        return relation_loss(ours, wanted, self.settings.distance, self.settings.angle)

    def share(self, pairs: Pairs, batch: Batch, student: nn.Module) -> Tensor:
        """By the number of sequences."""
        known = batch.get("known") or [self.whole(*pair) for pair in pairs]
        parts = [
            _with_gradient(ours, value, gradient, batch["count"])
            for (value, gradient), (ours, _) in zip(known, pairs, strict=True)
        ]
        return torch.stack(parts).mean()

    def count(self, vectors: int) -> dict[str, float]:
        """The pairs of different sequences that were compared."""
        return {"relation_pairs": vectors * (vectors - 1) / 2}


def _with_gradient(ours: Tensor, value: Tensor, gradient: Tensor, count: Tensor) -> Tensor:
    """These vectors' share of a step's value, whose gradient by them is known."""
    share = (value * len(ours) / count).to(ours.dtype)
    through = (ours * gradient.to(ours.dtype)).sum()
    return through - through.detach() + share


def make_terms(
    loss: LossSettings, infos: Mapping[str, StatesInfo], model: Any, seed: int
) -> dict[str, StateTerm]:
    """The terms of a student that reads hidden states, by role; projectors go into ``model``.

    ``AngelshareError`` where layers do not fit, and for relations between single positions.
    """
    terms: dict[str, StateTerm] = {}
    config = model.config.get_text_config()
    if "features" in infos:
        term = FeatureTerm(
            infos["features"], loss.feature, "loss.feature", config.num_hidden_layers
        )
        projectors = term.projectors(config.hidden_size, seed)
        if projectors:
            model.add_module(PROJECTORS, projectors.to(model.dtype))
        terms["features"] = term
    if "relations" in infos:
        if not infos["relations"].pooled:
            raise AngelshareError(
                "relations are between sequences: their entry of states must have positions "
                "mean_of_targets or mean_of_tokens"
            )
        terms["relations"] = RelationTerm(
            infos["relations"], loss.relation, "loss.relation", config.num_hidden_layers
        )
    return terms


def layers_read(terms: Mapping[str, StateTerm]) -> Sequence[int]:
    """The student's layers that the terms compare, ascending."""
    return sorted({layer for term in terms.values() for layer in term.layers.values()})


def state_shares(
    terms: Mapping[str, StateTerm],
    outputs: Mapping[int, Tensor],
    states: Mapping[str, Batch],
    student: nn.Module,
) -> dict[str, Tensor]:
    """Each term's share of a pass whose block ``outputs`` are there."""
    return {
        role: term.share(term.pairs(outputs, states[role]), states[role], student)
        for role, term in terms.items()
    }
