"""Whether a grid's students can learn from what its teachers cache: said before their passes.

What only files can tell (two pretrained tokenizers) is refused when a student's training begins,
by the digest that the cache carries (`angelshare.student.dataset`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from angelshare.teacher.settings import AssistantTeacher, CaptureSettings, EmbeddedTeacher

if TYPE_CHECKING:
    from angelshare.config import Config, GridBlock
    from angelshare.student.settings import LossSettings


def cache_problems(config: Config) -> Iterator[str]:
    """One line for everything that a cache cannot give the loss that is to read it."""
    for where, block in config.blocks():
        pipeline = config.pipelines.get(block.pipeline)
        if pipeline is None:
            continue
        try:
            loss = config.loss_of(block.pipeline)
        except ValidationError:
            continue  # said with the pipeline's name, by the checks of names
        if pipeline.logits:
            yield from _unusable_temperatures(config, block, where, loss)
            yield from _no_tail(config, loss)
        if pipeline.on_policy and loss.by_rank:
            yield (
                f"pipelines.{block.pipeline}: loss.divergence {loss.divergence} compares what was "
                "cached with another tokenizer, and on_policy answers that no other one has read: "
                "take another divergence."
            )
        if pipeline.states or (pipeline.divergence and not loss.by_rank):
            yield from _other_tokenizers(config, block, where)
        if pipeline.on_policy:
            yield from _no_room(config, block, where)
        for role, name in pipeline.states.items():
            yield from _unusable_states(config, f"pipelines.{block.pipeline}.{role}", role, name)
            yield from _too_large(config, block, name)
            yield from _misnamed_layers(config, block, role, name)


def _no_room(config: Config, block: GridBlock, where: str) -> Iterator[str]:
    """Answers of the student that leave no token for a prompt, or too many processes."""
    changed = block.training.get("max_length", config.training.max_length)
    on_policy = config.pipelines[block.pipeline].on_policy
    if on_policy and isinstance(changed, int) and on_policy.max_new_tokens >= changed:
        yield (
            f"pipelines.{block.pipeline}.on_policy.max_new_tokens is {on_policy.max_new_tokens}, "
            f"training.max_length {changed} with the prompt: lower the one or raise the other."
        )
    for name in block.students:
        student = config.students.get(name)
        if student and config.training_processes(name) * student.nodes > 1:
            yield (
                f"{where}: student {name!r} is trained by several processes, and on_policy by one: "
                "set its gpus to 1 (or 0) and nodes to 1, or take a pipeline that reads a cache."
            )


def _unusable_states(config: Config, where: str, role: str, name: str) -> Iterator[str]:
    """States that are not there, or not of the kind that a term compares."""
    states = config.states.get(name)
    if states is None:
        known = ", ".join(sorted(config.states)) or "none"
        yield f"{where}: there is no {name!r} in states; known are {known}."
    elif role == "relations" and not states.pooled:
        yield (
            f"{where}: relations are between sequences, but states.{name} has a vector at every "
            "target: give it positions mean_of_tokens or mean_of_targets."
        )


def _misnamed_layers(config: Config, block: GridBlock, role: str, name: str) -> Iterator[str]:
    """Cached layers for which none of the student is named, or one that it has not."""
    where = {"features": "loss.feature", "relations": "loss.relation"}[role]
    term = config.loss.feature if role == "features" else config.loss.relation
    states = config.states.get(name)
    if states is None or term.layers is None:
        return
    cached = () if isinstance(states.layers, int) else states.layers
    unnamed = sorted(set(cached) - set(term.layers))
    if unnamed:
        yield f"{where}.layers names no layer of the student for {unnamed} of states.{name}."
    for student in block.students:
        depth = getattr(getattr(config.students.get(student), "init", None), "layers", None)
        if depth is not None and max(term.layers.values()) > depth:
            yield (
                f"{where}.layers names layer {max(term.layers.values())}, student {student!r} has "
                f"{depth} blocks."
            )


def _too_large(config: Config, block: GridBlock, name: str) -> Iterator[str]:
    """Caches of embedded teachers of which the configuration tells that they exceed their limit.

    One vector a sequence is known exactly, and of vectors at targets there is one a row at least.
    Of other teachers the job tells, before it loads the model.
    """
    first = next(iter(block.taught_by), "")
    states, teacher = config.states.get(name), config.teachers.get(first)
    if states is None or not isinstance(teacher, EmbeddedTeacher):
        return
    shape = teacher.demo
    layers = states.layers if isinstance(states.layers, int) else len(states.layers)
    deepest = layers if isinstance(states.layers, int) else max(states.layers)
    if deepest > shape.layers:
        yield (
            f"states.{name}.layers asks for {deepest}, teacher {first!r} has {shape.layers} blocks."
        )
    from_corpus = config.pipelines[block.pipeline].data == "corpus"
    for dataset in block.datasets:
        source = config.datasets.get(dataset)
        labelled = max(block.labelled, default=source.labelled if source else None)
        if source is None or labelled is None:
            continue
        rows = labelled + (source.unlabelled if from_corpus else 0)
        size = rows * layers * states.vector_bytes(shape.hidden_size)
        if size > states.limit_gb * 1e9:
            least = "" if states.pooled else "at least "
            yield (
                f"states.{name}: {rows:,} sequences of {dataset!r} take {least}{size / 1e9:,.4f} "
                f"GB, limit_gb is {states.limit_gb:g}. {states.ways_out()}"
            )


def _unusable_temperatures(
    config: Config, block: GridBlock, where: str, loss: LossSettings
) -> Iterator[str]:
    usable = config.capture.usable_temperatures
    for temperature in block.temperature:
        if temperature not in usable:
            yield f"{where}.temperature {_off_grid(config.capture, temperature)}"
    if not block.temperature and loss.temperature not in usable:
        yield f"loss.temperature {_off_grid(config.capture, loss.temperature)}"


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


def _no_tail(config: Config, loss: LossSettings) -> Iterator[str]:
    codec, divergence = config.capture.codec.name, loss.divergence
    if codec == "rskd" and divergence != "forward_kl":
        yield (
            f"loss.divergence {divergence} needs the mass of the tokens that are not kept, of "
            f"which draws say nothing (capture.codec is {codec}): use forward_kl, or the codec "
            "topk_tail."
        )


def _other_tokenizers(config: Config, block: GridBlock, where: str) -> Iterator[str]:
    """Students whose tokenizer is trained here from other settings than the teacher's."""
    ways_out = "distil from a synthetic corpus (a pipeline of data: corpus that reads nothing else)"
    if not config.pipelines[block.pipeline].states:
        ways_out += ", or compare ranks instead of tokens (loss: {divergence: uld} in the pipeline)"
    for name, teacher in itertools.product(block.students, block.taught_by):
        own = getattr(config.students.get(name), "tokenizer", None)
        read = _read_with(config, teacher)
        if not (own in config.tokenizers and read in config.tokenizers):
            continue
        if _origin(config, own) != _origin(config, read):
            yield (
                f"{where}: student {name!r} reads with tokenizer {own!r}, teacher "
                f"{teacher!r} with {read!r}: a token id of what it says would mean "
                f"another token. Give the student tokenizer {read!r}, or {ways_out}."
            )


def _read_with(config: Config, teacher: str) -> str | None:
    """The tokenizer, of those that are trained here, that a teacher reads with."""
    entry = config.teachers.get(teacher)
    if isinstance(entry, AssistantTeacher):
        return getattr(config.students.get(entry.student), "tokenizer", None)
    return getattr(entry, "tokenizer", None)


def _origin(config: Config, tokenizer: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What decides a tokenizer that is trained here, as its recipe has it."""
    settings = config.tokenizers[tokenizer]
    problems = config.datasets.get(settings.dataset)
    return settings.identity(), problems.identity() if problems else None
