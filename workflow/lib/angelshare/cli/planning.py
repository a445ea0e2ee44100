"""Planning before spending: what a study will cost, and what to run for a given budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from angelshare.accounting.units import J_PER_KWH
from angelshare.cli.common import CONFIG, ConfigOption, app, out, read_config
from angelshare.errors import AngelshareError

DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Plan for this hardware, such as '1 x H100'.")
]


@app.command("plan")
def plan_command(config: ConfigOption = CONFIG, device: DeviceOption = None) -> None:
    """List what will be reused, fetched, generated and trained, with what it will cost.

    Exit status 1 where the plan does not fit into `budget.kwh`.
    """
    from angelshare.accounting.names import stage_name
    from angelshare.grid import plan_study
    from angelshare.planning.plan import make_plan
    from angelshare.planning.text import block, duration, interval, refusal
    from angelshare.provenance import licence_warnings
    from angelshare.reuse import offers_for, sources

    checked = read_config(config)
    store, study = checked.store.open(), plan_study(checked)
    answer = offers_for(study, store, checked.store.remotes)
    plan = make_plan(checked, study, store, offers=answer.offers, device=device)
    for line in (*answer.warnings, *licence_warnings(checked, study)):
        out.print(f"warning: {line}", highlight=False, soft_wrap=True, markup=False)
    states = {"store": "reused", "made": "to be made", "not needed": "not needed"}
    layers = {one.plan.key: f"reused, from {one.layer}" for one in plan.reused if one.layer}
    artifacts = Table("kind", "what", "key", "store", "runs", box=None)
    for key, source in sources(study, store, answer.offers).items():
        one = study.artifacts[key]
        readers = sum(one in run.billed() for run in study.runs.values())
        state = layers.get(key) or states.get(source)
        state = state or f"to be fetched from {answer.offers[key]}"
        artifacts.add_row(one.kind, one.label, one.key[:12], state, str(readers))
    out.print(artifacts)
    jobs = Table("job", "stage", "energy", "time", "basis", "fit", box=None)
    for prediction in plan.predictions:
        item = prediction.item
        jobs.add_row(
            item.label,
            stage_name(item.stage),
            interval(prediction.energy_j) if prediction.energy_j else "not known",
            duration(prediction.duration_s) if prediction.duration_s else "not known",
            prediction.basis,
            prediction.fit,
        )
    if jobs.row_count:
        out.print(jobs)
    for line in block(plan):
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    if any(one.basis == "flops" for one in plan.predictions):
        out.print(
            "Figures from FLOPs are rough: `snakemake --profile local prerun` measures this "
            "machine for a few seconds, and records of finished jobs replace both.",
            highlight=False,
            soft_wrap=True,
        )
    if plan.exceeds:
        raise AngelshareError(refusal(plan))


@app.command("advise")
def advise_command(
    budget_kwh: Annotated[
        float | None, typer.Option(min=0, help="What one run may cost, its share included.")
    ] = None,
    quality: Annotated[
        float | None, typer.Option(help="The quality it must reach (share of the teacher's score).")
    ] = None,
    reuse: Annotated[
        int, typer.Option(min=1, help="How many runs will share the teacher's work.")
    ] = 1,
    tables: Annotated[
        Path | None, typer.Option(help="Folder of accounting tables; default: the results'.")
    ] = None,
    config: ConfigOption = CONFIG,
    device: DeviceOption = None,
) -> None:
    """Say which pipeline, size and settings to run, why, and how sure that is."""
    from angelshare.planning.advise import Advice, advise, measured_options, planned_options

    budget_j = None if budget_kwh is None else budget_kwh * J_PER_KWH
    folder = tables or Path(read_config(config).results) / "accounting"
    if (folder / "summary.parquet").is_file():
        from angelshare.accounting.tables import read_tables

        options = measured_options(read_tables(folder), budget_j, quality, reuse)
        source = f"measured, {folder}"
    elif tables is not None:
        raise AngelshareError(f"{folder} holds no accounting tables (summary.parquet).")
    else:
        from angelshare.grid import plan_study
        from angelshare.planning.plan import make_plan

        checked = read_config(config)
        study = plan_study(checked)
        plan = make_plan(
            checked, study, checked.store.open(), wanted=lambda item: True, device=device
        )
        options = planned_options(plan, study, budget_j, reuse)
        source = f"predicted for {plan.hardware}, nothing measured yet"
    advice: Advice = advise(options, budget_j, quality, reuse)
    _print_advice(advice, source, reuse)


def _print_advice(advice: object, source: str, reuse: int) -> None:
    from angelshare.accounting.findings import chance
    from angelshare.accounting.names import pretty
    from angelshare.accounting.units import energy, number
    from angelshare.planning.advise import Advice

    assert isinstance(advice, Advice)
    table = Table(
        *("setting", f"energy a run, {reuse} sharing", "first run pays", "quality"),
        *("within budget", "good enough", "note"),
        box=None,
    )
    for one in advice.options[:20]:
        low, high = one.energy_low_j, one.energy_high_j
        spread = f" ({energy(low)} to {energy(high)})" if low is not None else ""
        table.add_row(
            pretty(one.setting),
            f"{energy(one.energy_j)}{spread}",
            energy(one.first_j),
            "not known" if one.quality is None else number(one.quality),
            "" if one.within_budget is None else chance(one.within_budget),
            "" if one.good_enough is None else chance(one.good_enough),
            one.note,
        )
    answer = advice.answer
    what = "Nothing to recommend" if answer is None else f"Run {pretty(answer.setting)}"
    out.print(f"{what}: {advice.reason}. [{source}]", highlight=False, soft_wrap=True, markup=False)
    out.print(table)
