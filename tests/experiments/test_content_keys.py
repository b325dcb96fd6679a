"""The content keys of the preset `smoke`. If one changes, users' results are computed again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from checkpointkd.experiments.catalog import EXPERIMENTS, get_experiment
from checkpointkd.experiments.context import Context
from checkpointkd.experiments.items import single_teachers, teacher
from checkpointkd.experiments.tasks import (
    CheckpointChoice,
    DistillTask,
    EvaluateTask,
    ScoreTask,
    Task,
    TrainTask,
    TuneTask,
    ordered,
)

from .conftest import smoke_preset, speeds_of

GOLDEN = Path(__file__).parents[1] / "golden" / "content_keys.json"


def _depends_on_results(task: Task) -> bool:
    """Whether the key depends on what a rule or a pilot search chose."""
    teachers = task.members if isinstance(task, EvaluateTask) else getattr(task, "teachers", ())
    return hasattr(task, "pilot") or any(choice.by_rule for choice in teachers)


def test_keys_and_folders_match_the_golden_file(smoke: Path):
    """The golden file has every task that does not depend on results, with its key and the folder that it left."""
    preset = smoke_preset()
    context = Context(smoke, preset, "digits", speeds=speeds_of(preset))
    tasks = [item.task for name in EXPERIMENTS for item in get_experiment(name).needs(preset)]
    tasks += [TuneTask(pair.student, single_teachers(pair, "last")["last"]) for pair in preset.pairs]
    entries = {
        json.dumps(
            {
                "kind": type(task).__name__,
                "folder": task.folder(context).relative_to(smoke).as_posix(),
                "key": task.key(context),
            },
            sort_keys=True,
        )
        for task in ordered(tasks)
        if not isinstance(task, ScoreTask) and not _depends_on_results(task)
    }
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert entries == {json.dumps(entry, sort_keys=True) for entry in golden}
    for entry in golden:
        second_seed = "-seed1" in entry["folder"] or "-seed2001" in entry["folder"]  # not trained for all experiments
        if entry["kind"] != "TuneTask" and not second_seed:  # the preset tunes nothing
            assert (smoke / entry["folder"]).is_dir(), entry["folder"]


def test_equal_runs_have_one_folder_and_other_settings_another(smoke: Path):
    """T* is the checkpoint that Algorithm 1 chose, under whatever name."""
    preset = smoke_preset()
    context = Context(smoke, preset, "digits", speeds=speeds_of(preset))
    pair = preset.pairs[0]
    best = DistillTask(pair.student, single_teachers(pair, "best")["best"], 0)
    epoch = str(best.teachers[0].epoch(context))
    by_number = DistillTask(pair.student, (CheckpointChoice(teacher(pair), epoch),), 0)
    assert best.folder(context) == by_number.folder(context)
    changes = ({"alpha": 0.1}, {"tau": 2.0}, {"student_epochs": 5}, {"student_save_every": 1})
    folders = [best.folder(replace(context, preset=replace(preset, **change))) for change in changes]
    folders += [replace(best, seed=1).folder(context), TrainTask(pair.student, "student", 0).folder(context)]
    assert len({best.folder(context), *folders}) == 1 + len(folders)


def test_one_run_of_a_recipe_however_it_is_asked_for(smoke: Path):
    """A teacher of the other learning-rate schedule, by `lr-schedule` or by --teacher-recipe, is one run."""
    preset = smoke_preset()
    context = Context(smoke, preset, "digits", speeds=speeds_of(preset))
    other = replace(context, preset=replace(preset, teacher_recipe="cifar100-step"))
    run = TrainTask("wrn_16_2", "teacher")
    assert replace(run, recipe="cifar100-step").folder(context) == run.folder(other)
    assert run.folder(context) == replace(run, recipe="digits").folder(other)
    needs = get_experiment("lr-schedule").needs
    scored, scored_by_other = (
        {item.task.folder(each) for item in needs(each.preset) if isinstance(item.task, ScoreTask)}
        for each in (context, other)
    )
    assert scored == scored_by_other
