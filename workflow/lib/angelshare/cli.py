"""``angelshare …``: what is no rule. Looking at the store, checking it, and reading results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from angelshare.config import Config, load_config
from angelshare.errors import AngelshareError
from angelshare.recipes import recipe_differences
from angelshare.store.artifacts import Artifact, ArtifactStore, Manifest, load
from angelshare.store.verify import leftovers, repair, verify

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
# A pipe or a file has no width: keys and paths stay whole.
out = Console(width=None if sys.stdout.isatty() else 200)

ConfigOption = Annotated[
    Path, typer.Option("--config", help="The configuration the workflow runs with.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="The store; default: the configuration's.")
]
CONFIG = Path("config/config.yaml")


def main() -> None:
    """Run a command; an `AngelshareError` is one message and exit status 1."""
    try:
        app()
    except AngelshareError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def read_config(path: Path) -> Config:
    """The checked configuration in a YAML file.

    Raises:
        AngelshareError: when it cannot be read or is not valid.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise AngelshareError(
            f"{path} cannot be read: {error}. Run in the checkout's root or give --config."
        ) from error
    return load_config(values, str(path))


def open_store(store: Path | None, config: Path) -> ArtifactStore:
    """The store named on the command line, else the configuration's."""
    opened = ArtifactStore(store) if store else read_config(config).store.open()
    if not opened.root.is_dir():
        raise AngelshareError(f"there is no store at {opened.root}.")
    return opened


def find_artifact(store: ArtifactStore, key: str) -> Artifact:
    """The one artifact whose key starts with ``key``.

    Raises:
        AngelshareError: when there is none, or more than one.
    """
    found = [artifact for artifact in store.artifacts() if artifact.key.startswith(key)]
    if len(found) != 1:
        raise AngelshareError(
            f"{len(found)} artifacts of {store.root} have a key that starts with {key!r}; "
            "`angelshare ls` lists them."
        )
    return found[0]


@app.command("verify")
def verify_command(
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
    repair_: Annotated[
        bool,
        typer.Option("--repair", help="Take away what is damaged; the next run makes it again."),
    ] = False,
) -> None:
    """Check every object against its name, every receipt and manifest against its recipe."""
    opened = open_store(store, config)
    with out.status("checking") as status:
        faults = verify(opened, lambda done, of: status.update(f"checked {done} of {of} artifacts"))
    for fault in faults:
        out.print(str(fault), soft_wrap=True, highlight=False)
    if not faults:
        out.print(f"{opened.root}: {sum(1 for _ in opened.artifacts())} artifacts are whole.")
        return
    if not repair_:
        raise AngelshareError(f"{len(faults)} faults. `angelshare verify --repair` mends them.")
    removed = repair(faults)
    out.print(f"Took away {removed} files. Run the workflow: it makes the missing parts again.")


@app.command("ls")
def list_command(store: StoreOption = None, config: ConfigOption = CONFIG) -> None:
    """List the artifacts of a store with size, joules and consumers."""
    from angelshare.energy.attempts import bill_of, read_attempts

    opened = open_store(store, config)
    table = Table("kind", "key", "parts", "rows", "bytes", "joules", "consumers", box=None)
    for artifact in opened.artifacts():
        manifest = _sealed(artifact)
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
    manifest = _sealed(artifact)
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


