"""The report's data first; then that the page holds it, alone and as text."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import checkpointkd as ckd
from checkpointkd.errors import UserError
from checkpointkd.reports import Variant, collect, conclusions, difference
from checkpointkd.reports.charts import Chart, Heatmaps, Series, to_plain
from checkpointkd.reports.drawing import draw
from checkpointkd.reports.figures import curves_charts, plane_chart, points_of, search_chart, students_charts
from checkpointkd.reports.stills import stills


@pytest.fixture
def runs(teacher_run: Path) -> Path:
    """A folder with a scored teacher and its students: alone, from epochs 2 and 4, from both (one seed)."""
    folder = teacher_run.parent
    ckd.score(teacher_run, decoder_steps=4, decoder_seeds=2)
    ckd.select(teacher_run, rule="best-accuracy")
    for seed in (0, 1):
        common = {"epochs": 2, "save_every": 2, "seed": seed}
        ckd.train("wrn_10_1", data="digits", train_images=100, out=folder / f"alone-{seed}", **common)
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], out=folder / f"two-{seed}", **common)
        ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@4"], out=folder / f"four-{seed}", **common)
    ckd.distill(
        "wrn_10_1", teachers=[f"{teacher_run}@2", f"{teacher_run}@4"], out=folder / "both", epochs=2, save_every=2
    )
    return folder


def test_students_are_told_by_what_they_learned_from(runs: Path):
    collected = collect(runs)
    assert [(arm.label, arm.n, arm.teachers) for arm in collected.arms] == [
        ("no teacher", 2, ()),
        ("epoch 2 (half-way)", 2, (("teacher", 2),)),
        ("epoch 4 (full, chosen by the rule 'best-accuracy')", 2, (("teacher", 4),)),
        (
            "epoch 2 (half-way) and epoch 4 (full, chosen by the rule 'best-accuracy')",
            1,
            (("teacher", 2), ("teacher", 4)),
        ),
    ]
    alone = collected.arms[0]
    for seed in (0, 1):
        result = ckd.open_trajectory(runs / f"alone-{seed}").result()
        assert result is not None
        assert alone.accuracy[seed] == 100 * result["test"]["accuracy"]
    assert alone.mean == pytest.approx((alone.accuracy[0] + alone.accuracy[1]) / 2)
    assert alone.sd == pytest.approx(abs(alone.accuracy[0] - alone.accuracy[1]) / math.sqrt(2))
    assert math.isnan(collected.arms[3].sd)
    assert collected.notes == []
    assert collected.provenance["runs"] == "8"
    assert collected.provenance["select_on"] == "holdout: 100 images to train, 300 to select"


@pytest.mark.parametrize(
    ("student", "alpha", "marked"), [("wrn_10_1", 0.5, [3]), ("wrn_10_1", 0.1, []), ("x", 0.5, [])]
)
def test_what_was_chosen_for_a_student_is_that_student_s(runs: Path, student: str, alpha: float, marked: list[int]):
    """Both together, taught so: neither of the two alone, nor another's student."""
    found = {
        "rule": "auto",
        "reason": "it was",
        "made_with": None,
        "epochs": [2, 4],
        "student": student,
        "alpha": alpha,
    }
    (runs / "teacher" / "selection.json").write_text(json.dumps(found))
    arms = collect(runs).arms
    assert [number for number, arm in enumerate(arms) if arm.chosen] == marked
    assert [number for number, arm in enumerate(arms) if "chosen by probing" in arm.label] == marked
    assert arms[3].label.startswith("epoch 2 (half-way) and epoch 4 (full)")


