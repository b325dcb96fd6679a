"""The nine studies on digits: what they leave, that runs are shared and kept, and what becomes of bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.data import load_data
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.paper_numbers import CIFAR100
from checkpointkd.experiments.presets import SCALES, Preset
from checkpointkd.experiments.presets import smoke as smoke_scale
from checkpointkd.experiments.reproduce import STUDIES, _module
from checkpointkd.experiments.tasks import CheckpointChoice, DistillTask, ScoreTask, TrainTask, ordered, single, teacher

from .conftest import begun, copied

SCALES_THERE = [make() for by_data in SCALES.values() for make in by_data.values()]
MACHINE = {
    name: {"precision": "fp32", "seconds_a_step": 0.1, "steps_an_epoch": 10, "megabytes": 1.0}
    for preset in SCALES_THERE
    for pair in preset.pairs
    for name in (pair.teacher, pair.student)
}


def _found(folder: Path, study: str) -> dict[str, Any]:
    return json.loads((folder / study / "experiment.json").read_text(encoding="utf-8"))


def _rows(folder: Path, study: str, **wanted: Any) -> list[dict]:
    rows = [json.loads(line) for line in (folder / study / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def _lab(folder: Path, preset: Preset) -> Context:
    context = Context(folder, preset, "digits")
    networks = [name for pair in preset.pairs for name in (pair.teacher, pair.student)]
    return context.look(networks, load_data(context.data_settings()))


def test_all_nine_are_whole(smoke: Path):
    for study in STUDIES:
        found = _found(smoke, study)
        assert found["missing"] == 0, study
        assert found["tables"], study
        assert all("—" not in row for table in found["tables"] for row in table["rows"]), study
        assert not any(note.startswith(("Not finished", "Failed")) for note in found["notes"])
    assert (smoke / "report.html").exists()


def test_rows_are_what_the_runs_left(smoke: Path):
    """Each accuracy against the file of its run, which nothing of the studies wrote."""
    seen = 0
    for study in STUDIES:
        for row in _rows(smoke, study, kind="network"):
            result = json.loads((smoke / "runs" / row["run"] / "result.json").read_text())
            run = json.loads((smoke / "runs" / row["run"] / "run.json").read_text())
            assert row["accuracy"] == 100 * result["test"]["accuracy"]
            assert row["seed"] == run["seed"]
            assert [epoch for _, _, epoch in row.get("teachers", [])] == [
                one["epoch"] for one in run.get("teachers", [])
            ]
            if "teachers" in row:
                assert (row["alpha"], row["tau"]) == (run["kd"]["alpha"], run["kd"]["tau"])
            seen += 1
    assert seen > 100


def test_tables_hold_the_means_of_their_rows(smoke: Path):
    (table, _) = _found(smoke, "table3")["tables"]
    for line in table["rows"][:2]:
        for cell, arm in zip(line[1:], ("scratch", "0.3", "midpoint", "0.7", "last", "best"), strict=True):
            values = [row["accuracy"] for row in _rows(smoke, "table3", kind="network", pair=line[0], arm=arm)]
            assert len(values) == 2
            assert cell.startswith(f"{fmean(values):.2f} ± ")
    assert table["rows"][2][0] == "average of the pairs"
    chosen = _rows(smoke, "table3", kind="network", pair="wrn_16_2 → wrn_10_1", arm="best")[0]["teachers"][0][2]
    picked = [point["epoch"] for point in _rows(smoke, "figure7", kind="point", model="wrn_16_2") if point["chosen"]]
    assert picked == [chosen], "what Table 3 calls T* is what Figure 7 chose"


def test_runs_are_shared_and_never_done_twice(smoke: Path, tmp_path: Path):
    """As many folders as there are different runs, though studies ask for them many times over."""
    asked = [row["run"] for study in STUDIES for row in _rows(smoke, study, kind="network")]
    students = {path.name for path in (smoke / "runs").iterdir() if "teacher" not in path.name.split("-seed")[0]}
    assert set(asked) == students
    assert len(asked) > 2 * len(students)
    half = _rows(smoke, "figure2", kind="network", arm="midpoint")[0]["run"]
    assert half in [row["run"] for row in _rows(smoke, "table3", kind="network", arm="midpoint")]
    smoke = copied(smoke, tmp_path / "copy", "table1")
    left = {file: file.stat().st_mtime_ns for file in (smoke / "runs").rglob("*.safetensors")}
    before = _found(smoke, "table1")
    told: list[tuple[str, int, int]] = []
    again = ckd.reproduce("table1", preset="smoke", out=smoke, on_progress=lambda *step: told.append(step))
    assert again["studies"]["table1"]["tables"] == before["tables"]
    assert again["estimate"]["left"] == 0
    assert told[-1][0] == "all runs"
    assert told[-1][1] == told[-1][2]
    assert {file: file.stat().st_mtime_ns for file in (smoke / "runs").rglob("*.safetensors")} == left


def test_what_is_one_run_has_one_folder(smoke: Path):
    """T* is the checkpoint that was chosen, by whatever name; other settings are other runs."""
    preset = smoke_scale()
    context = _lab(smoke, preset)
    pair = preset.pairs[0]
    best = DistillTask(pair.student, single(pair, "best")["best"], 0)
    epoch = context.epoch(best.teachers[0])
    by_number = DistillTask(pair.student, single(pair, str(epoch))[str(epoch)], 0)
    assert context.folder(best) == context.folder(by_number)
    others = [
        replace(context, preset=replace(preset, **change)).folder(best)
        for change in (
            {"alpha": 0.1},
            {"tau": 2.0},
            {"student_epochs": 5},
            {"student_save_every": 1},
        )
    ]
    others += [context.folder(replace(best, seed=1)), context.folder(TrainTask(pair.student, "student", 0))]
    assert len({context.folder(best), *others}) == 1 + len(others)


def test_a_selection_by_another_rule_does_not_become_the_paper_s_choice(smoke: Path, tmp_path: Path):
    folder = copied(smoke, tmp_path / "copy")
    preset = smoke_scale()
    context = _lab(folder, preset)
    picked = CheckpointChoice(teacher(preset.pairs[0]), "best")
    before = context.epoch(picked)
    for other in ({"rule": "best-accuracy"}, {"estimator": "ridge"}):
        run = context.folder(picked.run)
        if "estimator" in other:
            ckd.score(run, estimator="ridge")
        ckd.select(run, **other)
        assert context.chosen(picked.run) is None
        assert not context.done(ScoreTask(picked.run))
        ckd.reproduce("figure7", preset="smoke", out=folder)
        assert context.epoch(picked) == before
    (run / "selection.json").unlink()  # killed between the scores and the choice
    ckd.reproduce("figure7", preset="smoke", out=folder)
    assert context.epoch(picked) == before


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("scale", SCALES_THERE, ids=lambda preset: f"{preset.name}-{preset.dataset}")
def test_a_study_with_nothing_done_yet_says_so(name: str, preset: Preset):
    """Every study at every scale has something to do, and results that can be shown before anything is done."""
    module = _module(name)
    parts = module.needs(preset)
    assert parts
    results = module.results(preset, [])
    assert results.tables
    assert all(claim.verdict == "not run yet" for claim in results.claims)
    works = ordered(part.work for part in parts)
    assert all(works.index(before) < works.index(work) for work in works for before in work.after())


def test_the_paper_s_averages_are_those_that_it_prints():
    """Table 3's last line and Table 1's differences, from the numbers that we hold."""
    for arm, average in {"0.3": 69.78, "midpoint": 70.76, "0.7": 70.77, "last": 70.46, "best": 70.87}.items():
        assert fmean(pair[arm] for pair in CIFAR100.values()) == pytest.approx(average, abs=0.006)
    best = [pair["best in hindsight"] - pair["last"] for pair in CIFAR100.values()]
    assert best == pytest.approx([0.58, 0.96, 0.15, 0.42])
    assert [pair["midpoint"] - pair["last"] for pair in CIFAR100.values()] == pytest.approx([0.08, 0.96, 0.01, 0.16])


def test_an_estimate_says_what_is_left(tmp_path: Path):
    """Half of the runs done halves the cost: the rest is asked of a lab in which nothing takes any time to look up."""
    preset = smoke_scale()
    context = Context(tmp_path, preset, "digits", machine=MACHINE)
    run = TrainTask("wrn_16_2", "teacher")
    assert context.cost(run) == pytest.approx(20 * 10 * 0.1)
    assert context.cost(ScoreTask(run)) == pytest.approx(33 * 10 * 0.1)
    assert context.checkpoints(run) == 10
    assert context.checkpoints(TrainTask("wrn_10_1", "student")) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table9", "--preset", "smoke"], "Unknown study 'table9'. Did you mean"),
        (["table1", "--preset", "smal"], "Unknown scale 'smal'. Did you mean 'small'?"),
        (["table1", "--preset", "small", "--data", "digits"], "the scale 'small' is for cifar100, not for 'digits'"),
        (["table1", "--preset", "smoke", "--jobs", "0"], "--jobs must be auto or from 1 to 256, not 0"),
        (["table1", "--preset", "smoke", "--seeds", "0"], "a study needs from 1 to 1,000 seeds, not 0"),
        (["table1", "--preset", "smoke", "--select-on", "hold"], "hold"),
        (["table1", "--preset", "smoke", "--alpha", "2"], "alpha must lie in [0, 1], not 2"),
        (["table1", "--preset", "smoke", "--tau", "0"], "tau must be above 0"),
        (["table1", "--preset", "smoke", "--logit-cache-gb", "-1"], "the table limit must be from 0"),
        (["table1", "--preset", "smoke", "--data", "digits:foo"], "foo"),
        (["table1", "--preset", "smoke", "--precision", "fp8"], "fp8"),
        (["table1", "--preset", "paper", "--data", "cifar100:nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told_in_one_sentence(arguments: list[str], words: str, tmp_path: Path, capsys):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("machine.json", text) for text in ("[]", "no JSON", '{"a": {"wrn_10_1": {}}}', '{"a": {"b": 5}}')),
        ("machine.json", json.dumps({"a": {"b": {**MACHINE["wrn_10_1"], "precision": "fp64"}}})),
        ("machine.json", json.dumps({"a": {"b": {**MACHINE["wrn_10_1"], "seconds_a_step": -1}}})),
        *(("experiments.json", text) for text in ("[]", "{}", "no JSON", '{"scale": 3}')),
    ],
)
def test_damaged_files_are_named(name: str, damage: str, smoke: Path, tmp_path: Path, capsys):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    shutil.copy(smoke / "experiments.json", path.parent)
    path.write_text(damage)
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *(("measured", text) for text in ("{}", "[]", "null", '{"ensemble": {}, "members": [], "images": 3}')),
        *(("correlated", text) for text in ("{}", "[]", "no JSON", '{"classes": []}')),
        ("runs", "{}"),
    ],
)
def test_a_damaged_result_is_named(smoke: Path, tmp_path: Path, kind: str, damage: str, capsys):
    study = {"measured": "table2", "correlated": "figure5", "runs": "table2"}[kind]
    out = copied(smoke, tmp_path / "out")
    name = "result.json" if kind == "runs" else f"{kind}.json"
    path = next(one for one in sorted(out.glob(f"{kind}/*/{name}")) if kind != "measured" or "+" in one.parent.name)
    path.write_text(damage)
    assert main(["reproduce", study, "--preset", "smoke", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert str(path.parent) in said
    assert "Traceback" not in said


def test_a_run_that_lost_a_checkpoint_is_named(smoke: Path, tmp_path: Path, capsys):
    out = copied(smoke, tmp_path / "out")
    (run,) = out.glob("runs/wrn_16_2-teacher-seed0-*")
    (run / "checkpoints" / "epoch-0006.safetensors").unlink()
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(out)]) == 2
    assert f"{run} is complete and has 9 of its 10 checkpoints" in capsys.readouterr().err


def test_nothing_begins_where_its_page_can_t_be_written(tmp_path: Path, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(tmp_path)]) == 2
    assert "is no page of ours" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_other_settings_replace_results_and_it_is_said(smoke: Path, tmp_path: Path, caplog):
    out = copied(smoke, tmp_path / "out", "figure7")
    ckd.reproduce("figure7", preset="smoke", out=out, seeds=1)
    assert "the results of figure7 are replaced" in caplog.text
    assert "seeds 2 there, 1 here" in caplog.text


def test_alpha_and_tau_are_searched_for_each_pair(tmp_path: Path):
    """The students are taught with what their search found, which is another for other teachers."""
    ckd.reproduce("figure3", preset="smoke", out=tmp_path, seeds=1, search=True, teacher_epochs=10, student_epochs=2)
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("searches/*/search.json")}
    rows = _rows(tmp_path, "figure3", kind="network")
    assert len(rows) == 7
    for row in rows:
        of_these = row["run"].rpartition("-seed")[0]
        (search,) = [one for name, one in found.items() if name.rpartition("-")[0] == of_these]
        assert {"alpha": row["alpha"], "tau": row["tau"]} == search["best"]["values"]
        assert len(search["trials"]) == 3
    assert "α and τ are searched for each" in _found(tmp_path, "figure3")["tables"][0]["note"]


def test_one_folder_holds_one_scale(smoke: Path, tmp_path: Path, capsys, cifar100: Path):
    shutil.copy(smoke / "experiments.json", tmp_path)
    assert (
        main(["reproduce", "table1", "--preset", "small", "--data", f"cifar100:{cifar100}", "--out", str(tmp_path)])
        == 2
    )
    assert "holds studies of the scale smoke; choose another --out" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(teacher_run: Path, capsys):
    """The page of a study would stand for all that is there."""
    folder = teacher_run.parent
    before = {path for path in folder.rglob("*") if path.name != ".lock"}
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(folder)]) == 2
    assert f"{folder} holds something else (teacher); choose another --out" in capsys.readouterr().err
    assert {path for path in folder.rglob("*") if path.name != ".lock"} == before


def test_a_report_before_the_first_study_is_done_says_so(smoke: Path, tmp_path: Path):
    shutil.copy(smoke / "experiments.json", tmp_path)
    run = next(smoke.glob("runs/wrn_16_2-teacher-seed0-*"))
    shutil.copytree(run, tmp_path / "runs" / run.name)
    assert "not finished: studies" in ckd.report(tmp_path).read_text(encoding="utf-8")


def _start(out: Path) -> subprocess.Popen:
    """Figure 3 with one seed, two runs at once."""
    words = f"study figure3 --preset smoke --seeds 1 --jobs 2 --out {out}".split()
    command, pipe = [sys.executable, "-m", "checkpointkd.cli", *words], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _wait_for(done: Any, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def _results(out: Path) -> int:
    return len(list(out.glob("runs/*/result.json")))


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(one) for one in found.split()]


def _wait_for_the_end_of(processes: list[int]) -> None:
    until = time.monotonic() + 20
    while any(map(_alive, processes)):
        assert time.monotonic() < until, "runs of a study that is gone go on"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_leaves_no_process_behind(how: signal.Signals, smoke: Path, tmp_path: Path):
    """With two runs at once, and told alone. That the same command goes on to the same rows: test_campaign.py."""
    process = _start(begun(smoke, tmp_path))
    there = len(list(tmp_path.glob("runs/*/metrics.jsonl")))
    _wait_for(lambda: len(list(tmp_path.glob("runs/*/metrics.jsonl"))) > there, process)
    children = _children(process.pid)
    assert len(children) >= 2
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    _wait_for_the_end_of(children)
    assert (how, process.returncode, "stopped; what is saved is kept" in said) in (
        (signal.SIGKILL, -9, False),
        (signal.SIGTERM, 143, True),
    )


def test_interrupted_it_says_so_and_shows_what_there_is(smoke: Path, tmp_path: Path, capsys):
    out = begun(smoke, tmp_path / "interrupted")
    there = _results(out)
    process = _start(out)
    _wait_for(lambda: _results(out) > there, process)
    children = _children(process.pid)
    assert main(["reproduce", "table1", "--preset", "smoke", "--out", str(out)]) == 2
    assert "is in use by process" in capsys.readouterr().err, "one folder, one study at a time"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what is saved is kept" in said
    assert "Traceback" not in said
    _wait_for_the_end_of(children)
    found = _found(out, "figure3")
    assert found["missing"] > 0
    assert found["notes"][0].startswith("Not finished: ")
    page = ckd.report(out).read_text(encoding="utf-8")
    assert found["notes"][0] in page
    assert "Not run yet: " in page


def test_what_fails_is_named_and_the_rest_is_done(smoke: Path, tmp_path: Path, capsys):
    """One run's folder is taken by something else: all others are done, the table says what is missing."""
    out = copied(smoke, tmp_path / "out", "table3")
    row = _rows(out, "table3", kind="network", arm="0.7", seed=1)[0]
    shutil.rmtree(out / "runs" / row["run"])
    (out / "runs" / row["run"]).mkdir()
    (out / "runs" / row["run"] / "thesis.tex").write_text("precious")
    gone = _rows(out, "table3", kind="network", arm="scratch", seed=1)[0]["run"]
    shutil.rmtree(out / "runs" / gone)
    assert main(["reproduce", "table3", "--preset", "smoke", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "1 piece of" in said
    assert "already holds something that is no run (thesis.tex)" in said
    assert (out / "runs" / gone / "result.json").exists()
    found = _found(out, "table3")
    assert found["missing"] == 1
    assert any(note.startswith("Failed: ") and "thesis.tex" in note for note in found["notes"])
    assert (out / "runs" / row["run"] / "thesis.tex").read_text() == "precious"


def test_the_paper_s_scale_asks_first(tmp_path: Path, cifar100: Path):
    """It says what it will cost before anything is trained, and begins only when told to."""
    command = [
        sys.executable,
        "-m",
        "checkpointkd.cli",
        "study",
        "figure3",
        "--preset",
        "paper",
        "--data",
        f"cifar100:{cifar100}",
        "--precision",
        "fp32",
        "--out",
        str(tmp_path / "paper"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ})
    assert done.returncode == 2
    assert "10 teachers, 45 students" in done.stderr
    assert "hours on this machine" in done.stderr
    assert "say --yes (in Python yes=True) to begin" in done.stderr
    assert not (tmp_path / "paper" / "runs").exists()
