"""`benchmarks/publish.py`: the page of a folder of experiments."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from checkpointkd.errors import UserError

from ..results_page import check_results_page
from .conftest import copied

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "publish.py"


def _publish(experiments: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(experiments), str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return out / "README.md"


@pytest.mark.parametrize("names", [("table1", "figure2", "figure7"), ("selection",)])
def test_a_page_has_the_summary_then_figures_then_all_rows(smoke: Path, tmp_path: Path, monkeypatch, names):
    folder = copied(smoke, tmp_path / "experiments", *names)
    page = _publish(folder, tmp_path / "page", monkeypatch)
    check_results_page(page)
    text = page.read_text(encoding="utf-8")
    for name in names:
        record = json.loads((folder / name / "experiment.json").read_text(encoding="utf-8"))
        assert f"### {record['title']}\n" in text
        for table in record["tables"]:
            for row in table["rows"]:
                assert f"| {' | '.join(row)} |".replace("\\|", "|") in text
        assert all(figure["title"] in text for figure in record["figures"])
    page = _publish(folder, tmp_path / "page", monkeypatch)
    assert page.read_text(encoding="utf-8") == text, "the same page again"


def test_another_folder_is_not_overwritten(smoke: Path, tmp_path: Path, monkeypatch):
    folder = copied(smoke, tmp_path / "experiments", "table1")
    thesis = tmp_path / "thesis" / "README.md"
    thesis.parent.mkdir()
    thesis.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="is not a page of published experiments"):
        _publish(folder, thesis.parent, monkeypatch)
    assert thesis.read_text(encoding="utf-8") == "precious"