def test_figures_draw_what_the_data_say(runs: Path):
    collected = collect(runs)
    (scored,) = collected.scored
    plane = plane_chart(scored.name, points_of(scored), chosen=[4])
    sums, checkpoints, star = plane.series
    assert checkpoints.words == ["1", "2", "3", "4"]
    assert (min(checkpoints.x), max(checkpoints.x), min(checkpoints.y), max(checkpoints.y)) == (0, 1, 0, 1)
    assert (star.name, star.x, star.y) == ("chosen: epoch 4", [checkpoints.x[3]], [checkpoints.y[3]])
    total = round(star.x[0] + star.y[0], 9)
    assert {round(x + y, 9) for x, y in zip(sums.x, sums.y, strict=True)} == {total}
    assert _drawn(plane)["checkpoints, by epoch"]["x"] == checkpoints.x
    assert _drawn(plane)["checkpoints, by epoch"]["y"] == checkpoints.y

    (students,) = students_charts(collected)
    alone, curve, ensemble = students.series
    assert (alone.y, alone.error) == ([collected.arms[0].mean] * 2, [collected.arms[0].sd] * 2)
    assert (curve.x, curve.y) == ([2, 4], [collected.arms[1].mean, collected.arms[2].mean])
    assert ensemble.y == [collected.arms[3].mean]
    assert _drawn(students)["one checkpoint as teacher"]["y"] == curve.y


def _drawn(chart: Chart) -> dict[str, dict]:
    """What Plotly is given, by name."""
    traces = json.loads(str(draw(chart).to_json()))["data"]
    return {trace.get("name", trace["type"]): trace for trace in traces}


def test_the_page_is_one_file_with_the_numbers_and_no_address_to_load_from(runs: Path):
    page = html.unescape(ckd.report(runs).read_text(encoding="utf-8"))
    collected = collect(runs)
    for arm in collected.arms:
        assert f"{arm.mean:.2f}" in page
        assert arm.label in page
    for sentence in conclusions(collected):
        assert sentence in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", page)


def test_a_smoothed_student_learned_from_the_uniform_teacher_and_is_no_baseline(runs: Path):
    for seed in (0, 1):
        ckd.train(
            "wrn_10_1",
            data="digits",
            train_images=100,
            out=runs / f"smoothed-{seed}",
            epochs=2,
            save_every=2,
            seed=seed,
            label_smoothing=0.1,
        )
    collected = collect(runs)
    (smoothed,) = [arm for arm in collected.arms if arm.smoothing]
    assert (smoothed.label, smoothed.n) == ("the uniform teacher (label smoothing 0.1)", 2)
    baseline = collected.baseline(smoothed)
    assert baseline is not None
    assert baseline.label == "no teacher"
    assert any("the uniform teacher" in sentence for sentence in conclusions(collected))


def test_trajectories_measured_alike_share_a_plane(runs: Path):
    assert curves_charts(collect(runs)) == []
    for student in ("alone-0", "two-0"):
        ckd.score(runs / student, decoder_steps=4, decoder_seeds=2)
    ckd.score(runs / "four-0", decoder_steps=5, decoder_seeds=2)
    (together,) = curves_charts(collect(runs))
    assert {one.name for one in together.series} == {"alone-0", "teacher", "two-0"}
    for scored in collect(runs).scored:
        points = scored.plane.points
        for one in together.series:
            if one.name == scored.name:
                assert one.x == [point.image_information for point in points]
                assert one.y == [100 * point.accuracy for point in points]
                assert _drawn(together)[one.name]["x"] == one.x
    assert "3 trajectories on one information plane" in ckd.report(runs).read_text(encoding="utf-8")


def test_half_finished_runs_are_named_and_left_out_of_the_table(runs: Path):
    (runs / "alone-1" / "result.json").unlink()
    collected = collect(runs)
    assert collected.notes == ["not finished: alone-1, epoch 2 of 2"]
    assert collected.arms[0].n == 1
    assert "not finished: alone-1" in ckd.report(runs).read_text(encoding="utf-8")


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


