"""What the terms on hidden states must know of an optimizer step before its first pass.

How many vectors it has over all passes and processes; and, of terms that are no sum of vectors,
everything that a first pass without a graph finds. One pass in one process needs none: it sees the
whole step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from angelshare.student.dataset import Batch
from angelshare.student.features import CkaSums
from angelshare.student.states import Pairs, RelationTerm, StateTerm

PairsOf = Callable[[Batch], Mapping[str, Pairs]]
"""A pass without a graph: the vectors of each term that needs the whole step."""


class WholeSteps:
    """Prepares the batches of optimizer steps, alike in all processes."""

    def __init__(self, terms: Mapping[str, StateTerm], accelerator: Any) -> None:
        self.terms, self.accelerator = terms, accelerator
        self.device: torch.device = accelerator.device

    def prepare(self, batches: Sequence[Batch], pairs_of: PairsOf) -> dict[str, float]:
        """Put into every batch's ``states`` what its terms need; return what is to be logged."""
        logged: dict[str, float] = {}
        for role, term in self.terms.items():
            own = sum(batch["states"][role]["vectors"].shape[1] for batch in batches)
            count = self._sum(torch.tensor(float(own), device=self.device))
            logged |= term.count(int(count))
            for batch in batches:
                batch["states"][role]["count"] = count.clamp(min=1)
        whole = [role for role, term in self.terms.items() if term.whole_step]
        if whole and len(batches) * self.accelerator.num_processes > 1:
            passes = [pairs_of(batch) for batch in batches]
            for role in whole:
                pairs = [one[role] for one in passes]
                states = [batch["states"][role] for batch in batches]
                term = self.terms[role]
                if isinstance(term, RelationTerm):
                    self._relations(term, pairs, states)
                else:
                    self._sums(pairs, states)
        return logged

    def _sums(self, passes: Sequence[Pairs], states: Sequence[Batch]) -> None:
        """The statistics of CKA, added up."""
        found = []
        for layer in zip(*passes, strict=True):
            own = CkaSums.of(*layer[0])
            for pair in layer[1:]:
                own = own + CkaSums.of(*pair)
            found.append(CkaSums(self._sum(one) for one in own.sums))
        for batch in states:
            batch["sums"] = found

    def _relations(
        self, term: RelationTerm, passes: Sequence[Pairs], states: Sequence[Batch]
    ) -> None:
        """Value and gradient over the embeddings of all; each pass gets its own part."""
        sizes = [len(pairs[0][0]) for pairs in passes]
        for batch in states:
            batch["known"] = []
        for layer in zip(*passes, strict=True):
            ours, begin = self._all(torch.cat([pair[0] for pair in layer]))
            wanted, _ = self._all(torch.cat([pair[1] for pair in layer]))
            value, gradient = term.whole(ours, wanted)
            mine = gradient[begin : begin + sum(sizes)].split(sizes)
            for batch, part in zip(states, mine, strict=True):
                batch["known"].append((value, part))

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, reduction="sum")
        return total

    def _all(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes, and where this one's begin."""
        if self.accelerator.num_processes == 1:
            return rows, 0
        counts = self.accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = pad(rows, (0, 0, 0, max(counts) - len(rows)))
        parts = self.accelerator.gather(padded).split(max(counts))
        together = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
        return together, sum(counts[: self.accelerator.process_index])
