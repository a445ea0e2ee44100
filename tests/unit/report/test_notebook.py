"""The notebook's cells run over real tables and draw, and it is kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import pytest

from angelshare.accounting.tables import Tables, publish_tables

NOTEBOOK = Path(__file__).parents[3] / "docs" / "notebook.ipynb"


def cells() -> list[str]:
    """The code of the notebook, cell by cell."""
    content = json.loads(NOTEBOOK.read_text())
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("tables", ["demo_tables", "paper_tables", "bare_tables"])
def test_the_cells_run_in_order(
    tables: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Tables = request.getfixturevalue(tables)
    publish_tables(found, tmp_path)
    monkeypatch.setenv("ANGELSHARE_TABLES", str(tmp_path))
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    namespace: dict[str, object] = {}
    for number, source in enumerate(cells()):
        exec(compile(source, f"{NOTEBOOK.name}, cell {number}", "exec"), namespace)
    assert len(plt.get_fignums()) == 3
    plt.close("all")


def test_it_is_kept_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert str(NOTEBOOK.parents[1]) not in NOTEBOOK.read_text()
