"""`benchmarks/logits quality`: students of every codec, and the table that compares them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from benchmarks.logits.quality import main, mean_and_error, table_of
from benchmarks.logits.students import held_out, leave_out
from transformers import Olmo2Config, Olmo2ForCausalLM

from angelshare.data.sequences import encode_table
from angelshare.teacher.models import load_tokenizer, save_model


@pytest.fixture(scope="module")
def teacher(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers of random weights, with the tokenizer."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tokenizer_folder)
    model = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=5,
            num_attention_heads=2,
            pad_token_id=0,
            eos_token_id=None,
        )
    )
    folder = tmp_path_factory.mktemp("quality") / "teacher"
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_one_layer_in_so_many_is_left_out(teacher: Path) -> None:
    for every, kept in ((5, [0, 1, 3, 4]), (2, [0, 2, 4]), (3, [0, 2, 3])):
        model = Olmo2ForCausalLM.from_pretrained(teacher)
        layers = list(model.base_model.layers)
        leave_out(model, every)
        assert [layers.index(layer) for layer in model.base_model.layers] == kept
        assert model.config.num_hidden_layers == len(kept)
        assert [layer.self_attn.layer_idx for layer in model.base_model.layers] == [
            *range(len(kept))
        ]


def test_a_model_agrees_with_itself(teacher: Path, problems: pa.Table) -> None:
    tokenizer = load_tokenizer(teacher)
    rows = encode_table(problems.slice(0, 4), tokenizer, 64)
    found = held_out(teacher, teacher, rows, len(tokenizer))
    assert found["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert found["best_is_teachers"] == 1
    # Random weights know next to nothing of the labels.
    assert found["cross_entropy"] == pytest.approx(math.log(len(tokenizer)), rel=0.2)
    assert found["best_is_label"] < 0.3


def test_differences_are_taken_at_the_same_seed() -> None:
    found = {
        "top 100": {"bytes_per_target": 183.04, "runs": [{"ce": 1.0}, {"ce": 3.0}]},
        "hard": {"runs": [{"ce": 1.5}, {"ce": 3.5}]},
    }
    assert table_of(found, "top 100").splitlines()[2:] == [
        "| top 100 | 183.0 | 2.0000 ± 1.0000 |  |",
        "| hard |  | 2.5000 ± 1.0000 | +0.5000 ± 0.0000 |",
    ]
    assert mean_and_error([2.0], "+.1f") == "+2.0 ± 0.0000"


def test_every_contender_has_a_student_of_every_seed(
    teacher: Path, problems: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "quality.json"
    kept = problems.slice(0, 20).select(["messages"]).to_pylist()
    data.write_text("".join(json.dumps(row) + "\n" for row in kept))
    given = {"--model": teacher, "--data": data, "--steps": 2, "--jobs": 1, "--kept": 9}
    options = [str(part) for pair in given.items() for part in pair]
    main([*options, "--seeds", "1", "2", "--skip", "hard", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found.pop("command").endswith(f"--out {out}")
    assert set(found) == {"dense", "top 9", "top 9, top-p 0.98", "rskd 50"}
    for entry in found.values():
        assert len(entry["runs"]) == 2
        assert all(run["cross_entropy"] > 0 for run in entry["runs"])
    # Students of one seed begin alike; exact top-k of all tokens and of nine teach differently.
    assert found["dense"]["runs"] != found["top 9"]["runs"]
    assert found["dense"]["bytes_per_target"] > found["top 9"]["bytes_per_target"]
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 + len(found)
    assert "[8/8]" in printed.err


def test_what_cannot_be_compared_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options, why in (
        (["--model", "somewhere"], "--model needs --data"),
        (["--leave-out", "1"], "would leave no layer"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert why in capsys.readouterr().err
