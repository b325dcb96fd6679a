"""Where studies' work is done: each piece in a folder named by all that it is, so that none is done twice."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .. import commands, records, storage
from ..config import (
    CORRELATION_KINDS,
    DataConfig,
    Device,
    EstimatorConfig,
    EstimatorName,
    OnProgress,
    PilotConfig,
    Precision,
)
from ..errors import UserError
from ..recipes import recipe as recipe_of
from ..records import PilotRecord, TuneRecord, plain
from ..selection.pilot_plan import PLAN_VERSION
from .presets import Preset, get_preset
from .tasks import (
    AdvisedStudent,
    CheckpointChoice,
    CorrelateTask,
    DistillTask,
    EvaluateTask,
    PilotTask,
    ScoreTask,
    Task,
    TrainTask,
    TuneTask,
)

if TYPE_CHECKING:
    from ..checkpoints import Trajectory
    from ..data import Data
    from ..information import Plane
    from ..selection import Choice

log = logging.getLogger("checkpointkd")

STEPS_A_SCORE = 33  # training steps of its network that a checkpoint's score costs, at the scales small and paper
SEARCH_SEED = 1000  # of a search's students, who are no others
PROBING_SEED = 2000  # of the first probing's
FILES: dict[type, str] = {  # what says that work is done
    TrainTask: "result.json",
    DistillTask: "result.json",
    TuneTask: "tune.json",
    PilotTask: "pilot.json",
    EvaluateTask: "measured.json",
    CorrelateTask: "correlated.json",
}


@dataclass(frozen=True)
class Context:
    """A folder with the runs of all studies of one scale, and how to add to it. Can be sent to another process."""

    out: Path
    preset: Preset
    data: str
    device: Device = "auto"
    logit_cache_gb: float = 20.0
    machine: dict[str, dict[str, Any]] = field(default_factory=dict)  # what `look` measured, by network

    # What is there

    def folder(self, work: Task) -> Path:
        """Where this work is, or will be; what it needs must have been done."""
        if isinstance(work, AdvisedStudent):
            return self.folder(self.advised(work))
        what = self._what(work)
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        if isinstance(work, TrainTask):
            recipe = self._recipe(work)
            usual = not _teaches(work) or recipe == get_preset(self.preset.name, self.preset.dataset).teacher_recipe
            unlike = "" if usual else f"-{recipe}"
            unlike += "-smoothed" * bool(work.smoothing)
            return self.out / "runs" / _name(f"{work.model}{unlike}-{work.role}-seed{work.seed}", key)
        if isinstance(work, DistillTask):
            return self.out / "runs" / _name(f"{work.model}-from-{self._words(work.teachers)}-seed{work.seed}", key)
        if isinstance(work, TuneTask):
            return self.out / "searches" / _name(f"{work.model}-from-{self._words(work.teachers)}", key)
        if isinstance(work, PilotTask):
            return self.out / "probed" / _name(f"{work.model}-of-{work.run.model}.{work.run.seed}-seed{work.seed}", key)
        if isinstance(work, EvaluateTask):
            return self.out / "measured" / _name(self._words(work.members), key)
        if isinstance(work, CorrelateTask):
            return self.out / "correlated" / _name(f"{work.run.model}-seed{work.run.seed}", key)
        return self.folder(work.run)

    def done(self, work: Task) -> bool:
        """Whether this work is done; false as well where something that it needs isn't. Raises UserError for work that
        is damaged."""
        if not all(self.done(before) for before in work.after()):
            return False
        if isinstance(work, ScoreTask):
            return self.plane(work) is not None and (not _decides(work) or self.chosen(work.run) is not None)
        if isinstance(work, AdvisedStudent):
            return self.done(self.advised(work))
        path = self.folder(work) / FILES[type(work)]
        if not path.exists():
            return False
        if isinstance(work, TuneTask):
            found = self.found(work)
            return len(found["trials"]) >= found["planned"]
        if isinstance(work, TrainTask | DistillTask):
            there, due = len(self.run(work)), self.checkpoints(work)
            lacks = f"{path.parent} is complete and has {there} of its {due} checkpoints"
            if there != due:
                raise UserError(f"{lacks}; remove the folder, and the run is made anew")
        return True

    def run(self, work: TrainTask | DistillTask | AdvisedStudent) -> Trajectory:
        """A run that is done."""
        from ..checkpoints import open_trajectory

        return open_trajectory(self.folder(work))

    def chosen(self, work: TrainTask | DistillTask) -> int | None:
        """What Algorithm 1 chose of a teacher by the decoder's scores; None where another rule chose last, or none."""
        selection = self.run(work).selection()
        if selection is None or selection.rule != "algorithm1":
            return None
        return selection.epochs[0] if selection.estimator == "decoder" else None

    def plane(self, work: ScoreTask) -> Plane | None:
        """The plane of a run that is done, if all of its checkpoints are scored as the scale says."""
        from ..information import load_planes, stale_epochs

        run = self.run(work.run)
        plane = load_planes(run).get(work.estimator)
        if plane is None or plane.epochs != list(run) or stale_epochs(plane, run):
            return None
        asked = self.estimator_settings(work.estimator)
        sizes = asked.images(run.run.data.train_size, run.run.data.val_size)
        asked = replace(asked, fit_images=sizes[0], measure_images=sizes[1])
        return plane if plane.settings.estimator_config == asked else None

    def estimator_settings(self, estimator: EstimatorName) -> EstimatorConfig:
        """How I(X;F) is estimated; the decoder's schedule is no part of the ridge."""
        if estimator == "ridge":
            return EstimatorConfig(estimator=estimator)
        return EstimatorConfig(steps=self.preset.decoder_steps, seeds=self.preset.decoder_seeds)

    def found(self, work: EvaluateTask | CorrelateTask | TuneTask | PilotTask) -> dict[str, Any]:
        """What a measurement, a search or a probing that is done has found."""
        path = self.folder(work) / FILES[type(work)]
        if type(work) in RECORDS:
            return plain(records.read(path, RECORDS[type(work)], remedy="Remove it, and it is made anew."))
        return read_checked(path, CHECKS[type(work)])

    def epoch(self, picked: CheckpointChoice) -> int:
        """The epoch of a checkpoint whose run is done, and scored, if that matters."""
        from ..checkpoints import find_checkpoint

        if not picked.by_rule:
            return find_checkpoint(self.run(picked.run), picked.which).epoch
        chosen = self.chosen(picked.run) if picked.which == "best" else self.choice(picked).epoch
        assert chosen is not None, "it needs the scoring of the run"
        return chosen

    def choice(self, picked: CheckpointChoice) -> Choice:
        """What a rule chooses of a run that is scored."""
        folder = self.folder(picked.run)
        return _choice(folder, picked.which, (folder / "plane.json").stat().st_mtime_ns)

    def advised(self, work: AdvisedStudent) -> TrainTask | DistillTask:
        """The student that a probing which is done advises."""
        found = self.found(work.probing)["result"]
        if not found["epochs"]:
            return TrainTask(work.model, "student", work.seed)
        teachers = tuple(CheckpointChoice(work.probing.run, str(epoch)) for epoch in found["epochs"])
        return DistillTask(work.model, teachers, work.seed, alpha=found["alpha"])

    def alpha_tau(self, work: DistillTask) -> tuple[float, float]:
        """The weight of the labels and the temperature with which a student is taught."""
        if not work.searched:
            return self.preset.alpha if work.alpha is None else work.alpha, self.preset.tau
        best = self.found(work.search)["best"]
        if best is None:
            raise UserError(f"no trial of {self.folder(work.search)} reached a finite loss")
        return best["values"]["alpha"], best["values"]["tau"]

    # How it gets there

    def look(self, models: Sequence[str], data: Data) -> Context:
        """The lab, with each network's precision and speed measured on this machine, or as they were measured when its
        first run was begun: equal runs compute alike."""
        from ..device import pick_device
        from ..training.precision import benchmark_training

        path = self.out / "machine.json"
        known = read_checked(path, _is_machine) if path.exists() else {}
        measured = known.get(self._kind(), {})
        recipe = recipe_of(self.preset.student_recipe)
        missing = [model for model in dict.fromkeys(models) if model not in measured]
        if missing:
            for model in missing:
                measured[model] = benchmark_training(
                    model, data, recipe, precision=self.preset.precision, device=pick_device(self.device)
                )
                storage.write_json(path, {**known, self._kind(): measured})
        steps = math.ceil(len(data.train) / recipe.batch_size)  # of these images, however many there were then
        measured = {model: {**one, "steps_per_epoch": steps} for model, one in measured.items()}
        return Context(self.out, self.preset, self.data, self.device, self.logit_cache_gb, measured)

    def carry_out(self, work: Task, on_progress: OnProgress | None = None) -> None:
        """Do this work, or go on with it; what it needs must have been done."""
        preset, folder = self.preset, self.folder(work)
        if isinstance(work, AdvisedStudent):
            self.carry_out(self.advised(work), on_progress)
            return
        if isinstance(work, PilotTask):
            self._probe(work, on_progress)
            return
        if isinstance(work, ScoreTask):
            asked = self.estimator_settings(work.estimator)
            commands.score(
                folder,
                estimator=asked.estimator,
                decoder_steps=asked.steps,
                decoder_seeds=asked.seeds,
                data=self.data,
                device=self.device,
                on_progress=on_progress,
            )
            if _decides(work):
                commands.select(folder)
            return
        if isinstance(work, EvaluateTask | CorrelateTask):
            how: dict[str, Any] = {
                "data": self.data,
                "split": "test",
                "device": self.device,
                "on_progress": on_progress,
            }
            if isinstance(work, EvaluateTask):
                storage.write_json(
                    folder / FILES[EvaluateTask], commands.evaluate(*self._addresses(work.members), **how)
                )
            else:
                run = self.folder(work.run)
                found = commands.correlate(f"{run}@midpoint", f"{run}@last", tau=preset.tau, **how)
                storage.write_json(folder / FILES[CorrelateTask], found)
            return
        assert isinstance(work, TrainTask | DistillTask | TuneTask)
        teaches = _teaches(work)
        common: dict[str, Any] = {
            "data": self.data,
            "out": folder,
            "recipe": self._recipe(work),
            "epochs": preset.teacher_epochs if teaches else preset.student_epochs,
            "batch_size": preset.batch_size,
            "select_on": preset.select_on,
            "train_images": preset.train_images,
            "precision": self.machine[work.model]["precision"],
            "device": self.device,
            "on_progress": on_progress,
        }
        if isinstance(work, TuneTask):
            teachers = self._addresses(work.teachers)
            commands.tune(
                work.model,
                teachers=teachers,
                seed=SEARCH_SEED,
                trials=preset.search_trials,
                allow_weak_teacher=True,
                logit_cache_gb=self.logit_cache_gb,
                **common,
            )
            return
        common["checkpoint_dtype"] = preset.checkpoint_dtype
        common |= {"seed": work.seed, "save_every": self._every(work)}
        if isinstance(work, TrainTask):
            commands.train(work.model, label_smoothing=work.smoothing, **common)
        else:
            alpha, tau = self.alpha_tau(work)
            commands.distill(
                work.model,
                teachers=self._addresses(work.teachers),
                alpha=alpha,
                tau=tau,
                allow_weak_teacher=True,
                logit_cache_gb=self.logit_cache_gb,
                **common,
            )

    def _probe(self, work: PilotTask, on_progress: OnProgress | None) -> None:
        """Hold a probing's lessons."""
        from ..data import load_data
        from ..device import pick_device
        from ..selection.pilot import PilotSearch, run_pilot_search

        preset = self.preset
        run_pilot_search(
            PilotSearch(
                student=work.model,
                trajectory=self.run(work.run),
                data=load_data(self.data_settings(), on_progress=on_progress),
                recipe=recipe_of(preset.student_recipe, epochs=preset.student_epochs, batch_size=preset.batch_size),
                settings=self.probe_settings(work),
                out=self.folder(work),
                precision=self.machine[work.model]["precision"],
                logit_cache_gb=self.logit_cache_gb,
                device=pick_device(self.device),
                command_options={
                    "recipe": preset.student_recipe,
                    "epochs": preset.student_epochs,
                    "batch_size": preset.batch_size,
                },
                on_progress=on_progress,
            )
        )

    def probe_settings(self, work: PilotTask) -> PilotConfig:
        """A probing's settings; its seed is no student's."""
        return PilotConfig(
            budget=work.budget, alphas=self.preset.alphas, tau=self.preset.tau, seed=PROBING_SEED + work.seed
        )

    def cost(self, work: Task) -> float:
        """About how many seconds this work takes on this machine, from nothing."""
        if isinstance(work, PilotTask):
            epochs = self.probe_settings(work).epochs(self.preset.student_epochs)
            return epochs * self._steps_per_epoch() * self._step(work.model)
        if isinstance(work, ScoreTask):
            return STEPS_A_SCORE * self.checkpoints(work.run) * self._step(work.run.model)
        if isinstance(work, EvaluateTask | CorrelateTask):
            return 10 * self._step((work.run if isinstance(work, CorrelateTask) else work.members[0].run).model)
        if isinstance(work, TuneTask):
            return 25 * self._epochs(work) * self._steps_per_epoch() * self._step(work.model) / 2  # half are stopped
        return self._epochs(work) * self._steps_per_epoch() * self._step(work.model)

    def megabytes(self, work: TrainTask | DistillTask | AdvisedStudent) -> float:
        """What a run's checkpoints take up."""
        return (
            self.checkpoints(work)
            * self.machine[work.model]["megabytes"]
            / (2 if (self.preset.checkpoint_dtype == "float16") else 1)
        )

    def asking_cost(self, picked: CheckpointChoice, students: int) -> float:
        """About how many seconds it takes to ask a teacher for all that so many students will see of the images."""
        views = self._views()
        seen = views * (1 - math.exp(-students * self.preset.student_epochs / views))
        return seen * self._steps_per_epoch() * self._step(picked.run.model) / 3  # of a step a third is the way forward

    def table_gigabytes(self) -> float:
        """How large a table of one teacher's answers is; 0 for pictures that are streamed."""
        from ..teachers.logit_cache import size_of

        if self.preset.dataset == "imagenet":
            return 0.0
        classes = {"digits": 10, "cifar100": 100, "tiny-imagenet": 200}[self.preset.dataset]
        images = self._steps_per_epoch() * recipe_of(self.preset.student_recipe).batch_size
        return size_of(images * self._views(), classes) / 1e9

    def _views(self) -> int:
        return 9 if self.preset.dataset == "digits" else 162

    def checkpoints(self, work: TrainTask | DistillTask | AdvisedStudent) -> int:
        """How many checkpoints a run leaves."""
        return math.ceil(self._epochs(work) / self._every(work))

    def _every(self, work: TrainTask | DistillTask | AdvisedStudent) -> int:
        """How many epochs lie between checkpoints. Where they are to be carried about, only runs of the first seed keep
        more than the last, as no study looks at others' curves."""
        if (self.preset.checkpoint_dtype == "float16") and work.seed > 0:
            return self._epochs(work)
        return self.preset.save_every if _teaches(work) else self.preset.student_save_every

    def _epochs(self, work: TrainTask | DistillTask | AdvisedStudent | TuneTask | PilotTask) -> int:
        teaches = _teaches(work)
        return self.preset.teacher_epochs if teaches else self.preset.student_epochs

    def _recipe(self, work: TrainTask | DistillTask | TuneTask | PilotTask) -> str:
        own = self.preset.teacher_recipe if _teaches(work) else self.preset.student_recipe
        return (work.recipe if isinstance(work, TrainTask) else None) or own

    def _steps_per_epoch(self) -> int:
        return next(iter(self.machine.values()))["steps_per_epoch"]  # the same for all

    def _step(self, model: str) -> float:
        return self.machine[model]["seconds_per_step"]

    def _kind(self) -> str:
        """What the precision of networks depends on, beside the network."""
        return f"{self.device}, {self.preset.dataset}, {self.preset.precision}"

    def data_settings(self) -> DataConfig:
        """The images of all runs."""
        return DataConfig(data=self.data, select_on=self.preset.select_on, train_images=self.preset.train_images)

    def _addresses(self, picked: Sequence[CheckpointChoice]) -> list[str]:
        return [f"{self.folder(one.run)}@{self.epoch(one)}" for one in picked]

    def _words(self, picked: Sequence[CheckpointChoice]) -> str:
        """Checkpoints in a folder's name: `wrn_16_2.0e15+30` are two of the first run."""
        by_run: dict[TrainTask, list[int]] = {}
        for one in picked:
            by_run.setdefault(one.run, []).append(self.epoch(one))
        return "-".join(f"{run.model}.{run.seed}e{'+'.join(map(str, epochs))}" for run, epochs in by_run.items())

    def _what(self, work: Task) -> dict[str, Any]:
        """All that determines what comes out of this work."""
        preset = self.preset
        if isinstance(work, TrainTask | DistillTask | TuneTask | PilotTask):
            what: dict[str, Any] = {
                "data": [preset.dataset, preset.select_on, preset.train_images],
                "model": work.model,
                "recipe": self._recipe(work),
                "epochs": self._epochs(work),
                "batch_size": preset.batch_size,
                "precision": self.machine[work.model]["precision"],
            }
            if isinstance(work, PilotTask):
                probing = [self.folder(work.run).name, asdict(self.probe_settings(work)), list(self.run(work.run))]
                return {**what, "probing": probing, "plan": PLAN_VERSION}
            if not isinstance(work, TuneTask):
                what |= {"every": self._every(work), "seed": work.seed}
                what |= {"half": True} if (preset.checkpoint_dtype == "float16") else {}
            if isinstance(work, TrainTask):
                return {**what, "smoothing": work.smoothing}
            what["teachers"] = self._named(work.teachers)
            return what if isinstance(work, TuneTask) else {**what, "alpha, tau": self.alpha_tau(work)}
        if isinstance(work, EvaluateTask):
            return {"members": self._named(work.members)}
        assert not isinstance(work, AdvisedStudent)
        return {"run": self.folder(work.run).name, "tau": preset.tau}

    def _named(self, picked: Sequence[CheckpointChoice]) -> list[list[Any]]:
        return [[self.folder(one.run).name, self.epoch(one)] for one in picked]


