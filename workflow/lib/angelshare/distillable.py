"""Whether a grid's students can learn from its logit caches: said before the teacher's pass.

What only files can tell (two pretrained tokenizers) is refused when a student's training begins,
by the digest that the cache carries (`angelshare.student.dataset`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from angelshare.teacher.settings import CaptureSettings

if TYPE_CHECKING:
    from angelshare.config import Config, GridBlock


def cache_problems(config: Config) -> Iterator[str]:
    """One line for everything that a logit cache cannot give the loss that is to read it."""
    for number, block in enumerate(config.grid):
        pipeline = config.pipelines.get(block.pipeline)
        if pipeline is None or not pipeline.logits:
            continue
        yield from _unusable_temperatures(config, block, f"grid[{number}]")
        yield from _no_tail(config)
        yield from _other_tokenizers(config, block, f"grid[{number}]")


def _unusable_temperatures(config: Config, block: GridBlock, where: str) -> Iterator[str]:
    usable = config.capture.usable_temperatures
    for temperature in block.temperature:
        if temperature not in usable:
            yield f"{where}.temperature {_off_grid(config.capture, temperature)}"
    if not block.temperature and config.loss.temperature not in usable:
        yield f"loss.temperature {_off_grid(config.capture, config.loss.temperature)}"


def _off_grid(capture: CaptureSettings, temperature: float) -> str:
    if temperature in capture.temperatures:
        return (
            f"{temperature} cannot be had from draws (capture.codec is {capture.codec.name}), "
            "which give the teacher's distribution at 1 alone: use temperature 1, or the codec "
            "topk_tail."
        )
    if capture.backend == "vllm":
        return (
            f"{temperature} cannot be had from a cache that vLLM makes (capture.backend), whose "
            "log-probabilities give the teacher's distribution at 1 alone: use temperature 1, or "
            "backend transformers."
        )
    return (
        f"{temperature} is not one that the logit cache keeps: add it to capture.temperatures "
        f"(now {list(capture.temperatures)})."
    )


def _no_tail(config: Config) -> Iterator[str]:
    codec, divergence = config.capture.codec.name, config.loss.divergence
    if codec == "rskd" and divergence != "forward_kl":
        yield (
            f"loss.divergence {divergence} needs the mass of the tokens that are not kept, of "
            f"which draws say nothing (capture.codec is {codec}): use forward_kl, or the codec "
            "topk_tail."
        )


def _other_tokenizers(config: Config, block: GridBlock, where: str) -> Iterator[str]:
    """Students whose tokenizer is trained here from other settings than the teacher's."""
    read = getattr(config.teachers.get(block.teacher or ""), "tokenizer", None)
    for name in block.students:
        own = getattr(config.students.get(name), "tokenizer", None)
        if not (own in config.tokenizers and read in config.tokenizers):
            continue
        if _origin(config, own) != _origin(config, read):
            yield (
                f"{where}: student {name!r} reads with tokenizer {own!r}, teacher "
                f"{block.teacher!r} with {read!r}: a token id of its logit cache would mean "
                f"another token. Give the student tokenizer {read!r}, or distil from a synthetic "
                "corpus (a pipeline of data: corpus without logits)."
            )


def _origin(config: Config, tokenizer: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What decides a tokenizer that is trained here, as its recipe has it."""
    settings = config.tokenizers[tokenizer]
    problems = config.datasets.get(settings.dataset)
    return settings.identity(), problems.identity() if problems else None
