"""The harness's transformers back end, with prefill and decode as phases of the energy window.

See `angelshare.energy.phases`.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from angelshare.energy.phases import Phase, prefill_then_decode
from angelshare.evaluation.counting import Counting
from angelshare.evaluation.quantised import quantise
from angelshare.evaluation.scores import Count, Progress
from angelshare.teacher.models import default_device


class TransformersEngine(Counting, HFLM):
    """Counts the tokens that pass through the model, and opens the phases."""

    def __init__(
        self, *args: Any, progress: Progress, count: Count, phase: Phase, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.progress, self.count, self.phase = progress, count, phase

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        """Count prompt tokens, and answer tokens up to the first end of sequence."""
        with prefill_then_decode(self.phase, self.model):
            tokens: Tensor = super()._model_generate(context, max_length, stop, **kwargs)
        ends = (tokens[:, context.shape[1] :] == self.eot_token_id).int()
        generated = int(((ends.cumsum(1) - ends) == 0).sum())
        prompt = int(kwargs["attention_mask"].sum())
        self.note(len(context), prompt=prompt, generated=generated, evaluated=prompt + generated)
        return tokens


def load(
    model: str,
    batch_size: int,
    *,
    progress: Progress,
    count: Count,
    phase: Phase,
    revision: str | None,
    trust_remote_code: bool,
    quantised: str | None,
) -> TransformersEngine:
    """The model, on the GPU where there is one."""
    engine = TransformersEngine(
        pretrained=model,
        revision=revision or "main",
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        batch_size=batch_size,
        device=default_device(),
        progress=progress,
        count=count,
        phase=phase,
    )
    if quantised is not None:
        quantise(engine.model, quantised)
    return engine
