"""The report as a reader uses it, in a real browser: choose, hover, sort, download, print."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from chromium import PROGRAM, Browser, browser

from angelshare.accounting.dominance import SURE
from angelshare.accounting.names import pretty
from angelshare.accounting.tables import TABLE_NAMES, Tables
from angelshare.accounting.uncertainty import VIEWS
from angelshare.report.html import render

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(demo_tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("page")
    points = {"id": "a", "job": "train a", "stage": "student_train", "component": "gpu0"}
    traces = pl.DataFrame(
        [{**points, "unit": "W", "t_s": float(t), "value": 300.0 + t} for t in range(20)],
        schema=demo_tables.traces.schema,
    )
    path = folder / "report.html"
    path.write_text(render(replace(demo_tables, traces=traces), title="A study", facts={}))
    with browser(folder / "profile") as opened:
        opened.call("Page.navigate", url=path.as_uri())
        opened.until("document.querySelectorAll('.js-plotly-plot').length === 4")
        yield opened


def test_a_point_under_the_mouse_tells_its_lineage(page: Browser) -> None:
    page.run("document.getElementById('frontier-chart').scrollIntoView({behavior: 'instant'})")
    place = page.run(
        """(() => {
          const marks = [...document.querySelectorAll('#frontier-chart .scatterlayer .point')];
          const box = marks.map((m) => m.getBoundingClientRect()).find((b) => b.width > 0);
          return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    page.move(1, 1)
    page.move(*place)
    text = page.until("document.querySelector('#frontier-chart .hoverlayer')?.textContent")
    assert "stands on:" in text
    assert "J per run" in text


def test_a_table_is_downloaded(page: Browser, tmp_path: Path, demo_tables: Tables) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.querySelector('a[download=\"runs.csv\"]').click()")
    path = tmp_path / "runs.csv"
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert pl.read_csv(path)["run"].to_list() == demo_tables.runs["run"].to_list()
    assert page.run("document.querySelectorAll('a[download]').length") == len(TABLE_NAMES)


def test_it_prints(page: Browser) -> None:
    printed = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
    assert page.run("document.querySelectorAll('.js-plotly-plot').length") == 4


def test_the_matrix_of_another_view_is_chosen(page: Browser, demo_tables: Tables) -> None:
    shown = """[...document.querySelectorAll('figure.matrix')]
        .filter((f) => f.getBoundingClientRect().height > 0).map((f) => f.id).join()"""
    assert page.run(shown) == "matrix-amortized"
    page.run("document.querySelector('input[name=matrix-view][value=one_off]').click()")
    assert page.run(shown) == "matrix-one_off"
    told = page.run("document.querySelector('#matrix-one_off td.shade5').title")
    sure = demo_tables.dominance.filter(pl.col("probability") >= SURE, view="one_off")
    pairs = sure.select("setting", "dominated").rows()
    assert told.split(":")[0] in {f"{pretty(a)} dominates {pretty(b)}" for a, b in pairs}
    page.run("document.querySelector('input[name=matrix-view][value=amortized]').click()")


def test_the_keyboard_reaches_the_controls(page: Browser) -> None:
    reached = set()
    page.run("document.activeElement.blur()")
    for _ in range(90):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        reached.add(page.run("document.activeElement.name || document.activeElement.id"))
    assert {"view", "what-if-n", "metric", "log-energy", "matrix-view"} <= reached


def test_power_traces_are_drawn(page: Browser) -> None:
    assert page.run("document.getElementById('trace-chart').data[0].y.length") == 20
    assert page.run("document.getElementById('trace').selectedOptions[0].text") == (
        "student training: train a"
    )


def test_text_has_contrast(page: Browser) -> None:
    """WCAG AA: 4.5 to 1 for every text of the page's own on its background."""
    page.run("document.querySelectorAll('details').forEach((list) => { list.open = true; })")
    worst = page.run(
        """(() => {
          const light = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
            .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const ground = (e) => { for (; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$/.test(color)) return light(color); } return 1; };
          const texts = [...document.querySelectorAll('main *, header *')]
            .filter((e) => !e.closest('svg, script, style') && e.textContent.trim());
          return Math.min(...texts.map((e) =>
            (ground(e) + 0.05) / (light(getComputedStyle(e).color) + 0.05)));
        })()"""
    )
    assert worst >= 4.5


def test_nothing_failed_and_nothing_left_the_page(page: Browser) -> None:
    assert page.said("Runtime.exceptionThrown") == []
    assert [e for e in page.said("Log.entryAdded") if e["entry"]["level"] == "error"] == []
    assert [e for e in page.said("Runtime.consoleAPICalled") if e["type"] == "error"] == []
    asked = {
        event["request"]["url"].split(":")[0] for event in page.said("Network.requestWillBeSent")
    }
    assert asked <= {"file", "data", "blob"}


def test_nothing_is_wider_than_a_narrow_screen(demo_tables: Tables, tmp_path: Path) -> None:
    row = {"id": "a", "job": "train_student[run=" + "x" * 90, "stage": "student_train"}
    traces = pl.DataFrame(
        [{**row, "component": "gpu0", "unit": "W", "t_s": float(t), "value": 9.0} for t in (0, 1)],
        schema=demo_tables.traces.schema,
    )
    path = tmp_path / "report.html"
    path.write_text(render(replace(demo_tables, traces=traces), title="narrow", facts={}))
    with browser(tmp_path / "profile") as opened:
        opened.call(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        opened.call("Page.navigate", url=path.as_uri())
        opened.until("document.querySelectorAll('.js-plotly-plot').length === 4")
        assert opened.run("document.documentElement.scrollWidth") == 390
        panels = opened.run(
            """(() => { const { xaxis, xaxis2, yaxis, yaxis2 } =
              document.getElementById('amortization-chart')._fullLayout;
              return [xaxis._length, xaxis2._length, yaxis.domain[0], yaxis2.domain[1]]; })()"""
        )
    assert min(panels[:2]) > 200
    assert panels[2] > panels[3]


def test_a_thousand_runs_are_quick(demo_tables: Tables, tmp_path: Path) -> None:
    """A page of 1,000 settings draws in seconds and answers a click in less than one."""
    many = pl.concat(
        [
            demo_tables.summary.head(4).with_columns(
                setting=pl.format("{} v={}", "setting", pl.lit(i)),
                one_off_j=pl.col("one_off_j") * (1 + i / 250),
            )
            for i in range(248)
        ]
    )
    many = pl.concat([demo_tables.summary, many])
    views = pl.DataFrame({"view": VIEWS})
    settings = many.select("setting").join(views, how="cross")
    place = demo_tables.frontier.head(1).drop("setting", "view")
    frontier = settings.join(place, how="cross").select(demo_tables.frontier.columns)
    pair = demo_tables.dominance.head(1).drop("setting", "dominated", "view")
    beaten = many.head(300).select(dominated="setting")
    pairs = settings.head(900).join(beaten, how="cross").join(pair, how="cross")
    tables = replace(
        demo_tables,
        summary=many,
        frontier=frontier,
        dominance=pairs.select(demo_tables.dominance.columns),
    )
    path = tmp_path / "report.html"
    page = render(tables, title="many", facts={})
    assert "dominance.parquet, beside this report" in page
    path.write_text(page)
    with browser(tmp_path / "profile") as opened:
        opened.call("Page.navigate", url=path.as_uri())
        opened.until("document.querySelectorAll('.js-plotly-plot').length >= 3")
        assert opened.run("document.querySelectorAll('#summary-table tbody tr').length") == 1000
        assert opened.run("document.querySelectorAll('#matrix-one_off tbody tr').length") == 24
        took = opened.run(
            """(() => { const began = performance.now();
              const input = document.querySelector('input[name="view"][value="one_off"]');
              input.checked = true; input.dispatchEvent(new Event('input', { bubbles: true }));
              return performance.now() - began; })()"""
        )
    assert took < 5000