@app.command("pin")
def pin_command(
    key: str,
    reason: Annotated[str, typer.Option(help="Why it must stay.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Let it go again.")] = False,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Keep an artifact whatever the registered configurations reach."""
    from angelshare.store.gc import pin, unpin

    artifact = find_artifact(open_store(store, config), key)
    if remove:
        unpin(artifact)
    else:
        pin(artifact, reason)


@app.command("gc")
def gc_command(
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only say.")] = False,
    grace_days: Annotated[float, typer.Option(help="What is younger stays.")] = 14.0,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Free what no registered configuration reaches. Bills and consumer records stay."""
    from angelshare.energy.attempts import bill_of, read_attempts
    from angelshare.store.gc import collect, find_garbage

    garbage = find_garbage(open_store(store, config), grace_days)
    cost_j = 0.0
    for artifact in garbage.artifacts:
        bill = bill_of(read_attempts(artifact.attempts))
        cost_j += bill.energy_j
        out.print(f"{artifact}: cost {bill.energy_j:,.1f} J", highlight=False)
    out.print(
        f"{'Frees' if delete else 'Would free'} {garbage.bytes:,} bytes that cost "
        f"{cost_j:,.1f} J ({cost_j / 3.6e6:.3f} kWh) to make. {garbage.note}".rstrip(),
        highlight=False,
    )
    if delete:
        collect(garbage)
    elif garbage.artifacts or garbage.objects or garbage.temporary:
        out.print("Nothing was deleted; `angelshare gc --delete` does it.")


@app.command("catalogue")
def catalogue_command(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the two files.")] = Path(),
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Write catalogue.json and catalogue.html: what a store offers and what it cost."""
    from angelshare.store.catalogue import write_catalogue

    for path in write_catalogue(open_store(store, config), folder):
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command("withdraw")
def withdraw_command(
    run: Annotated[str, typer.Argument(help="The student run, as `angelshare show` names it.")],
    team: Annotated[
        str | None, typer.Option(help="Whose run; default: the configuration's team.")
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Take a deleted student run off the bills of what it read; the others' shares rise."""
    from angelshare.store.consumers import withdraw

    owner = team or read_config(config).store.team_id()
    artifacts = withdraw(open_store(store, config).root, run, owner)
    out.print(f"{run} of {owner} is no consumer of {artifacts} artifacts any more.")


UrlArgument = Annotated[str, typer.Argument(help="A folder, or any fsspec address (s3://…).")]


@app.command("push")
def push_command(
    url: UrlArgument,
    keys: Annotated[list[str], typer.Argument(help="Artifacts; their inputs are not sent.")],
    store: StoreOption = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Publish artifacts, with their receipts and measured joules, to another store."""
    from angelshare.store.transfer import Remote, push

    opened, remote = open_store(store, config), Remote(url)
    for key in keys:
        artifact = find_artifact(opened, key)
        done = push(artifact, remote, out.print)
        out.print(f"{artifact}: sent {done.objects} objects, {done.skipped} were there already")


@app.command("pull")
def pull_command(
    url: UrlArgument,
    keys: Annotated[
        list[str] | None, typer.Argument(help="Whole keys; default: what the study needs.")
    ] = None,
    config: ConfigOption = CONFIG,
) -> None:
    """Fetch what this configuration's study needs, where another store has it."""
    from angelshare.grid import plan_study
    from angelshare.store.transfer import Remote, pull

    checked, remote = read_config(config), Remote(url)
    store = checked.store.open()
    for plan in plan_study(checked).artifacts.values():
        wanted = plan.key in keys if keys else True
        here = store.artifact(plan.kind, plan.key).manifest_path.exists()
        if wanted and not here and remote.manifest(plan.kind, plan.key):
            done = pull(store, remote, plan.kind, plan.key, out.print)
            out.print(f"{plan.kind} {plan.label}: fetched {done.bytes:,} bytes")


def _sealed(artifact: Artifact) -> Manifest | None:
    path = artifact.manifest_path
    return load(Manifest, path) if path.exists() else None


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


@app.command("findings")
def findings_command(config: ConfigOption = CONFIG) -> None:
    """Print where the report is, and what it says in three lines."""
    results = Path(read_config(config).results)
    path = results / "findings.txt"
    if not path.exists():
        raise AngelshareError(f"{path} is not there: run `snakemake --profile local` first.")
    out.print(f"\nReport: {results / 'report.html'}", highlight=False, soft_wrap=True)
    out.print(path.read_text().rstrip(), highlight=False, soft_wrap=True)


@app.command("account")
def account_command(
    stages: Annotated[Path, typer.Option(help="CSV of stage energies (docs/accounting.md).")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tables.")],
    quality: Annotated[Path | None, typer.Option(help="CSV of scores.")] = None,
) -> None:
    """Make the accounting tables from energies measured elsewhere."""
    from angelshare.accounting.imported import account_csv

    account_csv(stages, quality, out_dir)
    out.print(f"Tables in {out_dir}.", highlight=False)


@app.command("meter", context_settings={"ignore_unknown_options": True})
def meter_command(
    command: Annotated[list[str], typer.Argument(help="-- the command and its arguments")],
    out_path: Annotated[Path, typer.Option("--out", help="The sidecar.")] = Path("energy.json"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Where energy and carbon settings stand.")
    ] = None,
) -> None:
    """Measure any command: the same window and sidecar as a job of the workflow."""
    from angelshare.energy import CarbonSettings, EnergySettings
    from angelshare.energy.attempts import validate_sidecar
    from angelshare.energy.command import meter

    checked = read_config(config) if config else None
    energy = checked.energy if checked else EnergySettings()
    carbon = checked.carbon if checked else CarbonSettings()
    meter(command, out_path, energy, carbon)
    total = validate_sidecar(out_path).total
    energy_j = total.energy_j
    bound = f"{energy_j.value:,.1f} J ({energy_j.low:,.1f} to {energy_j.high:,.1f})"
    missing = f", without {', '.join(total.missing)}" if total.missing else ""
    print(f"{out_path}: {bound}, {total.measured_j:,.1f} J of it measured{missing}")


@app.command("emissions")
def emissions_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of sidecars or attempts.")],
    out_path: Annotated[Path, typer.Option("--out")] = Path("emissions.csv"),
) -> None:
    """Export records as codecarbon's emissions.csv."""
    from angelshare.energy.attempts import validate_sidecar
    from angelshare.energy.export import write_emissions

    paths = sorted(path for folder in folders for path in folder.glob("**/*energy.json"))
    if not paths:
        raise AngelshareError(f"no *energy.json under {', '.join(map(str, folders))}.")
    write_emissions((validate_sidecar(path) for path in paths), out_path)
    print(f"{out_path}: {len(paths)} records")


@app.command("schemas")
def schemas_command() -> None:
    """Write the files that are generated from the code: JSON schemas and config/README.md."""
    from angelshare.generated import write_all

    for path in write_all(Path()):
        out.print(f"wrote {path}", highlight=False)
