"""Death, full disks and read errors in the workflow's own scripts.

The real scripts of dataset, capture, generation and sealing run here in forked processes, with a
tiny teacher from a folder, energy window and all. They are killed at random moments
(``ANGELSHARE_KILLS`` times, 5 by default) or meet a disk that fails. After each, `verify` finds
nothing broken, and in the end the store holds what an undisturbed one holds.
"""

import errno
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import Olmo2Config, Olmo2ForCausalLM

from angelshare.config import load_config
from angelshare.data.settings import TokenizerSettings, WordProblems
from angelshare.data.tokenizer import problem_tokenizer, save_tokenizer
from angelshare.energy.attempts import read_attempts
from angelshare.evaluation import harness  # noqa: F401  (children inherit what is imported here)
from angelshare.grid import plan_study
from angelshare.recipes import Recipe
from angelshare.store import objects as objects_module
from angelshare.store.artifacts import ArtifactStore
from angelshare.store.verify import repair, verify
from angelshare.teacher import generate, logits, transformers_backend  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ANGELSHARE_KILLS", "5"))
FORK = multiprocessing.get_context("fork")
PROBLEMS = {"source": "word_problems", "labelled": 24, "unlabelled": 8, "validation": 4, "test": 4}
SCRIPTS = {
    "dataset": "prepare_dataset",
    "logits": "capture_logits",
    "corpus": "generate_corpus",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model folder that takes milliseconds to load."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = problem_tokenizer(TokenizerSettings(), WordProblems())
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=96,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Olmo2ForCausalLM(config).save_pretrained(folder)
    return folder


class Work:
    """A store and the jobs that fill it: dataset, logits in three parts, a corpus in four."""

    def __init__(self, folder: Path, store: Path, teacher: Path) -> None:
        self.folder, self.store = folder, store
        values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        block = {"students": ["tiny"], "datasets": ["problems"], "teacher": "big", "seeds": [1]}
        self.config = values | {
            "results": str(folder / "results"),
            "store": {"root": str(store), "team": "ours"},
            "datasets": {"problems": PROBLEMS},
            "teachers": {"big": {"model": str(teacher), "license": "MIT"}},
            "hardware": {"part_rows": 8},
            "grid": [{"pipeline": pipeline} | block for pipeline in ("kd", "synthetic_sft")],
        }
        study = plan_study(load_config(self.config))
        self.plans = [plan for plan in study.artifacts.values() if plan.kind in SCRIPTS]

    def run(self) -> None:
        """All jobs one after the other; what is there already takes a moment."""
        folder = self.folder / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(folder)
        sys.path.insert(0, str(ROOT / "workflow/scripts"))
        for plan in self.plans:
            artifact = ArtifactStore(self.store).artifact(plan.kind, plan.key)
            for part in range(plan.parts):
                path = artifact.receipt_path(part)
                sidecar = path.with_suffix(".energy.json")
                if not path.exists() or not sidecar.exists():
                    outputs = {"receipt": str(path), "energy": str(sidecar)}
                    wildcards = {"key": plan.key, "part": path.stem}
                    self.job(SCRIPTS[plan.kind], wildcards, outputs, plan.recipe)
            if not artifact.manifest_path.exists():
                outputs = {
                    "manifest": str(artifact.manifest_path),
                    "energy": str(artifact.folder / "energy.json"),
                }
                self.job("seal", {"kind": plan.kind, "key": plan.key}, outputs, plan.recipe)

    def job(
        self,
        script: str,
        wildcards: Mapping[str, str],
        outputs: Mapping[str, str],
        recipe: Recipe,
    ) -> None:
        """One script, as Snakemake runs it."""
        snakemake = SimpleNamespace(
            rule=script,
            config=self.config,
            wildcards=SimpleNamespace(**wildcards),
            output=SimpleNamespace(**outputs),
            params=SimpleNamespace(recipe=recipe),
            log=[str(self.folder / "log")],
            threads=1,
            resources={"gpu": 0},
        )
        path = ROOT / "workflow/scripts" / f"{script}.py"
        runpy.run_path(str(path), init_globals={"snakemake": snakemake})

    def start(self, before=lambda: None):
        """The jobs in a process of their own."""

        def body():
            before()
            self.run()

        process = FORK.Process(target=body)
        process.start()
        return process

    def finish(self) -> None:
        process = self.start()
        process.join(120)
        assert process.exitcode == 0, (self.folder / "log").read_text()

    def contents(self) -> dict[str, str]:
        """The content digest of each artifact, by kind, and the names of all objects."""
        store = ArtifactStore(self.store)
        digests = {
            plan.kind: store.artifact(plan.kind, plan.key).manifest().content_sha256
            for plan in self.plans
        }
        names = sorted(path.name for path in (self.store / "objects").glob("*/*"))
        return digests | {"objects": " ".join(names)}

    def faults(self) -> list[str]:
        """What is broken; a part that a receipt does not name yet is only unfinished."""
        found = verify(ArtifactStore(self.store))
        return [str(fault) for fault in found if "its receipt is missing" not in fault.text]


@pytest.fixture(scope="module")
def undisturbed(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    work = Work(folder, folder / "store", teacher)
    began = time.monotonic()
    work.finish()
    assert work.faults() == []
    return work.contents(), time.monotonic() - began


def test_killed_at_random_moments(undisturbed, teacher, tmp_path):
    contents, whole_s = undisturbed
    work = Work(tmp_path, tmp_path / "store", teacher)
    moments = random.Random(20)
    killed = 0
    while killed < KILLS:
        process = work.start()
        process.join(moments.uniform(0.0, whole_s / 2))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            # All was there: forget one artifact, or the next one would find nothing to do.
            assert process.exitcode == 0
            kind = moments.choice(["logits", "corpus"])
            for path in (work.store / kind).glob("*/*.json"):
                path.unlink()
            for path in (work.store / kind).glob("*/parts/*"):
                path.unlink()
        if work.store.exists():
            assert work.faults() == []
    work.finish()
    assert work.faults() == []
    assert work.contents() == contents
    records = [r for folder in work.store.glob("*/*/attempts") for r in read_attempts(folder)]
    assert {record.record.status for record in records} <= {"ok", "killed"}


def test_a_disk_that_fills_up(undisturbed, teacher, tmp_path):
    contents, _ = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root mounts a file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.strip()}")
    try:
        work = Work(tmp_path, disk / "store", teacher)
        filler = disk / "somebody-elses"
        for left in (0, 40_000, 90_000):
            free = shutil.disk_usage(disk).free
            filler.write_bytes(b"x" * (free - left))
            process = work.start()
            process.join(120)
            assert process.exitcode not in (0, None), left
            filler.unlink()
            if work.store.exists():
                assert work.faults() == []
        work.finish()
        assert work.faults() == []
        assert work.contents() == contents
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_read_error_stops_the_job_and_costs_nothing(undisturbed, teacher, tmp_path):
    contents, _ = undisturbed
    work = Work(tmp_path, tmp_path / "store", teacher)
    work.finish()
    for path in (work.store / "logits").glob("*/parts/*"):
        path.unlink()

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def break_the_disk():
        objects_module.hashlib.file_digest = fail

    process = work.start(break_the_disk)
    process.join(60)
    assert process.exitcode == 1
    assert "Input/output error" in (tmp_path / "log").read_text()
    assert list((work.store / "logits").glob("*/parts/?????.json")) == []
    assert work.faults() == []
    work.finish()
    assert work.contents() == contents


def test_a_damaged_input_stops_the_job_before_it_publishes(undisturbed, teacher, tmp_path):
    contents, _ = undisturbed
    work = Work(tmp_path, tmp_path / "store", teacher)
    work.finish()
    for path in (work.store / "logits").glob("*/parts/*"):
        path.unlink()
    dataset = ArtifactStore(work.store).artifact("dataset", work.plans[0].key)
    (victim,) = (path for path in dataset.paths() if path.suffix == ".parquet")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    process = work.start()
    process.join(60)
    assert process.exitcode == 1
    log = (tmp_path / "log").read_text()
    assert f"dataset {dataset.key}, part 0, data.parquet" in log
    assert "angelshare verify --repair" in log
    assert list((work.store / "logits").glob("*/parts/?????.json")) == []
    assert list((work.store / "logits").glob("*/unfinished/*/*.piece")) == []
    repair(verify(ArtifactStore(work.store)))
    work.finish()
    assert work.contents() == contents


def test_receipts_say_what_was_read_and_with_what(undisturbed, teacher, tmp_path):
    work = Work(tmp_path, tmp_path / "store", teacher)
    work.finish()
    store = ArtifactStore(work.store)
    dataset, *_ = work.plans
    content = store.artifact("dataset", dataset.key).manifest().content_sha256
    for plan in work.plans[1:]:
        for part in store.artifact(plan.kind, plan.key).manifest().parts:
            assert part.inputs == {"sequences": content}
            assert part.input_keys == {"sequences": f"dataset/{dataset.key}"}
            made = part.provenance
            assert {"torch", "transformers", "python", "angelshare"} <= set(made.software)
            assert made.device == "cpu"
            assert set(made.model_files) >= {"config.json", "model.safetensors", "tokenizer.json"}
            assert len(made.tokenizer_sha256 or "") == 64
            assert "MIT" in made.licences.values()
            assert made.restricted == []
    text = json.dumps(part.model_dump())
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text
