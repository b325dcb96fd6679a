"""The HTML page: its numbers, what it may not contain, and the files beside it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError
from checkpointkd.reports.build import conclusions
from checkpointkd.reports.collect import collect


def test_the_page_is_one_file_with_the_numbers(runs: Path):
    source = ckd.report(runs).read_text(encoding="utf-8")
    page = html.unescape(source).replace("\N{NO-BREAK SPACE}", " ")
    collected = collect(runs)
    for variant in collected.variants:
        assert variant.text in page
        assert variant.label in page
    for sentence in conclusions(collected):
        assert sentence in page
    assert "<script" not in source, "no JavaScript"
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", source), "nothing is loaded from elsewhere"


def test_figures_have_alternative_text_and_captions(runs: Path):
    page = ckd.report(runs).read_text(encoding="utf-8")
    figures = re.findall("<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        assert re.search('<svg [^>]*role="img" aria-label="[^"]+', figure)
        assert re.search("<figcaption>[^<]+", figure)
    ids = re.findall(' id="([^"]+)"', re.sub("<defs>.*?</defs>", "", page, flags=re.DOTALL))
    assert len(ids) == len(set(ids))


def test_a_single_run_has_a_report(teacher_run: Path):
    page = ckd.report(teacher_run, out=teacher_run.parent / "page.html").read_text(encoding="utf-8")
    assert "wrn_10_1" in page


def test_names_are_shown_as_text(teacher_run: Path):
    hostile = teacher_run.parent / "<script>alert(1)<"
    teacher_run.rename(hostile)
    ckd.score(hostile, decoder_steps=2, decoder_seeds=1)
    page = ckd.report(hostile.parent).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_no_other_file_is_overwritten(runs: Path):
    precious = runs / "thesis.tex"
    precious.write_text("precious")
    for path in (precious, runs / "teacher" / "run.json", runs):
        with pytest.raises(UserError, match=r"was not written by checkpointkd\. Choose another --out"):
            ckd.report(runs, out=path)
    assert precious.read_text() == "precious"
    assert ckd.report(runs) == ckd.report(runs), "a report may be written again"


def test_only_files_of_the_page_are_replaced(experiment: Path, tmp_path: Path):
    page = ckd.report(experiment, out=tmp_path / "r.html")
    folder = tmp_path / "r_files"
    precious = folder / "precious.png"
    precious.write_bytes(b"precious")
    names = {path.name for path in folder.iterdir()}
    assert {"01-t.csv", "02-table-1-claims.csv", "03-a.csv", "03-a.svg", "03-a.png", "03-a.pdf"} <= names
    ckd.report(experiment, out=page)
    assert {path.name for path in folder.iterdir()} == names
    assert precious.read_bytes() == b"precious"
    with pytest.raises(UserError, match=r"r_files exists and does not belong to r\.htm\."):
        ckd.report(experiment, out=tmp_path / "r.htm")
    with pytest.raises(UserError, match="was not written by checkpointkd"):
        ckd.report(experiment, out=experiment)
