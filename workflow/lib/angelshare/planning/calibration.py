"""A few seconds of the real kind of work on this machine, measured: what a plan goes by before
there are records.

Training, a forward pass and decoding of a small OLMo-2, and the start of a job that loads the same
libraries. Joules and seconds per operation of each; operations as in `models`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from angelshare.config import Config
from angelshare.energy.attempts import validate_sidecar
from angelshare.energy.sidecar import Record
from angelshare.energy.windows import Job, window
from angelshare.planning.devices import PREFILL
from angelshare.planning.models import ModelSize, from_shape
from angelshare.planning.records import hardware_of
from angelshare.student.settings import ScratchStudent

SECONDS = 1.5
"""How long each kind of work is watched."""
LENGTH = 32
"""Tokens of a sequence; as many are decoded."""
_VOCABULARY = 256
_ON_GPU = {"hidden_size": 2048, "layers": 8, "heads": 16, "intermediate_size": 5504}
_ON_CPU = {"hidden_size": 256, "layers": 4, "heads": 4, "intermediate_size": 688}

Step = Callable[[], None]


def calibrate(config: Config, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure and return `hardware`, `model`, and for `start`, `train`, `forward` and `decode`
    `energy_j` and `duration_s`, with the `flops` of the latter three.

    The model is the study's largest student from scratch, so that a study of small models is
    judged by small ones; where its students are pretrained, a middling one.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            rule="calibrate",
            stage="prerun",
            role="prerun",
            sidecar=Path(folder) / "energy.json",
            attempts=Path(folder) / "attempts",
        )
        with window(job, config.energy) as opened:
            with opened.phase("start"):
                subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
            shape, size, steps = _work(config)
            flops = {}
            for kind, (step, each) in steps.items():
                step()
                with opened.phase(kind):
                    flops[kind] = each * _repeat(step, seconds)
        record = validate_sidecar(job.sidecar)
    env = record.env
    found: dict[str, Any] = {
        "hardware": hardware_of(
            [part.model_dump() for part in record.components], env.cpu_model if env else None
        ),
        "model": {"parameters": size.parameters, **shape},
        "start": _phase(record, "start"),
    }
    return found | {kind: {**_phase(record, kind), "flops": flops[kind]} for kind in steps}


def _repeat(step: Step, seconds: float) -> int:
    """Do a step for some time; how often it was done."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        step()
        count += 1
    return count


def _phase(record: Record, name: str) -> dict[str, float]:
    (phase,) = (one for one in record.phases or [] if one.name == name)
    return {"energy_j": phase.energy_j, "duration_s": phase.end_s - phase.start_s}


def _work(config: Config) -> tuple[dict[str, Any], ModelSize, dict[str, tuple[Step, float]]]:
    """The model's shape and size, and each kind of work as a step with its operations."""
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = _shape(config, device)
    size = from_shape("calibration", shape, _VOCABULARY)
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=_VOCABULARY,
            hidden_size=shape["hidden_size"],
            intermediate_size=shape["intermediate_size"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            max_position_embeddings=4 * LENGTH,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=None,
        )
    )
    if device == "cuda":
        model = model.to(device=device, dtype=torch.bfloat16)  # type: ignore[call-arg, arg-type]
    rows = config.training.batch_size
    decoded = min(config.generation.batch_size, config.evaluation.batch_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, _VOCABULARY, (max(rows, decoded), LENGTH), generator=generator)
    ids = ids.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        model(input_ids=ids[:rows], labels=ids[:rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise()

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=ids[:rows])
        synchronise()

    def decode() -> None:
        with torch.inference_mode():
            model.generate(  # type: ignore[misc]
                ids[:decoded],
                attention_mask=torch.ones_like(ids[:decoded]),
                max_new_tokens=LENGTH,
                do_sample=False,
            )
        synchronise()

    steps: dict[str, tuple[Step, float]] = {
        "train": (train, size.training_flops(rows * LENGTH, LENGTH)),
        "forward": (forward, size.forward_flops(rows * LENGTH, LENGTH)),
        "decode": (decode, size.forward_flops((1 + PREFILL) * decoded * LENGTH, 2 * LENGTH)),
    }
    return shape, size, steps


def _shape(config: Config, device: str) -> dict[str, Any]:
    """The largest student from scratch, else one that keeps the device busy and fits anywhere."""
    shapes = [
        student.init.model_dump()
        for student in config.students.values()
        if isinstance(student.init, ScratchStudent)
    ]
    if shapes:
        return max(shapes, key=lambda one: from_shape("", one, _VOCABULARY).parameters)
    return dict(_ON_GPU if device == "cuda" else _ON_CPU)
