"""Looking at a store: what it holds, what it cost, why something was not reused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import yaml
from rich.table import Table
from rich.tree import Tree

from angelshare.cli.common import (
    CONFIG,
    ConfigOption,
    StoreOption,
    app,
    bill,
    energy,
    find_artifact,
    open_store,
    out,
    sealed,
    size,
)
from angelshare.errors import AngelshareError
from angelshare.recipes import recipe_differences
from angelshare.store.artifacts import Artifact
from angelshare.store.changes import Contents
from angelshare.store.provenance import Provenance, licence_texts, restricted_models, restriction
from angelshare.store.records import Manifest
from angelshare.store.verify import leftovers


@app.command("ls")
def list_command(store: StoreOption = None, config: ConfigOption = CONFIG) -> None:
    """List the artifacts of a store with size, joules, consumers and last use.

    A damaged one is listed as such, and makes the command fail at its end.
    """
    opened = open_store(store, config)
    contents = Contents(opened)
    table = Table(
        "kind", "key", "parts", "rows", "size", "joules", "consumers", "last use", "note", box=None
    )
    damaged = []
    for artifact in opened.artifacts():
        try:
            table.add_row(artifact.kind, artifact.key, *_listed(artifact, contents))
        except AngelshareError as error:
            damaged.append(str(error))
            table.add_row(artifact.kind, artifact.key, "damaged")
    out.print(table)
    rest = leftovers(opened)
    if rest:
        out.print(f"{len(rest)} temporary files of killed jobs lie under {opened.root}.")
    if damaged:
        raise AngelshareError("\n".join(damaged))


def _listed(artifact: Artifact, contents: Contents) -> Iterator[str]:
    """What the list says of an artifact behind its kind and key."""
    from angelshare.store.gc import last_use_s

    manifest = sealed(artifact)
    yield str(len(manifest.parts)) if manifest else "unsealed"
    yield f"{manifest.rows:,}" if manifest else ""
    yield size(manifest.bytes) if manifest else ""
    yield _joules(artifact)
    yield str(len(artifact.consumers()))
    yield f"{datetime.fromtimestamp(last_use_s(artifact), UTC):%Y-%m-%d}"
    yield "; ".join(_notes(manifest, contents)) if manifest else ""


def _joules(artifact: Artifact) -> str:
    try:
        return f"{bill(artifact).energy_j:,.1f}"
    except AngelshareError:
        return "damaged"


def _notes(manifest: Manifest, contents: Contents) -> Iterator[str]:
    """What a reader of a list must know of an artifact."""
    if any(any(contents.changed(part, manifest.recipe)) for part in manifest.parts):
        yield "made from a former input"
    if restricted_models(part.provenance for part in manifest.parts):
        yield "licence restricts training on it"


@app.command("show")
def show_command(key: str, store: StoreOption = None, config: ConfigOption = CONFIG) -> None:
    """Print an artifact's recipe, bill, consumers and provenance, and the tree of what it was made
    from."""
    artifact = find_artifact(open_store(store, config), key)
    manifest = _manifest(artifact)
    say = _say
    say(yaml.safe_dump(manifest.recipe, sort_keys=False).rstrip())
    cost = bill(artifact)
    say(
        f"bill: {energy(cost.energy_j)} in {cost.attempts} attempts, {energy(cost.wasted_j)} wasted"
    )
    for consumer in artifact.consumers():
        other = consumer.content_sha256 not in (None, manifest.content_sha256)
        mark = f", as it was then: content {(consumer.content_sha256 or '')[:12]}" if other else ""
        say(f"read by {consumer.run} of {consumer.team}, {consumer.utc}{mark}")
    records = manifest.provenances
    for record, parts in records:
        say("\n".join(_made_with(record, parts if len(records) > 1 else None)))
    for name, text in licence_texts(record for record, _ in records).items():
        say(f"licence of {name}: {text}")
    models = restricted_models(record for record, _ in records)
    if models:
        say(f"warning: {restriction(models)}")
    out.print(_origin(artifact, Contents(artifact.store)))


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def _made_with(record: Provenance, parts: list[int] | None) -> Iterator[str]:
    """What parts were made with; ``parts`` where not all were made with the same."""
    which = "" if parts is None else f" (parts {_ranges(parts)})"
    if record.software:
        versions = ", ".join(f"{name} {value}" for name, value in record.software.items())
        yield f"made with{which}: {versions}{f', on {record.device}' if record.device else ''}"
    if record.tokenizer_sha256:
        yield (
            f"tokenizer{which}: {record.tokenizer_sha256[:12]}, chat template "
            f"{(record.chat_template_sha256 or 'none')[:12]}"
        )
    for name, sha256 in record.model_files.items():
        yield f"model file{which} {name}: {sha256[:12]}"


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in words: ``0-3, 5``."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _manifest(artifact: Artifact) -> Manifest:
    """The manifest of a sealed artifact; a clear error for one that is still being made."""
    if not artifact.manifest_path.exists():
        parts = len(list((artifact.folder / "parts").glob("[0-9]" * 5 + ".json")))
        raise AngelshareError(
            f"{artifact} is not sealed yet: {parts} parts are there. Run the workflow to finish it."
        )
    return artifact.manifest()


def _origin(artifact: Artifact, contents: Contents, role: str = "", mark: str = "") -> Tree:
    """The tree of an artifact's inputs with the content digests it was really made from."""
    manifest = sealed(artifact)
    content = manifest.content_sha256[:12] if manifest else "not in this store"
    tree = Tree(f"{role}{artifact}  content {content}{mark}", highlight=False)
    changes = {
        change.role: change
        for part in (manifest.parts if manifest else [])
        for change in contents.changed(part, manifest.recipe if manifest else {})
    }
    for name, source in (manifest.recipe.get("inputs", {}) if manifest else {}).items():
        upstream = artifact.store.artifact(source["kind"], source["key"])
        change = changes.get(name)
        changed = f"  CHANGED: made from {change.made_from[:12]}" if change else ""
        tree.add(_origin(upstream, contents, f"{name}: ", changed))
    return tree


@app.command("diff")
def diff_command(
    key: str, other: str, store: StoreOption = None, config: ConfigOption = CONFIG
) -> None:
    """Say in what two recipes differ: why one artifact was not reused for the other."""
    opened = open_store(store, config)
    before, after = (_manifest(find_artifact(opened, k)).recipe for k in (key, other))
    table = Table("key", key, other, box=None)
    for path, left, right in recipe_differences(before, after):
        table.add_row(path, left, right)
    out.print(table)