def test_words_that_would_lie_on_each_other_leave_the_last():
    points = Series(name="", x=[0.0, 0.999, 1.0], y=[0.0, 1.0, 1.0], words=["10", "20", "30"])
    chart = Chart(title="", x_title="x", y_title="y", series=[points])
    svg = dict(stills(chart))["svg"]
    texts = [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert ("10" in texts, "20" in texts, "30" in texts) == (True, False, True)


def test_names_of_any_kind_are_text_in_an_svg():
    name = 'bell\x07\x1b[1m & <b>"'
    chart = Chart(title="", x_title=name, y_title="y", series=[Series(name=name, x=[1, 2], y=[1, 2])] * 2)
    svg = dict(stills(chart))["svg"]
    texts = [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(r'bell\x07\x1b[1m & <b>"') == 3, "the axis and the legend's two"


def test_nothing_to_report_on_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no run in .*to report on"):
        ckd.report(tmp_path)
    with pytest.raises(UserError, match="There is no folder at"):
        ckd.report(tmp_path / "nowhere")


def _arm(*accuracies: float, label: str = "a", teachers: tuple = ()) -> Variant:
    return Variant("s", label, teachers, dict(enumerate(accuracies)), family="")


def test_differences_are_paired_and_their_intervals_students():
    """Gaps 1, 2 and 3 points: mean 2, standard deviation 1, t at 97.5% with 2 degrees of freedom 4.3027."""
    gap = difference(_arm(91, 93, 95), _arm(90, 91, 92))
    assert (gap.n, gap.mean) == (3, 2)
    assert gap.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert gap.words == "+2.00 ± 2.48 (within noise)"
    assert difference(_arm(92, 94, 96.1), _arm(90, 92, 94)).words.endswith("(beyond noise)")
    assert difference(_arm(92), _arm(90)).words == "+2.00 on one seed (undecided)"


def test_only_students_trained_alike_are_compared(runs: Path):
    """A longer student and one with another alpha beside the others: no mixing, and every arm told apart."""
    ckd.train("wrn_10_1", data="digits", train_images=100, epochs=3, save_every=3, out=runs / "longer")
    teacher = [f"{runs / 'teacher'}@2"]
    ckd.distill("wrn_10_1", teachers=teacher, alpha=0.9, epochs=2, save_every=2, out=runs / "other-alpha")
    ckd.distill("wrn_10_1", teachers=teacher, epochs=4, save_every=4, out=runs / "without-baseline")
    collected = collect(runs)
    assert len({arm.label for arm in collected.arms}) == len(collected.arms)
    by_label = {arm.label: arm for arm in collected.arms}
    other = by_label["epoch 2 (half-way); α 0.9, τ 5, 2 epochs"]
    baseline = collected.baseline(other)
    assert baseline is not None
    assert baseline.label == "no teacher; 2 epochs"
    alone = next(arm for label, arm in by_label.items() if label.startswith("epoch 2") and "4 epochs" in label)
    assert collected.baseline(alone) is None
    assert any("no student was trained in the same way without a teacher" in text for text in conclusions(collected))
    assert any("with one seed undecided" in text for text in conclusions(collected))


def test_a_copied_run_is_counted_once(runs: Path):
    import shutil

    shutil.copytree(runs / "alone-1", runs / "copied")
    collected = collect(runs)
    assert collected.arms[0].n == 2
    assert collected.notes == ["copied is the same as another run here, and is counted once"]


def test_a_teacher_of_the_students_own_kind_is_a_baseline(runs: Path):
    """Self-distillation: the run that taught is the student without a teacher."""
    ckd.distill("wrn_10_1", teachers=[f"{runs / 'alone-0'}"], epochs=2, save_every=2, out=runs / "self")
    arms = collect(runs).arms
    assert next(arm for arm in arms if not arm.teachers).n == 2


def test_no_other_file_is_overwritten(runs: Path):
    precious = runs / "thesis.tex"
    precious.write_text("precious")
    for there in (precious, runs / "teacher" / "run.json", runs):
        with pytest.raises(UserError, match="is no page of ours; choose another --out"):
            ckd.report(runs, out=there)
    assert precious.read_text() == "precious"
    assert ckd.report(runs) == ckd.report(runs), "a report may be written anew"


def test_a_run_json_of_others_is_left_out(runs: Path):
    (runs / "npm").mkdir()
    (runs / "npm" / "run.json").write_text('{"scripts": {}}')
    assert any(note.startswith("left out: ") and "npm" in note for note in collect(runs).notes)


def test_students_are_told_by_how_they_were_taught(teacher_run: Path):
    """Methods and other ways stand in the label, and only plain KD makes the curve over teachers' epochs."""
    folder = teacher_run.parent
    ways = {
        "plain": {},
        "dkd": {"method": "dkd"},
        "heavy": {"method": "dkd", "weight": 2.0},
        "logits": {"average": "logits", "weights": [0.25, 0.75], "ensemble": "snapshot:2"},
        "teacher_schedule": {"teacher_schedule": "rco", "ensemble": "snapshot:2"},
        "batch": {"teacher_batch_norm": "batch"},
    }
    for name, way in ways.items():
        ckd.distill("wrn_10_1", teachers=[str(teacher_run)], out=folder / name, epochs=1, batch_size=50, **way)
    collected = collect(folder)
    labels = {arm.label for arm in collected.arms}
    full, both = "epoch 4 (full)", "epoch 2 (half-way) and epoch 4 (full)"
    assert {
        full,
        f"{full}, normalized by batch",
        f"{both}, one after the other (rco)",
        f"{both}, weighted 0.25 : 0.75, mean of logits",
    } <= labels
    dkd = sorted(label for label in labels if label.startswith(f"{full}, by dkd"))
    assert dkd == [f"{full}, by dkd; the usual weight", f"{full}, by dkd; weight 2"]
    assert students_charts(collected) == [], "one epoch makes no curve"
    ckd.distill("wrn_10_1", teachers=[f"{teacher_run}@2"], out=folder / "half", epochs=1, batch_size=50)
    (students,) = students_charts(collect(folder))
    curve = next(one for one in students.series if one.name == "one checkpoint as teacher")
    assert curve.x == [2, 4]


def test_arms_of_one_label_are_told_apart_by_what_differs(teacher_run: Path):
    folder = teacher_run.parent
    common = {"epochs": 1, "batch_size": 50}
    ckd.train("wrn_10_1", data="digits", train_images=100, out=folder / "other", seed=3, **common)
    for name, teachers in (("a", ["teacher@4"]), ("b", ["other@1"]), ("c", ["teacher@4", "other@1"])):
        addresses = [str(folder / one) for one in teachers]
        ckd.distill("wrn_10_1", teachers=addresses, out=folder / name, allow_weak_teacher=True, **common)
    labels = {arm.label for arm in collect(folder).arms if arm.teachers}
    assert labels == {
        "epoch 4 (full); from teacher",
        "epoch 1 (full, half-way); from other",
        "epoch 4 (full) and epoch 1 (full, half-way); from teacher, other",
    }


def test_a_run_with_a_damaged_checkpoint_is_left_out_and_noted(runs: Path):
    (runs / "four-0" / "checkpoints" / "epoch-0002.safetensors").write_bytes(b"damage")
    assert any("left out: " in note and "four-0" in note for note in collect(runs).notes)


@pytest.fixture
def searched(teacher_run: Path) -> Path:
    ckd.tune(
        "wrn_10_1",
        teachers=[str(teacher_run)],
        alpha=[0.1, 0.5, 0.9],
        tau=[2, 8],
        epochs=2,
        batch_size=50,
        out=teacher_run.parent / "search",
    )
    return teacher_run.parent


def test_a_search_is_drawn_as_it_went(searched: Path, tmp_path: Path):
    collected = collect(searched)
    assert not any(arm.teachers for arm in collected.arms), "trials are no students"
    assert list(collected.searches) == ["search"]
    assert collected.notes == [], "nor are they runs that were left unfinished"
    assert collected.provenance["runs"] == "1"
    result = json.loads((searched / "search" / "tune.json").read_text())
    chart = search_chart("search", result)
    assert (chart.x_title, chart.y_title) == ("α", "τ")
    stopped, finished, best = chart.series
    whole = [trial for trial in result["trials"] if trial["accuracy"] is not None]
    assert finished.x == [trial["values"]["alpha"] for trial in whole]
    assert finished.y == [trial["values"]["tau"] for trial in whole]
    assert len(stopped.x) == 6 - len(whole)
    assert best.x == [result["best"]["values"]["alpha"]]
    for number, trial in enumerate(result["trials"]):  # had none been stopped; how many are, differs by machine
        trial["accuracy"] = trial["accuracy"] or 0.01 * (number + 1)
    chart = search_chart("search", result)
    _, finished, _ = chart.series
    assert chart.contour == (finished.x, finished.y, [100 * trial["accuracy"] for trial in result["trials"]])
    drawn = _drawn(chart)
    assert drawn["contour"]["z"] == list(chart.contour[2])
    assert drawn["finished"]["x"] == finished.x
    page = ckd.report(searched, out=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The search for α and τ: search" in page
    trials = page[page.index(">The trials of search</h2>") :]
    assert trials.count("<td>0.1</td>") == 2
    alone = ckd.report(searched / "search", out=tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "The trials of search" in alone


def test_a_search_over_one_setting_is_a_line(searched: Path):
    result = json.loads((searched / "search" / "tune.json").read_text())
    result["space"]["tau"] = [2.0]
    result["trials"] = [trial for trial in result["trials"] if trial["values"]["tau"] == 2]
    result["best"] = max(result["trials"], key=lambda trial: trial["accuracy"] or 0)
    chart = search_chart("search", result)
    assert (chart.x_title, chart.y_title) == ("α", "accuracy on the selection images, %")
    done = [trial for trial in result["trials"] if trial["accuracy"] is not None]
    assert chart.series[0].x == sorted(trial["values"]["alpha"] for trial in done)


@pytest.mark.parametrize(
    "damage",
    [
        "[]",
        "{}",
        "no JSON",
        '{"trials": 3}',
        {"best": {"trial": 99, "accuracy": 0.5}},
        {"best": {"accuracy_se": 0.1}},
        {"space": {}},
        {"space": {"alpha": ["x"]}},
        {"trials": [{}]},
        {"data": None},
        {"planned": "all"},
    ],
)
def test_a_damaged_search_is_left_out_and_noted(searched: Path, damage: str | dict):
    path = searched / "search" / "tune.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps({**json.loads(path.read_text()), **damage}))
    collected = collect(searched)
    assert collected.searches == {}
    assert any("search.json is damaged" in note for note in collected.notes)


def test_an_unfinished_search_is_said_to_be(searched: Path):
    path = searched / "search" / "tune.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "trials": result["trials"][:2], "best": None}))
    assert "not finished: the search search, 2 of 6 trials" in collect(searched).notes
    ckd.report(searched, out=searched / "r.html")


def test_trials_that_span_no_area_have_no_contours(searched: Path, tmp_path: Path):
    """Two finished trials, or three on a line: no lines between them can be drawn, and the report is written."""
    path = searched / "search" / "tune.json"
    result = json.loads(path.read_text())
    values = [(0.1, 2.0), (0.5, 4.0), (0.9, 6.0)]
    for number in (1, 2, 3):
        trials = [
            {
                **result["trials"][0],
                "trial": n,
                "values": {"alpha": a, "tau": t},
                "accuracy": 0.2 + n / 10,
                "stopped": None,
            }
            for n, (a, t) in enumerate(values[:number])
        ]
        best = {**trials[-1], "accuracy_se": 0.01, "comparable": 0}
        path.write_text(json.dumps({**result, "trials": trials, "best": best}))
        assert search_chart("search", json.loads(path.read_text())).contour is None
        ckd.report(searched / "search", out=tmp_path / "r.html")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder, as `study` writes it."""
    from checkpointkd.analysis.statistics import claim

    chart = Chart(title="a", x_title="b", y_title="c", series=[Series(name="d", x=[1, 2], y=[3, 4])])
    maps = Heatmaps(title="a", names=["b"], classes=["c", "d"], maps=[[[1, 0.5], [0.5, 1]]])
    found = {
        "study": "table1",
        "title": "Table 1",
        "scale": {
            "name": "smoke",
            "dataset": "digits",
            "select_on": "val",
            "seeds": 2,
            "train_images": None,
            "teacher_epochs": 1,
            "student_epochs": 1,
            "pairs": [{"teacher": "t", "student": "s"}],
        },
        "notes": [],
        "tables": [{"title": "t", "columns": ["a", "b"], "rows": [["1", "2"]], "note": "", "marked": []}],
        "figures": [to_plain(chart), to_plain(maps)],
        "claims": [{**vars(claim("a", "b", [1.0, 2.0, 4.0])), "verdict": ""}],
        "provenance": {"torch": "2"},
    }
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "experiment.json").write_text(json.dumps(found))
    return tmp_path


def test_a_study_s_folder_alone_has_a_report(study: Path):
    assert "Table 1" in ckd.report(study).read_text(encoding="utf-8")
    assert collect(study).notes == []


@pytest.mark.parametrize(
    ("at", "damage"),
    [
        ("title", 3),
        ("notes", "x"),
        ("notes", [3]),
        ("provenance", None),
        ("provenance", {"a": 1}),
        ("scale", {}),
        ("tables.0.columns", ["a"]),
        ("tables.0.rows", [["a", 3]]),
        ("tables.0.marked", 3),
        ("tables.0.title", None),
        ("figures.0.title", 3),
        ("figures.0.x_title", None),
        ("figures.0.kind", "pie"),
        ("figures.0.log_x", True),
        ("figures.0.series.0.x", [1]),
        ("figures.0.series.0.y", [1, None]),
        ("figures.0.series.0.y", [1, 1e308]),
        ("figures.0.series.0.y", ["1", 2]),
        ("figures.0.series.0.error", [-1, 1]),
        ("figures.0.series.0.name", 3),
        ("figures.0.series.0.hover", [1, 2]),
        ("figures.0.series.0.symbol", "no"),
        ("figures.0.series.0.large", [99]),
        ("figures.0.series.0.color", "red"),
        ("figures.0.series.0.style", "dots"),
        ("figures.0.contour", [[1], [2]]),
        ("figures.1.classes", ["c"]),
        ("figures.1.maps", []),
        ("figures.1.maps.0.0", [1]),
        ("figures.1.names", []),
        ("figures.1.maps.0.0.0", None),
        ("claims.0.effect", "1"),
        ("claims.0.n", None),
        ("claims.0.text", 3),
        ("title", "\ud800"),
    ],
)
def test_a_damaged_study_is_left_out_and_noted(study: Path, at: str, damage: object, teacher_run: Path):
    path = study / "table1" / "experiment.json"
    found = json.loads(path.read_text())
    *way, last = [int(step) if step.isdigit() else step for step in at.split(".")]
    place = found
    for step in way:
        place = place[step]
    place[last] = damage
    if last == "log_x":
        place["series"][0]["x"] = [-1, 2]
    path.write_text(json.dumps(found))
    collected = collect(study)
    assert collected.studies == []
    assert any("study.json is damaged" in note for note in collected.notes)
    ckd.report(study)


def test_only_files_of_the_page_are_replaced(study: Path, tmp_path: Path):
    page = ckd.report(study, out=tmp_path / "r.html")
    beside = tmp_path / "r_files"
    mine = beside / "mine.png"
    mine.write_bytes(b"mine")
    before = {path.name for path in beside.iterdir()}
    assert {"01-t.csv", "03-a.svg", "03-a.png", "03-a.pdf"} <= before
    ckd.report(study, out=page)
    assert {path.name for path in beside.iterdir()} == before
    assert mine.read_bytes() == b"mine"
    with pytest.raises(UserError, match="r_files is there already and is not of this page"):
        ckd.report(study, out=tmp_path / "r.htm")
    with pytest.raises(UserError, match="is no page of ours"):
        ckd.report(study, out=study)
