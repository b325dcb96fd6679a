from __future__ import annotations

import json
from pathlib import Path

import pytest

import checkpointkd as ckd
from checkpointkd import storage
from checkpointkd.errors import UserError

AGAIN = {"data": "digits", "train_images": 100, "epochs": 4, "save_every": 1, "batch_size": 10, "learning_rate": 0.03}


def _snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_same_command_again_changes_nothing(teacher_run: Path):
    before = _snapshot(teacher_run)
    assert list(ckd.train("wrn_10_1", out=teacher_run, **AGAIN)) == [1, 2, 3, 4]
    assert _snapshot(teacher_run) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 5}, "recipe epochs 4 there, 5 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"train_images": 90}, "data train_images 100 there, 90 here"),
        ({"select_on": "test"}, "data protocol 'val' there, 'paper' here"),
        ({"save_every": 2}, "save_every 1 there, 2 here"),
    ],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(teacher_run: Path, change: dict, sentence: str):
    before = _snapshot(teacher_run)
    with pytest.raises(UserError, match="already holds another run") as caught:
        ckd.train("wrn_10_1", out=teacher_run, **(AGAIN | change))
    assert sentence in str(caught.value)
    with pytest.raises(UserError, match="model 'wrn_10_1' there, 'wrn_16_1' here"):
        ckd.train("wrn_16_1", out=teacher_run, **AGAIN)
    assert _snapshot(teacher_run) == before


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"already holds something that is no run \(thesis\.tex\)"):
        ckd.train("wrn_10_1", out=tmp_path, **AGAIN)
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["thesis.tex"]


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path):
    for model, change in (("wrn_10_x", {}), ("wrn_10_1", {"epochs": 0}), ("wrn_10_1", {"data": "digit"})):
        with pytest.raises(UserError):
            ckd.train(model, out=tmp_path / "run", **(AGAIN | change))
        assert not (tmp_path / "run").exists()


def test_what_a_run_leaves(teacher_run: Path):
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
    rows = storage.read_jsonl(teacher_run / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["val_accuracy"] == result.val.accuracy


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other model"])
def test_a_damaged_checkpoint_is_never_loaded(teacher_run: Path, damage: str, tmp_path: Path):
    path = teacher_run / "checkpoints" / "epoch-0004.safetensors"
    content = path.read_bytes()
    if damage == "other model":
        other = ckd.train("wrn_10_2", data="digits", train_images=60, epochs=4, out=tmp_path / "other")
        path.write_bytes(other[4].path.read_bytes())
    else:
        flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
        path.write_bytes({"flip": flipped, "truncate": content[:-100], "empty": b""}[damage])
    sentence = "does not fit wrn_10_1" if damage == "other model" else "is damaged"
    with pytest.raises(UserError, match=rf"epoch-0004\.safetensors {sentence}"):
        ckd.evaluate(str(teacher_run))


def test_checkpoints_are_every_so_many_epochs_and_the_last(tmp_path: Path):
    run = ckd.train("wrn_10_1", data="digits", train_images=60, epochs=5, save_every=2, out=tmp_path / "run")
    assert list(run) == [2, 4, 5]
    assert run.last.epoch == 5


DAMAGE = {
    "run.json": ["[]", "{}", "5", "{", '{"model": 5}', "[" * 100_000, b"\xff", '{"recipe": {}}'],
    "metrics.jsonl": ["[1]", "{}", "{", b"\xff"],
    "result.json": ["[]", "{}", "null", '{"test": {"accuracy": "high"}}'],
    "selection.json": ["[]", "{}", "5", '{"epoch": null}', '{"epoch": 2.7, "rule": "half", "reason": ""}'],
    "plane.json": ["[]", "{}", "5", '{"arrays": 5, "points": [], "settings": null}'],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_named_by_every_verb_that_reads_them(teacher_run: Path, name: str):
    """Whatever is in the file: one sentence that names it, or a result that doesn't need it."""
    ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1)
    ckd.select(teacher_run)
    asked = [
        lambda: ckd.inspect(teacher_run),
        lambda: ckd.evaluate(f"{teacher_run}@best"),
        lambda: ckd.select(teacher_run),
        lambda: ckd.report(teacher_run),
        lambda: ckd.score(teacher_run, decoder_steps=2, decoder_seeds=1),
    ]
    said = []
    for damage in DAMAGE[name]:
        for ask in asked:
            if isinstance(damage, bytes):
                (teacher_run / name).write_bytes(damage)
            else:
                (teacher_run / name).write_text(damage)
            try:
                ask()
            except UserError as error:
                said.append(str(error))
    assert len(said) >= len(DAMAGE[name])
    assert [sentence for sentence in said if name not in sentence or "\n" in sentence] == []


def test_resuming_wants_all_rows(tmp_path: Path):
    """A run whose rows were lost is not continued as if nothing had happened."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ckd.train("wrn_10_1", data="digits", train_images=60, epochs=6, out=out, on_progress=_stop_after(5))
    (out / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: it lacks epochs"):
        ckd.train("wrn_10_1", data="digits", train_images=60, epochs=6, out=out)


def _stop_after(steps: int):
    def tell(task: str, done: int, total: int) -> None:
        if done >= steps:
            raise KeyboardInterrupt

    return tell
