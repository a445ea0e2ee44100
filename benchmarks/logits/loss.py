"""Time and peak memory of head and loss: chunked, beside the ways that hold all logits.

    python -m benchmarks.logits.loss [--tokens 1024] [--vocab 100352] [--hidden 2048] [--kept 100]
                                     [--repeats 5] [--threads 2] [--device cpu] [--out FILE]

Every contender takes hidden states of all target positions and the head's weight to a loss and its
gradients. *peak* is the highest memory during the call above what was there before it, *extra* the
same without the gradients, which every contender has to return. With a frozen head (`…_frozen`, as
under adapters) its gradient is not made, and the two hardly differ. On a CPU the peak is the
process's high-water mark of resident memory, reset before each call; on a GPU the allocator's.
Contenders take turns; times are medians of the repeats.

`dense_kl` is the usual way: logits of student and teacher in memory (the teacher's not counted),
log-softmax of both, KL over the whole vocabulary, cross-entropy. `paper` is the truncated loss of
the paper's harness on materialised logits, without its tail. `limit` is the time of the head's
three matrix products alone at the speed of one of them, measured in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, linear

from angelshare.student.fused import head_loss
from angelshare.student.losses import TopK
from angelshare.student.settings import LossSettings

TEMPERATURE, ALPHA = 2.0, 0.2
FROZEN = ("dense_kl", "forward_kl")
COMPARED = ("ce", "dense_kl", "paper", "forward_kl")
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is computed on."""

    tokens: int = 1024
    """Target positions."""
    vocab: int = 100_352
    """Tokens of the vocabulary."""
    hidden: int = 2048
    """Width of the hidden states."""
    kept: int = 100
    """Tokens that the teacher's cache keeps at a position."""

    @property
    def product_flop(self) -> float:
        """Arithmetic of one product of all positions with the head."""
        return 2.0 * self.tokens * self.vocab * self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Inputs that contenders share."""

    hidden_TH: Tensor
    weight_VH: Tensor
    targets_T: Tensor
    teacher_TV: Tensor

    @classmethod
    def make(cls, sizes: Sizes, device: str, dtype: torch.dtype) -> World:
        """Random inputs; the teacher's logits spread like those of a trained model."""
        torch.manual_seed(0)
        shape = {"device": device, "dtype": dtype}
        return cls(
            hidden_TH=torch.randn(sizes.tokens, sizes.hidden, **shape),
            weight_VH=torch.randn(sizes.vocab, sizes.hidden, **shape).mul_(sizes.hidden**-0.5),
            targets_T=torch.randint(sizes.vocab, (sizes.tokens,), device=device),
            teacher_TV=torch.randn(sizes.tokens, sizes.vocab, device=device).mul_(3),
        )

    def kept(self, k: int, temperature: float) -> TopK:
        """What a cache would hold of the teacher."""
        log_p_TV = (self.teacher_TV / temperature).log_softmax(-1)
        log_probs, ids = log_p_TV.topk(k, dim=-1)
        return TopK(
            token_ids_Tk=ids,
            log_probs_Tk=log_probs,
            log_tail_T=torch.log1p(-log_probs.exp().sum(-1)),
            temperature=temperature,
        )


def contenders(world: World, kept: int) -> dict[str, LossFunction]:
    """Losses by name, as functions of hidden states and head."""
    vocab, targets_T = len(world.weight_VH), world.targets_T

    def chunked(temperature: float, name: str, beta: float | None = None) -> LossFunction:
        choice = LossSettings(alpha=ALPHA, temperature=temperature, divergence=name, beta=beta)
        teacher = world.kept(kept, temperature)
        return lambda h, w: head_loss(h, w, None, targets_T, teacher, choice, vocab).loss

    teacher = world.kept(kept, TEMPERATURE)

    def hard(logits_TV: Tensor) -> Tensor:
        return cross_entropy(logits_TV.float(), targets_T, reduction="sum")

    def dense_kl(h: Tensor, w: Tensor) -> Tensor:
        logits_TV = linear(h, w)
        log_q_TV = (logits_TV.float() / TEMPERATURE).log_softmax(-1)
        log_p_TV = (world.teacher_TV / TEMPERATURE).log_softmax(-1)
        soft = kl_div(log_q_TV, log_p_TV, reduction="sum", log_target=True)
        return ALPHA * hard(logits_TV) + (1 - ALPHA) * TEMPERATURE**2 * soft

    def paper(h: Tensor, w: Tensor) -> Tensor:
        logits_TV = linear(h, w)
        log_q_TV = (logits_TV.float() / TEMPERATURE).log_softmax(-1)
        p_Tk = teacher.log_probs_Tk.exp()
        soft = p_Tk * (teacher.log_probs_Tk - log_q_TV.gather(-1, teacher.token_ids_Tk))
        return ALPHA * hard(logits_TV) + (1 - ALPHA) * TEMPERATURE**2 * soft.sum()

    plain = LossSettings(alpha=1.0)
    return {
        "ce_dense": lambda h, w: hard(linear(h, w)),
        "ce": lambda h, w: head_loss(h, w, None, targets_T, None, plain, vocab).loss,
        "dense_kl": dense_kl,
        "paper": paper,
        "forward_kl": chunked(TEMPERATURE, "forward_kl"),
        "forward_kl_at_1": chunked(1.0, "forward_kl"),
        "reverse_kl": chunked(TEMPERATURE, "reverse_kl"),
        "jsd": chunked(TEMPERATURE, "jsd", 0.5),
    } | liger(targets_T, world.weight_VH.is_cuda)


