from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd.cli import main
from checkpointkd.errors import UserError

AGAIN = {"data": "digits", "train_images": 100, "epochs": 4, "save_every": 1, "batch_size": 10, "learning_rate": 0.03}


def _snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_same_command_again_changes_nothing(teacher_run: Path):
    before = _snapshot(teacher_run)
    assert list(ckd.train("wrn_10_1", out=teacher_run, **AGAIN)) == [1, 2, 3, 4]
    assert _snapshot(teacher_run) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "recipe epochs 4 stored, 5 given"),
        ({"seed": 1}, "seed 0 stored, 1 given"),
        ({"train_images": 90}, "data train_images 100 stored, 90 given"),
        ({"select_on": "test"}, "data select_on 'val' stored, 'test' given"),
        ({"save_every": 2}, "save_every 1 stored, 2 given"),
    ],
)
def test_another_run_in_the_directory_is_refused_with_the_difference(teacher_run: Path, change: dict, message: str):
    before = _snapshot(teacher_run)
    with pytest.raises(UserError, match="already holds another run") as caught:
        ckd.train("wrn_10_1", out=teacher_run, **(AGAIN | change))
    assert message in str(caught.value)
    with pytest.raises(UserError, match="model 'wrn_10_1' stored, 'wrn_16_1' given"):
        ckd.train("wrn_16_1", out=teacher_run, **AGAIN)
    assert _snapshot(teacher_run) == before


def test_a_directory_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"already holds other files \(thesis\.tex\)"):
        ckd.train("wrn_10_1", out=tmp_path, **AGAIN)
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["thesis.tex"]


def test_a_mistake_leaves_no_directory(tmp_path: Path):
    for model, change in (("wrn_10_x", {}), ("wrn_10_1", {"epochs": 0}), ("wrn_10_1", {"data": "digit"})):
        with pytest.raises(UserError):
            ckd.train(model, out=tmp_path / "run", **(AGAIN | change))
        assert not (tmp_path / "run").exists()


def test_the_files_of_a_run(teacher_run: Path):
    names = sorted(str(file.relative_to(teacher_run)) for file in teacher_run.rglob("*") if file.is_file())
    checkpoints = [f"checkpoints/epoch-000{epoch}.safetensors" for epoch in (1, 2, 3, 4)]
    assert [name for name in names if not name.startswith(".lock")] == [
        *checkpoints,
        "metrics.jsonl",
        "result.json",
        "run.json",
    ]
    run = json.loads((teacher_run / "run.json").read_text())
    assert run["data"]["select_on"] == "val"
    assert run["precision"] == "fp32"
    assert run["provenance"]["torch"]
    result = json.loads((teacher_run / "result.json").read_text())
    assert result["epoch"] == 4
    assert result["test_images"] == 599
    rows = [json.loads(line) for line in (teacher_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["val_accuracy"] == result["val"]["accuracy"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other model"])
def test_a_damaged_checkpoint_is_never_loaded(teacher_run: Path, damage: str, tmp_path: Path):
    path = teacher_run / "checkpoints" / "epoch-0004.safetensors"
    content = path.read_bytes()
    if damage == "other model":
        wider = ckd.train("wrn_10_2", data="digits", train_images=60, epochs=4, out=tmp_path / "wider")
        path.write_bytes(wider[4].path.read_bytes())
    else:
        flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
        path.write_bytes({"flip": flipped, "truncate": content[:-100], "empty": b""}[damage])
    message = "does not fit wrn_10_1" if damage == "other model" else "is damaged"
    with pytest.raises(UserError, match=rf"epoch-0004\.safetensors {message}"):
        ckd.evaluate(str(teacher_run))


def test_checkpoints_are_saved_every_second_epoch_and_last(tmp_path: Path):
    run = ckd.train("wrn_10_1", data="digits", train_images=60, epochs=5, save_every=2, out=tmp_path / "run")
    assert list(run) == [2, 4, 5]
    assert run.last.epoch == 5


DAMAGE = {
    "run.json": ["[]", "{}", "5", "{", '{"model": 5}', "[" * 100_000, b"\xff", '{"recipe": {}}'],
    "metrics.jsonl": ["[1]", "{}", "{", b"\xff"],
    "result.json": ["[]", "{}", "null", '{"test": {"accuracy": "high"}}'],
    "selection.json": ["[]", "{}", "5", '{"epoch": null}', '{"epoch": 2.7, "rule": "midpoint", "reason": ""}'],
    "plane.json": ["[]", '{"decoder": {}}', "5", '{"arrays": 5, "points": [], "settings": null}'],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_every_command_names_a_damaged_file_that_it_reads(teacher_run: Path, name: str):
    """Whatever the file holds, a command names it in one line, or does not need it."""
    ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1)
    ckd.select(teacher_run)
    commands = [
        lambda: ckd.inspect(teacher_run),
        lambda: ckd.evaluate(f"{teacher_run}@best"),
        lambda: ckd.select(teacher_run),
        lambda: ckd.report(teacher_run),
        lambda: ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1),
    ]
    errors = []
    for damage in DAMAGE[name]:
        for command in commands:
            if isinstance(damage, bytes):
                (teacher_run / name).write_bytes(damage)
            else:
                (teacher_run / name).write_text(damage)
            try:
                command()
            except UserError as error:
                errors.append(str(error))
    assert len(errors) >= len(DAMAGE[name])
    assert [message for message in errors if name not in message or "\n" in message] == []


@pytest.mark.parametrize("command", ["inspect", "score", "distill"])
def test_a_run_of_the_old_format_is_refused_in_one_line(command: str, teacher_run: Path, tmp_path: Path, capfd):
    """run.json as version 0.1.0 wrote it, before the format had a number."""
    shutil.copy(Path(__file__).with_name("run_format_1.json"), teacher_run / "run.json")
    arguments = {
        "inspect": [str(teacher_run)],
        "score": [str(teacher_run)],
        "distill": ["wrn_10_1", "--teachers", f"{teacher_run}@4", "--out", str(tmp_path / "student")],
    }
    assert main([command, *arguments[command]]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"checkpointkd: {teacher_run / 'run.json'} has file format 1, and this version reads format 2. "
        "Train again in another folder, or use the version that wrote it."
    ]
    assert not (tmp_path / "student").exists()


def test_resuming_needs_all_rows(tmp_path: Path):
    """A run that lost its rows is not continued."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ckd.train("wrn_10_1", data="digits", train_images=60, epochs=6, out=out, on_progress=_stop_after(5))
    (out / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: epochs before \d+ are missing"):
        ckd.train("wrn_10_1", data="digits", train_images=60, epochs=6, out=out)


def _stop_after(steps: int):
    def on_progress(task: str, done: int, total: int) -> None:
        if done >= steps:
            raise KeyboardInterrupt

    return on_progress
