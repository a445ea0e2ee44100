"""Numbers from elsewhere: bringing other programs' energies in, and accounting for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from angelshare.cli.common import app, out
from angelshare.errors import AngelshareError


@app.command("account")
def account_command(
    stages: Annotated[
        list[Path],
        typer.Option(help="CSV of stage energies (docs/accounting.md); may be repeated."),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tables.")],
    quality: Annotated[
        list[Path] | None, typer.Option(help="CSV of scores; may be repeated.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Draw the figures and the report there, too.")
    ] = False,
) -> None:
    """Make the accounting tables from energies measured elsewhere."""
    from angelshare.accounting.imported import account_csv

    tables = account_csv(stages, quality, out_dir)
    out.print(f"Tables in {out_dir}.", highlight=False)
    if report:
        from angelshare.report.figures import write_figures
        from angelshare.report.html import write_report

        write_figures(tables, out_dir / "figures")
        write_report(tables, out_dir / "report.html")
        out.print(f"Report: {out_dir / 'report.html'}", highlight=False)


@app.command("import")
def import_command(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="harness, codecarbon, sacct, tables")
    ],
    files: Annotated[list[Path], typer.Argument(help="Files or folders of that format.")],
    out_path: Annotated[Path, typer.Option("--out", help="The CSV of stages.")] = Path(
        "stages.csv"
    ),
    runs: Annotated[
        Path | None,
        typer.Option(help="CSV: id, and what run, pipeline, student, stage, artifact it is."),
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="With `tables`: also write the scores as CSV here.")
    ] = None,
) -> None:
    """Bring other programs' energies into the CSV that `angelshare account` reads.

    Each row says in `lacks` what its source does not know.
    """
    from angelshare.accounting.importers import (
        FORMATS,
        import_rows,
        write_own_quality,
        write_stages,
    )

    if form not in FORMATS:
        raise AngelshareError(f"{form} is no format; known are {', '.join(FORMATS)}.")
    rows = import_rows(form, files, runs)
    empty = write_stages(rows, out_path)
    if quality is not None and form == "tables":
        write_own_quality(files[0], quality)
    energy = sum(row["energy_kwh"] or 0.0 for row in rows)
    out.print(f"{out_path}: {len(rows)} rows, {energy:.4g} kWh in all.", highlight=False)
    for word in sorted({word for row in rows for word in (row["lacks"] or "").split("; ") if word}):
        out.print(f"  lacks: {word.replace('_', ' ')}", highlight=False)
    if empty:
        out.print(
            f"Fill in {', '.join(empty)} there, or give --runs, before `angelshare account`.",
            highlight=False,
        )
