"""Reading results, and measuring and accounting outside the workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from angelshare.cli.common import CONFIG, ConfigOption, app, out, read_config
from angelshare.errors import AngelshareError
from angelshare.files import publish_json


@app.command("findings")
def findings_command(config: ConfigOption = CONFIG) -> None:
    """Print where the report is, and what it says in three lines."""
    results = Path(read_config(config).results)
    path = results / "findings.txt"
    if not path.exists():
        raise AngelshareError(f"{path} is not there: run `snakemake --profile local` first.")
    out.print(f"\nReport: {results / 'report.html'}", highlight=False, soft_wrap=True)
    out.print(path.read_text().rstrip(), highlight=False, soft_wrap=True)


@app.command("meter", context_settings={"ignore_unknown_options": True})
def meter_command(
    command: Annotated[
        list[str] | None, typer.Argument(help="-- the command and its arguments")
    ] = None,
    out_path: Annotated[Path, typer.Option("--out", help="The sidecar.")] = Path("energy.json"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Where energy and carbon settings stand.")
    ] = None,
    join_: Annotated[
        bool, typer.Option("--join", help="As a part of the job whose window this runs in.")
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", help="No command: make one sidecar of these folders of ranks."),
    ] = None,
) -> None:
    """Measure any command: the same window and sidecar as a job of the workflow.

    Under srun, torchrun or mpirun each process leaves a record in energy.ranks; when all have
    ended, --merge energy.ranks makes one of them.
    """
    from angelshare.energy import CarbonSettings, EnergySettings
    from angelshare.energy.attempts import merge_folders, validate_sidecar
    from angelshare.energy.command import join, meter

    if bool(command) == bool(merge):
        raise AngelshareError("angelshare meter takes either a command after -- or --merge FOLDER.")
    if merge:
        publish_json(out_path, merge_folders(merge).to_json())
    elif join_:
        join(command or [])
        return
    else:
        checked = read_config(config) if config else None
        energy = checked.energy if checked else EnergySettings()
        carbon = checked.carbon if checked else CarbonSettings()
        out_path = meter(command or [], out_path, energy, carbon)
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
    """Export the records of all attempts, failed ones too, as codecarbon's emissions.csv."""
    from angelshare.energy.attempts import every_record
    from angelshare.energy.export import write_emissions

    records = every_record(folders)
    if not records:
        raise AngelshareError(f"no energy record under {', '.join(map(str, folders))}.")
    write_emissions(records, out_path)
    print(f"{out_path}: {len(records)} records")


@app.command("schemas")
def schemas_command() -> None:
    """Write the files that are generated from the code: JSON schemas and config/README.md."""
    from angelshare.generated import write_all

    for path in write_all(Path()):
        out.print(f"wrote {path}", highlight=False)
