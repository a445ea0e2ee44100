"""Real Snakemake on a small version of the embedded default.

The study is run once; each test works on a copy of the finished checkout. Copies keep their
modification times and their Snakemake metadata, as a checkout that was moved would.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEACHER_RULES = {
    "prepare_dataset",
    "train_tokenizer",
    "demo_teacher",
    "capture_logits",
    "capture_states",
    "generate_corpus",
    "evaluate_teacher",
    "seal",
}


class Checkout:
    """A folder with the project's files in which Snakemake can be run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_path = folder / "config/config.yaml"

    @classmethod
    def fresh(cls, folder: Path) -> Checkout:
        """A new clone: tracked files only, all of them younger than anything in a store."""
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "Snakefile", folder)
        shutil.copy(ROOT / "environment.yml", folder)
        for name in ("rules", "workflow", "config", "profiles", "local", "slurm"):
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
                copy_function=shutil.copy,
            )
        return cls(folder)

    def copy(self, folder: Path) -> Checkout:
        """This checkout with all it made, at another place."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Checkout(folder)

    def configure(self, **sections) -> None:
        """Replace whole sections of the configuration."""
        values = yaml.safe_load(self.config_path.read_text())
        values.update(sections)
        self.config_path.write_text(yaml.safe_dump(values, sort_keys=False))

    @property
    def config(self) -> dict:
        """The configuration as plain values."""
        return yaml.safe_load(self.config_path.read_text())

    @property
    def environment(self) -> dict[str, str]:
        """This environment's programs with the checkout's own library."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder / "workflow/lib")}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program of the environment here; return all it printed."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / command[0]), *command[1:]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env=self.environment,
        )
        printed = done.stdout + done.stderr
        if check:
            assert done.returncode == 0, printed
        else:
            assert done.returncode != 0, printed
        return printed

    def snakemake(self, *arguments: str, profile: str | None = "local", check: bool = True) -> str:
        """Run the workflow."""
        chosen = ["--profile", profile] if profile else ["--cores", "2"]
        return self.run("snakemake", *chosen, *arguments, check=check)

    def planned(self, *arguments: str, profile: str | None = "local") -> dict[str, int]:
        """How many jobs of each rule a dry run plans."""
        printed = self.snakemake("-n", *arguments, profile=profile)
        if "Nothing to be done" in printed:
            return {}
        table = printed.partition("Job stats:")[2].partition("total")[0]
        counts = dict(re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE))
        return {rule: int(count) for rule, count in counts.items()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Checkout:
    """The small study, run to its end once."""
    checkout = Checkout.fresh(tmp_path_factory.mktemp("finished") / "checkout")
    checkout.configure(**yaml.safe_load((Path(__file__).parent / "small.yaml").read_text()))
    checkout.snakemake("all_frontiers")
    return checkout


@pytest.fixture
def checkout(finished, tmp_path) -> Checkout:
    """A copy of the finished study."""
    return finished.copy(tmp_path / "checkout")


def pytest_collection_modifyitems(items):
    """Mark what runs Snakemake. Each worker makes the finished study for itself."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.workflow)
