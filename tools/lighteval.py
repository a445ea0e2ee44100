"""Lay out the environment of lighteval, the second evaluation engine.

It lies over the environment that runs this script: torch, transformers and all else that agrees are
read from there, and only what lighteval wants otherwise is installed. With --resolve the packages
are resolved anew and requirements-lighteval.lock is written.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements-lighteval.lock"
# What lighteval 0.13 still asks of huggingface_hub and xxhash is gone from later releases.
WANTED = ("lighteval==0.13.0", "huggingface_hub<2", "xxhash<4")


def main() -> None:
    """See the module."""
    asked = argparse.ArgumentParser(description="Lay out the environment of lighteval.")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--resolve", action="store_true", help=f"resolve anew and write {LOCK.name}")
    arguments = asked.parse_args()
    folder: Path = arguments.folder
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin/python"
    packages = Path(_said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # A venv's own packages come before those of a path file: they win where both have one.
    packages.joinpath("angelshare.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    what = WANTED if arguments.resolve else ("--no-deps", "--requirement", str(LOCK))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
    # Whenever its tasks are listed, lighteval 0.13 fetches this file, which it never reads; a node
    # without a network would fail there.
    packages.joinpath("lighteval/tasks/tasks/tinyBenchmarks.pkl").touch()
    if arguments.resolve:
        _write_lock(python, packages)
    release = _said(python, "-c", "import importlib.metadata as m; print(m.version('lighteval'))")
    print(f"lighteval {release} is in {folder}: evaluation.lighteval_python: {python}")


def _write_lock(python: Path, packages: Path) -> None:
    listed = _said(python, "-m", "pip", "list", "--format=freeze", f"--path={packages}")
    pins = (line.partition("==") for line in listed.splitlines())
    named = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pins}
    lines = [f"{name}=={named[name]}" for name in sorted(named) if name != "pip"]
    head = "# Written by `make lock`: what lighteval wants otherwise (see tools/lighteval.py).\n"
    LOCK.write_text(head + "\n".join(lines) + "\n")


def _said(python: Path, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
