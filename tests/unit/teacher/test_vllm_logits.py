"""Capture by vLLM: the conversion by hand, and against transformers where vLLM is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tiny_teacher import PADDED_VOCABULARY, nothing

from angelshare.data.tables import write_table
from angelshare.data.tokenizer import save_tokenizer
from angelshare.errors import AngelshareError
from angelshare.teacher.cache import LogitCache
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.models import load_causal_lm, load_tokenizer, save_model
from angelshare.teacher.settings import CaptureSettings, RskdSettings, TopkTailSettings
from angelshare.teacher.vllm_logits import padding_mass, selected

TOP3 = TopkTailSettings(top_k=3, top_p=1.0)


@dataclass
class FlatLogprobs:
    """The fields of vLLM 0.32's object that are read; entry 0 of a prompt is empty."""

    start_indices: list[int] = field(default_factory=lambda: [0])
    end_indices: list[int] = field(default_factory=lambda: [0])
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def predict(self, token: int, probabilities: list[float], k: int) -> FlatLogprobs:
        """Append a position as vLLM does: the token that stands there, then the k best."""
        best = sorted(range(len(probabilities)), key=lambda v: -probabilities[v])[:k]
        self.start_indices.append(len(self.token_ids))
        self.token_ids += [token, *best]
        self.logprobs += [math.log(probabilities[v]) for v in (token, *best)]
        self.end_indices.append(len(self.token_ids))
        return self


FIRST, SECOND = [0.05, 0.5, 0.15, 0.25, 0.05], [0.1, 0.1, 0.6, 0.15, 0.05]
TARGETS = [False, False, True, True]


def prompt(k: int) -> FlatLogprobs:
    """Four tokens, of which those at 2 and 3 are targets: 3, among the best, and 4, not so."""
    flat = FlatLogprobs().predict(0, [0.9, 0.025, 0.025, 0.025, 0.025], k)
    return flat.predict(3, FIRST, k).predict(4, SECOND, k)


def test_entry_i_predicts_token_i_by_hand() -> None:
    found = selected(prompt(3), TARGETS, TOP3, vocab_size=5)
    assert found["kept"].tolist() == [3, 3]
    assert found["ids"].tolist() == [[1, 3, 2], [2, 3, 0]]
    np.testing.assert_allclose(np.exp(found["values"]), [[0.5, 0.25, 0.15], [0.6, 0.15, 0.1]], 1e-6)
    np.testing.assert_allclose(np.exp(found["gold_logprob"]), [0.25, 0.05], 1e-6)
    np.testing.assert_allclose(np.exp(found["log_tail"]), [[0.1], [0.15]], 1e-6)
    assert found["log_partition"].tolist() == [[0.0], [0.0]]
    assert np.isnan(found["entropy"]).all()


def test_top_p_moves_what_is_known_into_the_tail() -> None:
    cut = TopkTailSettings(top_k=3, top_p=0.7)
    found = selected(prompt(3), TARGETS, cut, vocab_size=5)
    assert found["kept"].tolist() == [2, 2]
    np.testing.assert_allclose(np.exp(found["log_tail"]), [[0.25], [0.25]], 1e-6)


def test_padding_rows_among_the_best_are_taken_out() -> None:
    """Of five rows the tokenizer has three: 3 and 4 pad, and 3 is among the best of both."""
    found = selected(prompt(3), TARGETS, TOP3, vocab_size=3)
    assert found["kept"].tolist() == [2, 2]
    assert found["ids"][:, :2].tolist() == [[1, 2], [2, 0]]
    without = np.array([[0.5, 0.15], [0.6, 0.1]]) / [[0.75], [0.85]]
    np.testing.assert_allclose(np.exp(found["values"][:, :2]), without, 1e-6)
    np.testing.assert_allclose(np.exp(found["log_tail"])[:, 0], 1 - without.sum(1), 1e-5)
    assert padding_mass(prompt(5), TARGETS, 3) == pytest.approx(0.3)


def test_where_all_tokens_are_kept_there_is_no_tail() -> None:
    everything = TopkTailSettings(top_k=5, top_p=1.0)
    found = selected(prompt(5), TARGETS, everything, vocab_size=5)
    assert found["kept"].tolist() == [5, 5]
    assert (np.exp(found["log_tail"]) < 1e-6).all()