@cache
def _choice(folder: Path, rule: str, written: int) -> Choice:
    """What a rule chooses of a run, by the scores that were written then; folders' names ask for it again and again."""
    from ..checkpoints import open_trajectory
    from ..information import load_plane
    from ..selection import Candidates, choose

    run = open_trajectory(folder)
    return choose(Candidates(list(run), run.planned_epochs, load_plane(run)), rule=rule)


def read_checked(path: Path, check: Callable[[Any], bool]) -> dict[str, Any]:
    """What a JSON file holds; raises UserError unless the check finds it to be what it should."""
    found = storage.read_json(path)
    try:
        right = isinstance(found, dict) and check(found)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
        right = False
    if not right:
        raise UserError(f"{path} is damaged; remove it, and it is made anew")
    return found


def _finite(*values: Any) -> bool:
    return all(isinstance(value, float | int) and math.isfinite(value) for value in values)


def _is_measured(found: dict[str, Any]) -> bool:
    together, members = found["ensemble"], found["members"]
    names = ("accuracy", "accuracy_se", "calibration_error", *(["disagreement"] if len(members) > 1 else []))
    return _finite(found["images"], *(together[name] for name in names), *(member["accuracy"] for member in members))


def _is_correlation(found: dict[str, Any]) -> bool:
    several = len(found["classes"])
    for kind in CORRELATION_KINDS:
        maps = [*found[kind]["similarity"], found[kind]["difference"]]
        if len(maps) != 3 or any(len(each) != several or any(len(line) != several for line in each) for each in maps):
            return False
        intervals = [*(one for many in found[kind]["numbers"].values() for one in many)]
        intervals += found[kind]["differences"].values()
        if not _finite(*(cell for each in maps for line in each for cell in line)):
            return False
        if not all(_finite(one["value"], one["low"], one["high"]) for one in intervals):
            return False
    return isinstance(found["order"], str) and _finite(found["images"], found["tau"])


def _is_machine(found: dict[str, Any]) -> bool:
    """What `look` measured, by what precision depends on, then by network."""
    names = ("seconds_per_step", "steps_per_epoch", "megabytes")
    return all(
        one["precision"] in get_args(Precision)
        and _finite(*(one[name] for name in names))
        and all(one[name] > 0 for name in names)
        for networks in found.values()
        for one in networks.values()
    )


CHECKS = {EvaluateTask: _is_measured, CorrelateTask: _is_correlation}
RECORDS = {TuneTask: TuneRecord, PilotTask: PilotRecord}


def _teaches(work: Task) -> bool:
    return isinstance(work, TrainTask) and work.role == "teacher"


def _decides(work: ScoreTask) -> bool:
    """Whether Algorithm 1 chooses by these scores."""
    return _teaches(work.run) and work.estimator == "decoder"


def _name(words: str, key: str) -> str:
    """A folder's name that every file system takes."""
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', words)[:120]}-{key}"
