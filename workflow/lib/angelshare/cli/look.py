"""Looking at a store: what it holds, what it cost, why something was not reused."""

from __future__ import annotations

import yaml
from rich.table import Table
from rich.tree import Tree

from angelshare.cli.common import (
    CONFIG,
    ConfigOption,
    StoreOption,
    app,
    find_artifact,
    open_store,
    out,
    read_config,
    sealed,
)
from angelshare.recipes import recipe_differences
from angelshare.store.artifacts import Artifact
from angelshare.store.verify import leftovers


@app.command("ls")
def list_command(store: StoreOption = None, config: ConfigOption = CONFIG) -> None:
    """List the artifacts of a store with size, joules and consumers."""
    from angelshare.energy.attempts import bill_of, read_attempts

    opened = open_store(store, config)
    table = Table("kind", "key", "parts", "rows", "bytes", "joules", "consumers", box=None)
    for artifact in opened.artifacts():
        manifest = sealed(artifact)
        table.add_row(
            artifact.kind,
            artifact.key,
            str(len(manifest.parts)) if manifest else "unsealed",
            f"{manifest.rows:,}" if manifest else "",
            f"{manifest.bytes:,}" if manifest else "",
            f"{bill_of(read_attempts(artifact.attempts)).energy_j:,.1f}",
            str(len(artifact.consumers())),
        )
    out.print(table)
    rest = leftovers(opened)
    if rest:
        out.print(f"{len(rest)} temporary files of killed jobs lie under {opened.root}.")


@app.command("show")
def show_command(key: str, store: StoreOption = None, config: ConfigOption = CONFIG) -> None:
    """Print an artifact's recipe, bill and consumers, and the tree of what it was made from."""
    from angelshare.energy.attempts import bill_of, read_attempts

    artifact = find_artifact(open_store(store, config), key)
    manifest = artifact.manifest()
    out.print(yaml.safe_dump(manifest.recipe, sort_keys=False).rstrip(), highlight=False)
    bill = bill_of(read_attempts(artifact.attempts))
    out.print(
        f"bill: {bill.energy_j:,.1f} J in {bill.attempts} attempts, {bill.wasted_j:,.1f} J wasted"
    )
    for consumer in artifact.consumers():
        out.print(f"read by {consumer.run} of {consumer.team}, {consumer.utc}", highlight=False)
    out.print(_origin(artifact))


def _origin(artifact: Artifact, role: str = "") -> Tree:
    """The tree of an artifact's inputs with the content digests it was really made from."""
    manifest = sealed(artifact)
    content = manifest.content_sha256[:12] if manifest else "gone"
    tree = Tree(f"{role}{artifact}  content {content}", highlight=False)
    for name, source in (manifest.recipe["inputs"] if manifest else {}).items():
        upstream = artifact.store.artifact(source["kind"], source["key"])
        tree.add(_origin(upstream, f"{name}: "))
    return tree


@app.command("diff")
def diff_command(
    key: str, other: str, store: StoreOption = None, config: ConfigOption = CONFIG
) -> None:
    """Say in what two recipes differ: why one artifact was not reused for the other."""
    opened = open_store(store, config)
    before, after = (find_artifact(opened, k).manifest().recipe for k in (key, other))
    table = Table("key", key, other, box=None)
    for path, left, right in recipe_differences(before, after):
        table.add_row(path, left, right)
    out.print(table)


@app.command("plan")
def plan_command(config: ConfigOption = CONFIG) -> None:
    """Say which shared artifacts are in the store already and which would be generated."""
    from angelshare.grid import plan_study

    checked = read_config(config)
    store = checked.store.open()
    study = plan_study(checked)
    table = Table("kind", "what", "key", "store", "runs", box=None)
    for plan in study.artifacts.values():
        readers = sum(plan in run.billed() for run in study.runs.values())
        present = store.artifact(plan.kind, plan.key).manifest_path.exists()
        state = "reused" if present else "to be made"
        table.add_row(plan.kind, plan.label, plan.key[:12], state, str(readers))
    out.print(table)
    out.print(f"{len(study.runs)} student runs")