def test_another_number_of_positions_is_refused() -> None:
    with pytest.raises(AngelshareError, match="4 positions for 3 tokens"):
        selected(prompt(3), TARGETS[1:], TOP3, vocab_size=5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperatures": (1.0, 2.0)}, r"with temperatures \[1.0\] where backend is vllm"),
        ({"codec": RskdSettings()}, "with the codec topk_tail where backend is vllm"),
        ({"backend": "transformers", "tensor_parallel": 2}, "use vllm"),
    ],
)
def test_what_a_back_end_cannot_give_is_refused_in_the_settings(changes, says) -> None:
    with pytest.raises(ValidationError, match=says):
        CaptureSettings(**{"backend": "vllm", "temperatures": (1.0,), **changes})


def test_the_back_end_is_part_of_the_recipe_and_the_gpus_are_not() -> None:
    one, other = (
        CaptureSettings(backend="vllm", temperatures=(1.0,), tensor_parallel=gpus)
        for gpus in (1, 4)
    )
    assert one.identity() == other.identity()
    assert one.identity() != CaptureSettings(temperatures=(1.0,)).identity()


# -- for real, in a process of its own: an engine and transformers do not mix ----------------------

CAPTURE = CaptureSettings(
    codec=TopkTailSettings(top_k=5, top_p=0.9), temperatures=(1.0,), max_length=90, batch_tokens=300
)
SCRIPT = """
import sys
from pathlib import Path
from angelshare.data.tables import read_table
from angelshare.errors import AngelshareError
from angelshare.teacher.logits import capture_logits
from angelshare.teacher.settings import CaptureSettings

folder = Path(sys.argv[1])
settings = CaptureSettings.model_validate_json((folder / "settings").read_text())
for name in ("heavy", "light"):
    try:
        capture_logits(
            folder / name, read_table(folder / "table"), settings, folder / f"{name}.parquet",
            progress=lambda *_: None, count=lambda **_: None,
        )
    except AngelshareError as error:
        (folder / f"{name}.error").write_text(str(error))
"""


def heavy_model(model_dir: Path, folder: Path) -> None:
    """The teacher with copies of tokens' rows in those that pad its head."""
    model, tokenizer = load_causal_lm(model_dir, device="cpu"), load_tokenizer(model_dir)
    head = model.get_output_embeddings().weight.detach()
    padding = len(head) - len(tokenizer)
    head[-padding:] = head[:padding]
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)


def light_model(model_dir: Path, folder: Path) -> None:
    """The teacher without rows that pad its head."""
    model, tokenizer = load_causal_lm(model_dir, device="cpu"), load_tokenizer(model_dir)
    model.resize_token_embeddings(len(tokenizer))
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)


@pytest.fixture(scope="module")
def made(model_dir, labelled, tmp_path_factory) -> Path:
    """A folder with what captures of two teachers left, with heavy padding rows and with none."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    folder = tmp_path_factory.mktemp("vllm-logits")
    heavy_model(model_dir, folder / "heavy")
    light_model(model_dir, folder / "light")
    write_table(labelled, folder / "table")
    settings = CaptureSettings.model_validate({**CAPTURE.model_dump(), "backend": "vllm"})
    (folder / "settings").write_text(settings.model_dump_json())
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        check=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    return folder


def test_it_agrees_with_the_capture_by_transformers(made, labelled, tmp_path) -> None:
    out = tmp_path / "transformers.parquet"
    capture_logits(made / "light", labelled, CAPTURE, out, progress=nothing, count=nothing)
    ours, theirs = LogitCache([out]), LogitCache([made / "light.parquet"])
    assert (len(theirs), theirs.info.targets) == (len(ours), ours.info.targets)
    for index in range(len(ours)):
        one, other = ours.row(index), theirs.row(index)
        assert (one.id, one.tokens_sha256) == (other.id, other.tokens_sha256)
        assert one.kept.tolist() == other.kept.tolist()
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("logits", "log_tail", "log_partition", "gold_logprob"):
            found, expected = getattr(other, name), getattr(one, name)
            # float16's spacing, and what another order of float32 sums makes of it
            np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2e-4, err_msg=name)
        assert np.isnan(other.entropy).all()


def test_what_it_cannot_give_stands_in_the_file(made) -> None:
    metadata = pq.read_schema(made / "light.parquet").metadata[b"angelshare"]
    values = json.loads(metadata)
    assert values["backend"] == "vllm"
    assert values["temperatures"] == [1.0]
    assert "entropy is NaN" in values["limits"]


def test_heavy_padding_rows_are_refused(made) -> None:
    message = (made / "heavy.error").read_text()
    assert "rows of its head that no token of the tokenizer has hold" in message
    assert "use capture.backend transformers" in message
    assert not (made / "heavy.parquet").exists()
    assert json.loads((made / "heavy/config.json").read_text())["vocab_size"] == PADDED_VOCABULARY
