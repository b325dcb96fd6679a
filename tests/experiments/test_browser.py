"""The report in a real browser (Debian's chromium): nothing leaves the file, nothing complains, what is drawn is what
the data say, the pointer and the keyboard work, and names are text."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpointkd as ckd
from checkpointkd.reports import collect
from checkpointkd.reports.charts import Chart, Series, to_plain

HOSTILE = [
    "<script>window.hacked=1</script>",
    "\"'><img src=x onerror=window.hacked=1>",
    "‮right to left‬ שלום",
    "n" * 300,
    "{{ 7 * 7 }}",
    "<b>bold</b><br>$x_1$ %{x}",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("CHECKPOINTKD_TEST_BROWSER") or shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: .ci/run installs it")
        pytest.skip("no chromium; set CHECKPOINTKD_TEST_BROWSER to a browser of its kind")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Seen:
    """A page, and what it did: messages, errors, and what it asked for besides itself."""

    def __init__(self, browser: Any, path: Path, **how: Any) -> None:
        self.page = browser.new_page(**how)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def outside(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(("data:", "blob:", self.page.url.partition("#")[0]))]


@pytest.fixture(scope="module")
def seen(browser: Any, smoke: Path) -> Iterator[Seen]:
    found = Seen(browser, smoke / "report.html", viewport={"width": 1200, "height": 900})
    yield found
    found.page.close()


def test_nothing_complains_and_nothing_leaves_the_file(seen: Seen):
    assert seen.said == []
    assert seen.outside() == []


def test_points_are_drawn_where_the_data_are(seen: Seen, smoke: Path):
    """Every point with a tooltip of every chart, by its place in the figure, against the experiment's own data."""
    drawn = seen.page.evaluate(
        """[...document.querySelectorAll('figure')].map(figure => [...figure.querySelectorAll('use')]
              .filter(mark => mark.querySelector('title'))
              .map(mark => [mark.textContent, mark.x.baseVal.value, mark.y.baseVal.value]))"""
    )
    figures = [figure for experiment in collect(smoke).experiments for figure in experiment.figures]
    assert len(drawn) == len(figures) > 8
    points = 0
    for marks, figure in zip(drawn, figures, strict=True):
        series = [each for each in figure.series if each.hover] if isinstance(figure, Chart) else []
        hover, x, y = ([value for each in series for value in getattr(each, name)] for name in ("hover", "x", "y"))
        assert [text for text, _, _ in marks] == hover
        if marks and isinstance(figure, Chart):
            for values, is_log, axis in ((x, figure.log_x, 1), (y, figure.log_y, 2)):
                shown = np.log(values) if is_log else np.array(values)
                if np.ptp(shown) > 0:
                    places = np.array([mark[axis] for mark in marks])
                    fit = np.polyval(np.polyfit(shown, places, 1), shown)
                    assert np.abs(fit - places).max() < 0.01, "on a straight line"
            points += len(marks)
    assert points > 100


def test_tooltips_show_epoch_values_and_file(seen: Seen):
    """At the star of Figure 7: its epoch, its sum, and the file of the checkpoint."""
    section = seen.page.locator("section", has=seen.page.locator("[id^=figure-7-]"))
    tooltip = section.locator("figure").first.locator("use title").last.text_content()
    assert "epoch " in tooltip
    assert "sum " in tooltip
    assert ".safetensors" in tooltip


def test_the_keyboard_reaches_links_tables_and_numbers(seen: Seen):
    reached = set()
    seen.page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        seen.page.keyboard.press("Tab")
        reached.add(seen.page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.", "DIV.scroll", "SUMMARY."} <= reached
    details = seen.page.locator("details.numbers").first
    details.locator("summary").focus()
    seen.page.keyboard.press("Enter")
    assert details.locator("tbody tr").first.is_visible()


def test_everything_has_its_words(seen: Seen):
    """One main title, headings in order, figures and tables with names, and no two elements of one id."""
    assert seen.page.locator("h1").count() == 1
    levels = seen.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for kind in ("figure", "svg", ".scroll"):
        names = seen.page.evaluate(f"[...document.querySelectorAll('{kind}')].map(e => e.getAttribute('aria-label'))")
        assert names
        assert all(names)
    ids = seen.page.evaluate("[...document.querySelectorAll('h2[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "how",
    [
        {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "device_scale_factor": 2},
        {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
        {"viewport": {"width": 800, "height": 1100}, "reduced_motion": "reduce"},
    ],
    ids=["phone", "dark", "tablet"],
)
def test_it_fits_and_can_be_read(browser: Any, smoke: Path, how: dict):
    """No page that scrolls sideways; text that stands out from its ground by WCAG's 4.5."""
    seen = Seen(browser, smoke / "report.html", **how)
    assert seen.said == []
    wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    contrasts = seen.page.evaluate(
        """() => {
          const part = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
          const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number);
                                  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
          const ground = light(getComputedStyle(document.body).backgroundColor);
          return [...document.querySelectorAll('p, td, th, h1, h2, h3, a, li, summary, dd, dt')].map(e => {
            const [a, b] = [light(getComputedStyle(e).color), ground];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
        }"""
    )
    assert min(contrasts) >= 4.5
    seen.page.close()


def test_it_prints_without_what_only_works_on_a_screen(browser: Any, smoke: Path):
    seen = Seen(browser, smoke / "report.html", viewport={"width": 1200, "height": 900})
    seen.page.emulate_media(media="print")
    assert not seen.page.locator("nav").is_visible()
    assert not seen.page.locator("details.numbers").first.is_visible()
    assert len(seen.page.pdf()) > 100_000
    seen.page.close()


def test_hostile_names_are_shown_as_text(browser: Any, tmp_path: Path):
    """In titles, cells, hover, legends and axes; of a study, whose words come from a file."""
    charts = [
        Chart(
            title=name,
            x_title=name,
            y_title=name,
            caption=name,
            alt=name,
            series=[Series(name=name, x=[1, 2], y=[3, 4], hover=[name, name], labels=[name, name])],
        )
        for name in HOSTILE
    ]
    found = {
        "experiment": "table1",
        "title": HOSTILE[0],
        "missing": 0,
        "preset": {
            "name": HOSTILE[0],
            "dataset": HOSTILE[1],
            "select_on": "val",
            "seeds": 1,
            "train_images": None,
            "teacher_epochs": 1,
            "student_epochs": 1,
            "pairs": [{"teacher": HOSTILE[2], "student": HOSTILE[3]}],
        },
        "notes": HOSTILE,
        "tables": [
            {"title": name, "columns": [name, name], "rows": [[name, name]], "note": name, "marked": []}
            for name in HOSTILE
        ],
        "figures": [to_plain(chart) for chart in charts],
        "claims": [],
        "provenance": dict(zip(("started", "checkpointkd", "torch", "python", "machine"), HOSTILE, strict=False)),
    }
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps(found))
    page = ckd.report(tmp_path)
    seen = Seen(browser, page, viewport={"width": 360, "height": 740})
    assert seen.page.evaluate("window.hacked") is None
    assert seen.said == []
    assert seen.outside() == []
    text = seen.page.locator("body").inner_text()
    drawn = "".join(seen.page.locator("svg text").all_text_contents())
    for name in HOSTILE:
        assert name in text
    for name in HOSTILE[:2]:
        assert name in drawn, "tags are text in figures, too"
    wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    names = [path.name for path in (tmp_path / "report_files").iterdir()]
    assert all(len(name) < 100 and name.isascii() for name in names)
    seen.page.close()