def liger(targets_T: Tensor, on_gpu: bool) -> dict[str, LossFunction]:
    """Liger's fused cross-entropy where it is installed; its kernels need a GPU."""
    if not on_gpu:
        return {}
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return {}
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return {"ce_liger": lambda h, w: loss(w, h, targets_T)}


class PeakMemory:
    """Bytes at the highest point within the block above those at its beginning."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")
        self.bytes = peak - self.before


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def clock(device: str) -> float:
    """Seconds, once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_flops(world: World, sizes: Sizes, device: str) -> float:
    """Measured floating-point operations a second of one product with the head."""
    with torch.no_grad():
        began = clock(device)
        torch.mm(world.hidden_TH, world.weight_VH.t())
        return sizes.product_flop / (clock(device) - began)


def loss(
    sizes: Sizes = Sizes(),
    *,
    repeats: int = 5,
    device: str = "cpu",
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Seconds and bytes of every contender, and the ratios that the targets are about.

    ``names`` leaves out all but these contenders; those of `COMPARED` have to be among them.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    world = World.make(sizes, device, dtype)
    losses = contenders(world, sizes.kept)
    losses = {name: losses[name] for name in names or losses}
    runs: dict[str, list[tuple[float, int]]] = {}
    speeds = []
    for _ in range(repeats + 1):
        speeds.append(matmul_flops(world, sizes, device))
        for name, function in losses.items():
            runs.setdefault(name, []).append(measure(function, world, device))
        for name in FROZEN:
            frozen = measure(losses[name], world, device, train_head=False)
            runs.setdefault(f"{name}_frozen", []).append(frozen)
    limit_s = 3 * sizes.product_flop / max(speeds[1:])
    rows = {name: summary(name, measured, world, limit_s) for name, measured in runs.items()}
    return {
        "sizes": {name: getattr(sizes, name) for name in Sizes.__slots__},
        "machine": machine(device),
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "matmul_flop_per_s": max(speeds[1:]),
        "limit_s": limit_s,
        "contenders": rows,
        "ratios": {
            "time, KD over cross-entropy": ratio(rows, "time_s", "forward_kl", "ce"),
            "time, KD over dense KL": ratio(rows, "time_s", "forward_kl", "dense_kl"),
            "time, KD over the paper's": ratio(rows, "time_s", "forward_kl", "paper"),
            "extra, KD over dense KL": ratio(rows, "extra_bytes", "forward_kl", "dense_kl"),
            "peak, KD over dense KL": ratio(rows, "peak_bytes", "forward_kl", "dense_kl"),
            "peak, KD over dense KL, head frozen": ratio(
                rows, "peak_bytes", "forward_kl_frozen", "dense_kl_frozen"
            ),
        },
    }


def measure(
    function: LossFunction, world: World, device: str, train_head: bool = True
) -> tuple[float, int]:
    """Seconds and peak bytes of loss and gradients."""
    hidden_TH = world.hidden_TH.detach().requires_grad_()
    weight_VH = world.weight_VH.detach().requires_grad_(train_head)
    with PeakMemory(device) as memory:
        began = clock(device)
        function(hidden_TH, weight_VH).backward()
        seconds = clock(device) - began
    return seconds, memory.bytes


def summary(
    name: str, measured: list[tuple[float, int]], world: World, limit_s: float
) -> dict[str, float]:
    """A contender's row; the first measurement warms up and counts for memory alone."""
    time_s = statistics.median(seconds for seconds, _ in measured[1:])
    peak = max(peak for _, peak in measured)
    returned = [world.hidden_TH] if name.endswith("_frozen") else [world.hidden_TH, world.weight_VH]
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in returned)
    return {
        "time_s": time_s,
        "over_limit": time_s / limit_s,
        "peak_bytes": peak,
        "extra_bytes": peak - gradients,
    }


def ratio(rows: dict[str, dict[str, float]], field: str, ours: str, theirs: str) -> float:
    """One contender's figure over another's."""
    return rows[ours][field] / rows[theirs][field]


def machine(device: str) -> str:
    """What the figures were measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in Sizes.__slots__:
        parser.add_argument(f"--{name}", type=int, default=getattr(Sizes(), name))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes.__slots__})
    text = json.dumps(loss(sizes, repeats=options.repeats, device=options.device), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
