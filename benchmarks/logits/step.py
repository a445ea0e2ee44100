"""A training step with the teacher's cache beside plain fine-tuning: forward, loss, backward.

    python -m benchmarks.logits.step [--layers 1] [--rows 2] [--length 512] [--repeats 5]
                                     [--threads 2] [--out FILE]

A student of OLMo-2's width with random weights and few layers: the less body, the more the loss
counts, so the ratio is an upper bound of a whole model's. The optimizer's part, alike for all, is
left out too. `sft_transformers` is the loss of transformers itself, on the logits of all positions.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.logits.loss import ALPHA, TEMPERATURE, PeakMemory, clock, machine
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM

from angelshare.student.head import let_loss_run_inside
from angelshare.student.losses import TopK
from angelshare.student.settings import LossSettings
from angelshare.student.trainer import TargetLoss

VOCAB = 100_352
OLMO2_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
}
OLMO2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def random_model(shape: dict[str, int], device: str, dtype: torch.dtype) -> Olmo2ForCausalLM:
    """A model of this shape, untied as OLMo-2's are; of ``VOCAB`` tokens unless it says."""
    config = Olmo2Config(
        **{"vocab_size": VOCAB, **shape},
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Olmo2ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    let_loss_run_inside(model)
    return model.train()


def random_teacher(positions: int, kept: int, device: str) -> TopK:
    """What a cache would hold, with a tail of a tenth."""
    ids_Tk = torch.stack([torch.randperm(VOCAB, device=device)[:kept] for _ in range(positions)])
    logits_Tk = 3 * torch.randn(positions, kept, device=device)
    return TopK(
        token_ids_Tk=ids_Tk,
        log_probs_Tk=logits_Tk.log_softmax(-1) + torch.log(torch.tensor(0.9)),
        log_tail_T=torch.full((positions,), 0.1, device=device).log(),
        temperature=TEMPERATURE,
    )


def steps(
    model: Olmo2ForCausalLM, rows: int, length: int, *, kept: int = 100, repeats: int = 5
) -> dict[str, Any]:
    """Seconds and peak bytes of a step's kinds, and distillation over fine-tuning."""
    device = model.device.type
    torch.manual_seed(0)
    ids_BL = torch.randint(VOCAB, (rows, length), device=device)
    teacher = random_teacher(rows * (length - 1), kept, device)
    choice = LossSettings(alpha=ALPHA, temperature=TEMPERATURE)
    kinds: dict[str, Callable[[], Tensor]] = {
        "sft_transformers": lambda: model(input_ids=ids_BL, labels=ids_BL).loss,
        "sft": lambda: inside(model, ids_BL, TargetLoss(ids_BL, None, choice, VOCAB)),
        "kd": lambda: inside(model, ids_BL, TargetLoss(ids_BL, teacher, choice, VOCAB)),
    }
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(repeats + 1):
        for name, kind in kinds.items():
            model.zero_grad(set_to_none=True)
            if repeat == 0:
                # Memory is measured apart: it begins with giving back all that is free, and a step
                # that has to ask for it again is slower than one among others.
                with PeakMemory(device) as memory:
                    kind().backward()
                peaks[name] = memory.bytes
                continue
            began = clock(device)
            kind().backward()
            seconds[name].append(clock(device) - began)
    found = {
        name: {"time_s": statistics.median(seconds[name]), "peak_bytes": peaks[name]}
        for name in kinds
    }
    kd_s = found["kd"]["time_s"]
    return {
        "rows": rows,
        "length": length,
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
        "vocab": VOCAB,
        "kept": kept,
        "machine": machine(device),
        "repeats": repeats,
        "steps": found,
        "kd_over_sft": kd_s / found["sft"]["time_s"],
        "kd_over_sft_transformers": kd_s / found["sft_transformers"]["time_s"],
    }


def inside(model: Olmo2ForCausalLM, ids_BL: Tensor, loss_of: TargetLoss) -> Tensor:
    """The mean loss over a batch without padding."""
    sums = model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), loss_of=loss_of)
    return sums.loss / len(sums.cross_entropy_T)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = OLMO2_1B | {"num_hidden_layers": options.layers}
    model = random_model(shape, "cpu", torch.float32)
    result = steps(model, options.rows, options.length, repeats=options.repeats)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
