"""The loss and the training step at OLMo-2's shapes on a GPU, with random bfloat16 weights.

    python -m benchmarks.logits.gpu [--rows 4] [--length 2048] [--repeats 10] [--out FILE]

First the fused loss is compared with float64 on the CPU, so that its figures are of a loss that is
right; then time and memory of the loss alone (`loss`) and of a step of 1B and 7B students (`step`),
the latter's with gradient checkpointing and without an optimizer, and `capture` by both as teachers
beside their bare forward passes (the target is 5 %).
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch
from benchmarks.logits.capture import CODECS, capture, random_rows
from benchmarks.logits.loss import Sizes, World, loss
from benchmarks.logits.step import OLMO2_1B, OLMO2_7B, VOCAB, random_model, steps

from angelshare.student.fused import head_loss
from angelshare.student.settings import LossSettings

SHAPES = {"1B": OLMO2_1B, "7B": OLMO2_7B}


def correctness(device: str) -> dict[str, float]:
    """Largest relative errors of value and gradients in bfloat16, against float64 on the CPU."""
    sizes = Sizes(tokens=700, vocab=100_278, hidden=256)
    world = World.make(sizes, device, torch.bfloat16)
    vocab, choice = sizes.vocab, LossSettings(alpha=0.2, temperature=2.0)
    kept = world.kept(sizes.kept, 2.0)
    inputs = [t.clone().requires_grad_() for t in (world.hidden_TH, world.weight_VH)]
    value = head_loss(*inputs, None, world.targets_T, kept, choice, vocab).loss
    value.backward()
    exact = [t.detach().cpu().double().requires_grad_() for t in inputs]
    scaled = (exact[0] @ exact[1].T) / 2
    log_q = scaled.log_softmax(-1)
    ids, log_p = kept.token_ids_Tk.cpu(), kept.log_probs_Tk.cpu().double()
    inside = log_q.gather(-1, ids)
    outside = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1)
    log_tail = kept.log_tail_T.cpu().double()
    soft = (log_p.exp() * (log_p - inside)).sum() + (log_tail.exp() * (log_tail - outside)).sum()
    hard = -(2 * scaled).log_softmax(-1).gather(-1, world.targets_T.cpu()[:, None]).sum()
    expected = 0.2 * hard + 0.8 * 4 * soft
    expected.backward()
    pairs = [(value, expected), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]
    return {
        name: ((ours.detach().cpu().double() - true).norm() / true.norm()).item()
        for name, (ours, true) in zip(("value", "by_hidden", "by_head"), pairs, strict=True)
    }


def model_steps(rows: int, length: int, repeats: int) -> dict[str, Any]:
    """Steps of both shapes, one model in memory at a time."""
    found = {}
    for name, shape in SHAPES.items():
        model = random_model(shape, "cuda", torch.bfloat16)
        if name == "7B":
            model.gradient_checkpointing_enable()
        found[name] = steps(model, rows, length, repeats=repeats)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return found


def captures(rows: int, length: int, repeats: int) -> dict[str, Any]:
    """Captures by both shapes, every token but a row's first a target."""
    found = {}
    for name, shape in SHAPES.items():
        model = random_model(shape, "cuda", torch.bfloat16).eval()
        data = random_rows(8 * rows, length, VOCAB)
        found[name] = capture(model, data, VOCAB, CODECS, repeats)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tokens = options.rows * options.length
    result = {
        "errors": correctness("cuda"),
        "loss": [
            loss(Sizes(tokens=count), repeats=options.repeats, device="cuda")
            for count in (1024, tokens)
        ],
        "step": model_steps(options.rows, options.length, options.repeats),
        "capture": captures(options.rows, options.length, options.repeats),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
