"""The report: self-contained, complete, safe with odd names, and working in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from markupsafe import escape

from angelshare.accounting.findings import findings
from angelshare.accounting.tables import TABLE_NAMES, Tables
from angelshare.report import display, measures
from angelshare.report.html import benchmarks, render, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements, ids and the text of the data element of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data
            self._in_data = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(demo_tables: Tables) -> Page:
    return Page(render(demo_tables, title="A <study>", facts={"Team": "ours & theirs"}))


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        target = attributes.get("href") or "#"
        assert target.startswith(("#", "data:")), target
    assert [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]


def test_labels_and_names(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        target = link["href"] or ""
        if target.startswith("#"):
            assert target[1:] in ids
    charts = [a for a in page.all("div") if "chart" in (a.get("class") or "")]
    assert len(charts) == 3
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1


def test_downloads_are_the_tables(page: Page, demo_tables: Tables) -> None:
    links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    assert set(links) == {f"{name}.csv" for name in TABLE_NAMES}
    uri = links["runs.csv"] or ""
    frame = pl.read_csv(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
    assert frame["run"].to_list() == demo_tables.runs["run"].to_list()
    assert frame["one_off_j"].to_list() == pytest.approx(demo_tables.runs["one_off_j"].to_list())


def test_findings_and_escapes(demo_tables: Tables) -> None:
    text = render(demo_tables, title="A <study>", facts={"Team": "ours & theirs"})
    assert "<title>A &lt;study&gt;</title>" in text
    assert "ours &amp; theirs" in text
    for finding in findings(demo_tables):
        assert str(escape(finding.text)) in text


def test_odd_names_cannot_break_out(demo_tables: Tables) -> None:
    odd = "</script><script>alert(1)</script>"
    artifacts = demo_tables.artifacts.with_columns(label=pl.lit(odd))
    changed = Tables(
        **{n: artifacts if n == "artifacts" else getattr(demo_tables, n) for n in TABLE_NAMES}
    )
    text = render(changed, title="t", facts={})
    assert odd not in text
    data = json.loads(Page(text).data)
    assert odd in data["points"][2]["lineage"]


def test_the_charts_hold_the_tables(page: Page, demo_tables: Tables) -> None:
    data = json.loads(page.data)
    assert data["unit"]["name"] == "J"
    assert data["metrics"] == ["quality", "cross_entropy", "exact_match"]
    points = {point["setting"]: point for point in data["points"]}
    for row in demo_tables.summary.rows(named=True):
        point = points[row["setting"]]
        assert point["energy"]["amortized"] == row["amortized_j"]
        assert point["score"]["exact_match"] == row["exact_match"]
    assert "top-16 logits (logits 9f3a6c01)" in points["kd small T=2"]["lineage"]
    assert points["sft large"]["beaten"]["amortized"] == "synthetic SFT small (> 99 %)"
    assert points["kd small T=2"]["beaten"]["amortized"] is None
    assert len(data["breakEven"]) == 4


def test_a_bare_study_has_a_report(bare_tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(bare_tables, path)
    text = path.read_text()
    assert "No distilled run is in this study." in text
    assert "No record carries a carbon figure." in text
    assert benchmarks(bare_tables) == []


def test_display_tables(demo_tables: Tables, paper_tables: Tables) -> None:
    summary = display.summary(demo_tables)
    assert summary is not None
    assert summary.header[:5] == (
        "Setting",
        "n",
        "Student only (J)",
        "One-off (J)",
        "Amortised (J)",
    )
    assert "Note" not in summary.header
    paper = display.summary(paper_tables)
    assert paper is not None
    assert "Note" in paper.header
    assert paper.rows[0][2].text == "6.63"
    ledger = display.ledger(demo_tables)
    assert ledger is not None
    logits = next(row for row in ledger.rows if row[0].text == "top-16 logits")
    assert "ours: 12, them: 5" in [cell.text for cell in logits]
    even = display.break_even(paper_tables)
    assert even is not None
    stars = [row[even.header.index("N*")].text for row in even.rows]
    assert stars == ["10.0", "11.2", "5.24", "5.73", "3.55", "2.36"]
    teachers = [row[even.header.index("Teacher (kWh)")].text for row in even.rows]
    assert set(teachers) == {"11.0", "10.6"}
    efficiency = measures.efficiency(demo_tables)
    assert efficiency is not None
    assert efficiency.header == ("Setting", "J per token served", "OM_perf")


DRIVER = """
<script>
const seen = { errors: [], blocked: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (e) => seen.blocked.push(e.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const pick = (name, value) => {
    const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
    input.checked = true; input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const what = () => document.getElementById("frontier-what").textContent;
  seen.amortized = what();
  pick("view", "student_only"); seen.student_only = what();
  pick("view", "one_off"); seen.one_off = what();
  const runs = document.getElementById("what-if-n");
  const set = (input, value) => {
    input.value = value; input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  set(runs, "1"); seen.alone = what();
  set(runs, "1000"); seen.many = what();
  const metric = document.getElementById("metric");
  set(metric, "exact_match");
  seen.metric = what();
  pick("stage-view", "one_off");
  const slider = document.getElementById("runs-n");
  set(slider, "1");
  seen.one_run = document.getElementById("break-even-what").textContent;
  const head = document.querySelector("#summary-table thead th:nth-child(4) button");
  const firsts = () => document.querySelector("#summary-table tbody tr th").textContent;
  head.click(); seen.least = firsts(); head.click(); seen.most = firsts();
  seen.drawn = document.querySelectorAll(".main-svg").length;
  seen.hover = document.getElementById("frontier-chart").data.some(
    (trace) => (trace.hovertext || []).some((text) => text.includes("stands on")));
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  const result = document.createElement("pre");
  result.id = "driven"; result.textContent = JSON.stringify(seen);
  document.body.append(result);
}, 300));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_driven_in_a_browser(demo_tables: Tables, tmp_path: Path) -> None:
    text = render(demo_tables, title="t", facts={})
    path = tmp_path / "driven.html"
    path.write_text(text.replace("<body>", "<body>" + DRIVER, 1))
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1280,3000", "--virtual-time-budget=10000", "--dump-dom"),
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = re.search(r'<pre id="driven">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert seen["errors"] == []
    assert seen["blocked"] == []
    assert seen["requests"] == []
    assert "On the frontier, amortised: KD small T=2" in seen["amortized"]
    assert "SFT small" not in seen["student_only"].replace("synthetic SFT small", "")
    assert "one-off: SFT small" in seen["one_off"]
    assert "shared by 1 run: SFT small" in seen["alone"]
    assert "shared by 1000 runs: KD small T=2" in seen["many"]
    assert "synthetic SFT large" in seen["metric"]
    assert "With 1 run: " in seen["one_run"]
    assert "more than the baseline" in seen["one_run"]
    assert (seen["least"], seen["most"]) == ("SFT small", "synthetic SFT large")
    assert seen["drawn"] >= 3
    assert seen["hover"] is True
