"""What every command shares: the application, its common options, and opening a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from angelshare.accounting.units import J_PER_KWH
from angelshare.config import Config, load_config
from angelshare.errors import AngelshareError
from angelshare.store.artifacts import Artifact, ArtifactStore
from angelshare.store.records import Manifest, load

if TYPE_CHECKING:
    from angelshare.energy.sidecar import Bill

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="What is no rule: looking at the store, checking and sharing it, and reading results.",
    pretty_exceptions_enable=False,
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


def read_config(path: Path) -> Config:
    """The checked configuration in a YAML file.

    Raises:
        AngelshareError: when it cannot be read or is not valid.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AngelshareError(
            f"{path} cannot be read: {error}. Run in the checkout's root or give --config."
        ) from error
    if not isinstance(values, dict):
        raise AngelshareError(
            f"{path} is no configuration: it holds no `key: value` lines. Start from "
            "config/config.yaml or one of config/grids."
        )
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


def bill(artifact: Artifact) -> Bill:
    """What all attempts to make an artifact have cost."""
    from angelshare.energy.attempts import bill_of, read_attempts

    return bill_of(read_attempts(artifact.attempts))


def size(count: int) -> str:
    """Bytes in words, decimal: ``41.0 GB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def energy(energy_j: float) -> str:
    """Joules in words, from a watt-hour on as kilowatt-hours too."""
    kwh = f" ({energy_j / J_PER_KWH:,.3f} kWh)" if energy_j >= 3600 else ""
    return f"{energy_j:,.1f} J{kwh}"


def sealed(artifact: Artifact) -> Manifest | None:
    """The manifest of an artifact that was sealed; None for one that is still being made."""
    path = artifact.manifest_path
    return load(Manifest, path) if path.exists() else None
