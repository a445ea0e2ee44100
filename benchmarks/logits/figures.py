"""The benchmark's one table: every figure with its unit, its target and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Figure = dict[str, Any]


def figure(
    name: str,
    value: float,
    unit: str,
    meaning: str,
    *,
    most: float | None = None,
    least: float | None = None,
) -> Figure:
    """A row: ``most`` and ``least`` are targets, ``met`` says whether the value keeps them."""
    met = None
    if most is not None or least is not None:
        met = (most is None or value <= most) and (least is None or value >= least)
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "most": most,
        "least": least,
        "met": met,
        "meaning": meaning,
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Every row of the table, from what was measured."""
    return [
        *_storage(found),
        *_capture(found["capture"]),
        *_reading(found),
        *_loss(found["loss"]),
        *_step(found["step"]),
    ]


def _storage(found: dict[str, Any]) -> Iterator[Figure]:
    stored, teacher = found["storage"], found["teacher"]
    paper = stored["paper"]
    yield figure(
        "paper, bytes per position",
        paper["bytes_per_position"],
        "B",
        "(a) top 100 as float64 and int64, prompts and padding too, an Arrow file",
    )
    yield figure(
        "paper, bytes per target",
        paper["bytes_per_target"],
        "B",
        "(a) at its own 5.72 positions per target",
    )
    where = f"{found['targets']:,} targets of {found['vocabulary']:,} tokens, teacher {teacher}"
    for name, most in (("topk_tail", 120), ("rskd", 40), ("top 100", None)):
        one = stored[name]
        yield figure(
            f"{name}, bytes per target",
            one["bytes_per_target"],
            "B",
            f"file over targets, {one['kept']:.1f} tokens kept; {where}",
            most=most,
        )
        yield figure(
            f"{name}, over entropy",
            one["ours_over_entropy"],
            "×",
            "over (d), the order-0 entropy of the file's numbers",
        )
        yield figure(
            f"{name}, paper over ours",
            one["paper_per_position_over_ours"],
            "×",
            "(a) per position over ours per target",
            least=None if name == "top 100" else 13,
        )


def _capture(timed: dict[str, Any]) -> Iterator[Figure]:
    where = (
        f"{timed['layers']} layers of {timed['hidden']}, {timed['tokens']:,} tokens, "
        f"{timed['targets']:,} targets, {timed['device']}"
    )
    most = 0.15 if timed["device"] == "cpu" else 0.05
    for name in ("topk_tail", "rskd"):
        one = timed[name]
        yield figure(f"capture {name}", one["tokens_per_s"], "tokens/s", where)
        yield figure(
            f"capture {name}, over forward",
            one["over_forward"],
            "share",
            "whole capture over the model as called, logits everywhere; fewer layers, more",
            most=most,
        )
        yield figure(
            f"capture {name}, over body",
            one["over_base"],
            "share",
            "over the model without its head",
        )


def _reading(found: dict[str, Any]) -> Iterator[Figure]:
    for name, read in found["reading"].items():
        for way, meaning in (
            ("cold", "random rows as batches, one row group in memory"),
            ("warm", "the same, all in memory"),
        ):
            yield figure(f"read {name}, {way}", read[way]["targets_per_s"], "targets/s", meaning)
    for way, one in found["waiting"].items():
        yield figure(
            f"training waits, {way}",
            one["share"],
            "share",
            f"in the loader's next, of a step of {one['step_s']:.2f} s; "
            f"{one['parameters'] / 1e6:.0f} M parameters, {one['tokens']:,.0f} tokens",
            most=0.01,
        )


def _loss(measured: dict[str, Any]) -> Iterator[Figure]:
    sizes, rows, ratios = measured["sizes"], measured["contenders"], measured["ratios"]
    where = f"{sizes['tokens']:,} tokens, {sizes['vocab']:,} × {sizes['hidden']:,}, forward KL"
    ours = rows["forward_kl"]
    yield figure("loss, time", ours["time_s"], "s", f"head, loss and their gradients; {where}")
    yield figure(
        "loss, over limit", ours["over_limit"], "×", "(d) the head's three products alone, measured"
    )
    for name, against in (
        ("cross-entropy", "(c) chunked as ours"),
        ("dense KL", "(b) on materialised logits"),
        ("the paper's", "(a) truncated, on materialised logits"),
    ):
        yield figure(f"loss, time over {name}", ratios[f"time, KD over {name}"], "×", against)
    yield figure(
        "loss, peak memory", ours["peak_bytes"] / 2**20, "MiB", "above what was there before it"
    )
    yield figure(
        "loss, extra over dense KL",
        ratios["extra, KD over dense KL"],
        "×",
        "peak memory without the returned gradients, over (b)'s",
        most=0.2,
    )


def _step(measured: dict[str, Any]) -> Iterator[Figure]:
    where = (
        f"{measured['layers']} layer of {measured['hidden']}, {measured['vocab']:,} tokens, "
        f"{measured['rows']} × {measured['length']}; more layers, less"
    )
    yield figure(
        "step, KD over SFT",
        measured["kd_over_sft"],
        "×",
        f"forward, loss, backward, both losses ours; {where}",
        most=1.1,
    )
    yield figure(
        "step, KD over transformers' SFT",
        measured["kd_over_sft_transformers"],
        "×",
        "the same over the loss of transformers",
        most=1.1,
    )


def table_of(rows: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | target | | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        target = ""
        if row["most"] is not None:
            target = f"≤ {_shown(row['most'], row['unit'])}"
        if row["least"] is not None:
            target = f"≥ {_shown(row['least'], row['unit'])}"
        met = {None: "", True: "met", False: "missed"}[row["met"]]
        value = _shown(row["value"], row["unit"])
        lines.append(f"| {row['name']} | {value} | {target} | {met} | {row['meaning']} |")
    return "\n".join(lines)


def _shown(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.2%}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}"
