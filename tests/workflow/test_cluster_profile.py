"""What the slurm profile would submit, without a cluster: dry runs."""

import re
import shutil
import subprocess
import sys

import yaml

from tests.workflow.conftest import ROOT

HARDWARE = {
    "gpus": 2,
    "threads": 4,
    "memory_mb": 9000,
    "runtime_min": 30,
    "part_rows": 600,
    "rules": {"train_student": {"gpus": 1, "memory_mb": 5000}},
}
SITE = {
    "all": {"slurm_account": "ours", "slurm_partition": "all"},
    "gpu": {"slurm_partition": "a100", "constraint": "nvlink&80gb"},
}


def planned_resources(checkout):
    """The resources of each job of a dry run, by rule; messages hide them otherwise."""
    for path in (checkout.folder / "rules").glob("*.smk"):
        text = re.sub(r'\n    message:\n        "[^\n]*"', "", path.read_text())
        path.write_text(text)
    printed = checkout.snakemake("-n", "all_frontiers", profile="slurm")
    found = {}
    for block in re.split(r"\n(?=(?:local)?rule \w+:)", printed):
        match = re.match(r"(?:local)?rule (\w+):", block)
        if match:
            named = re.search(r"^    resources: (.*)$", block, re.MULTILINE)
            pairs = dict(pair.split("=", 1) for pair in named[1].split(", ")) if named else {}
            found.setdefault(match[1], []).append(pairs)
    return found


def test_rules_ask_for_what_the_configuration_and_the_site_say(checkout):
    shutil.rmtree(checkout.folder / "results")
    checkout.configure(hardware=HARDWARE)
    (checkout.folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
    planned = planned_resources(checkout)
    student = planned["train_student"][0]
    assert (student["gpu"], student["mem_mb"]) == ("1", "5000")
    assert (student["runtime"], student["nodes"]) == ("30", "1")
    assert (student["slurm_partition"], student["slurm_account"]) == ("a100", "ours")
    assert student["constraint"] == "nvlink&80gb"
    assert planned["evaluate_student"][0]["gpu"] == "2"
    account = planned["account"][0]
    assert account["slurm_partition"] == "all"
    assert "gpu" not in account


def test_an_artifact_that_is_there_costs_no_gpu_job_and_a_missing_part_only_its_own(checkout):
    checkout.configure(hardware=HARDWARE)
    assert checkout.planned("all_frontiers", profile="slurm") == {}
    (part,) = checkout.folder.glob("artifacts/corpus/*/parts/00001.json")
    part.unlink()
    for manifest in checkout.folder.glob("artifacts/logits/*/manifest.json"):
        manifest.unlink()
    planned = planned_resources(checkout)
    on_gpus = {rule: len(jobs) for rule, jobs in planned.items() if "gpu" in jobs[0]}
    assert on_gpus == {"generate_corpus": 1}


def test_parsing_imports_nothing_heavy():
    """Each cluster job parses the Snakefile twice."""
    code = """
import sys
from pathlib import Path
from angelshare.config import load_config
from angelshare.grid import plan_study
import angelshare.store.gc, yaml
plan_study(load_config(yaml.safe_load(Path("config/config.yaml").read_text())))
heavy = {"torch", "transformers", "pandas", "polars", "pyarrow", "numpy", "scipy", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_snakefile_imports_nothing_heavy(checkout):
    """In Snakemake itself, which brings some modules of its own."""
    probe = """
heavy = {"torch", "transformers", "polars", "scipy", "matplotlib", "lm_eval"}
print("HEAVY", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    snakefile = checkout.folder / "Snakefile"
    snakefile.write_text(snakefile.read_text() + probe)
    assert "HEAVY []" in checkout.snakemake("-n", "all_frontiers")
