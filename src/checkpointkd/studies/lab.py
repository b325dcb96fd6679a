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

from .. import files, verbs
from ..errors import require
from ..lessons import PLAN
from ..recipes import recipe as recipe_of
from ..reports import is_probing
from ..settings import (
    KINDS_OF_CORRELATION,
    DataSettings,
    Device,
    Estimator,
    EstimatorSettings,
    Precision,
    ProbeSettings,
    Progress,
)
from .scales import Scale, scale_of
from .work import Correlating, Distillation, Following, Measuring, Picked, Probing, Scoring, Search, Training, Work

if TYPE_CHECKING:
    from ..data import Data
    from ..information import Plane
    from ..selection import Choice
    from ..trajectory import Trajectory

log = logging.getLogger("checkpointkd")

STEPS_A_SCORE = 33  # training steps of its network that a checkpoint's score costs, at the scales small and paper
SEARCH_SEED = 1000  # of a search's students, who are no others
PROBING_SEED = 2000  # of the first probing's
FILES: dict[type, str] = {  # what says that work is done
    Training: "result.json", Distillation: "result.json", Search: "search.json", Probing: "probed.json",
    Measuring: "measured.json", Correlating: "correlated.json",
}  # fmt: skip


@dataclass(frozen=True)
class Lab:
    """A folder with the runs of all studies of one scale, and how to add to it. Can be sent to another process."""

    out: Path
    scale: Scale
    data: str
    device: Device = "auto"
    table_limit: float = 20.0
    machine: dict[str, dict[str, Any]] = field(default_factory=dict)  # what `look` measured, by network

    # What is there

    def folder(self, work: Work) -> Path:
        """Where this work is, or will be; what it needs must have been done."""
        if isinstance(work, Following):
            return self.folder(self.advised(work))
        what = self._what(work)
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        if isinstance(work, Training):
            recipe = self._recipe(work)
            usual = not _teaches(work) or recipe == scale_of(self.scale.name, self.scale.dataset).teacher_recipe
            unlike = "" if usual else f"-{recipe}"
            unlike += "-smoothed" * bool(work.smoothing)
            return self.out / "runs" / _name(f"{work.model}{unlike}-{work.role}-seed{work.seed}", key)
        if isinstance(work, Distillation):
            return self.out / "runs" / _name(f"{work.model}-from-{self._words(work.teachers)}-seed{work.seed}", key)
        if isinstance(work, Search):
            return self.out / "searches" / _name(f"{work.model}-from-{self._words(work.teachers)}", key)
        if isinstance(work, Probing):
            return self.out / "probed" / _name(f"{work.model}-of-{work.run.model}.{work.run.seed}-seed{work.seed}", key)
        if isinstance(work, Measuring):
            return self.out / "measured" / _name(self._words(work.members), key)
        if isinstance(work, Correlating):
            return self.out / "correlated" / _name(f"{work.run.model}-seed{work.run.seed}", key)
        return self.folder(work.run)

    def done(self, work: Work) -> bool:
        """Whether this work is done; false as well where something that it needs isn't. Raises UserError for work that
        is damaged."""
        if not all(self.done(before) for before in work.after()):
            return False
        if isinstance(work, Scoring):
            return self.plane(work) is not None and (not _decides(work) or self.chosen(work.run) is not None)
        if isinstance(work, Following):
            return self.done(self.advised(work))
        path = self.folder(work) / FILES[type(work)]
        if not path.exists():
            return False
        if isinstance(work, Search):
            found = self.found(work)
            return len(found["trials"]) >= found["planned"]
        if isinstance(work, Training | Distillation):
            there, due = len(self.run(work)), self.checkpoints(work)
            lacks = f"{path.parent} is complete and has {there} of its {due} checkpoints"
            require(there == due, f"{lacks}; remove the folder, and the run is made anew")
        return True

    def run(self, work: Training | Distillation | Following) -> Trajectory:
        """A run that is done."""
        from ..trajectory import open_trajectory

        return open_trajectory(self.folder(work))

    def chosen(self, work: Training | Distillation) -> int | None:
        """What Algorithm 1 chose of a teacher by the decoder's scores; None where another rule chose last, or none."""
        selection = self.run(work).selection()
        if selection is None or selection["rule"] != "paper":
            return None
        return selection["epoch"] if (selection.get("made_with") or {}).get("estimator") == "decoder" else None

    def plane(self, work: Scoring) -> Plane | None:
        """The plane of a run that is done, if all of its checkpoints are scored as the scale says."""
        from ..information import load_plane, stale_epochs

        run = self.run(work.run)
        plane = load_plane(run, estimator=work.estimator, missing_ok=True)
        if plane is None or plane.epochs != list(run) or stale_epochs(plane, run):
            return None
        asked = self.estimator_settings(work.estimator)
        sizes = asked.images(run.run["data"]["train_size"], run.run["data"]["selection_size"])
        asked = replace(asked, fit_images=sizes[0], measure_images=sizes[1])
        return plane if plane.settings["settings"] == asdict(asked) else None

    def estimator_settings(self, estimator: Estimator) -> EstimatorSettings:
        """How I(X;F) is estimated; the decoder's schedule is no part of the ridge."""
        if estimator == "ridge":
            return EstimatorSettings(estimator=estimator)
        return EstimatorSettings(steps=self.scale.decoder_steps, seeds=self.scale.decoder_seeds)

    def found(self, work: Measuring | Correlating | Search | Probing) -> dict[str, Any]:
        """What a measurement, a search or a probing that is done has found."""
        return read_checked(self.folder(work) / FILES[type(work)], CHECKS[type(work)])

    def epoch(self, picked: Picked) -> int:
        """The epoch of a checkpoint whose run is done, and scored, if that matters."""
        from ..trajectory import find

        if not picked.by_rule:
            return find(self.run(picked.run), picked.which).epoch
        chosen = self.chosen(picked.run) if picked.which == "best" else self.choice(picked).epoch
        assert chosen is not None, "it needs the scoring of the run"
        return chosen

    def choice(self, picked: Picked) -> Choice:
        """What a rule chooses of a run that is scored."""
        folder = self.folder(picked.run)
        return _choice(folder, picked.which, (folder / "plane.json").stat().st_mtime_ns)

    def advised(self, work: Following) -> Training | Distillation:
        """The student that a probing which is done advises."""
        found = self.found(work.probing)["found"]
        if not found["epochs"]:
            return Training(work.model, "student", work.seed)
        teachers = tuple(Picked(work.probing.run, str(epoch)) for epoch in found["epochs"])
        return Distillation(work.model, teachers, work.seed, alpha=found["alpha"])

    def alpha_tau(self, work: Distillation) -> tuple[float, float]:
        """The weight of the labels and the temperature with which a student is taught."""
        if not work.searched:
            return self.scale.alpha if work.alpha is None else work.alpha, self.scale.tau
        best = self.found(work.search)["best"]
        require(best is not None, f"no trial of {self.folder(work.search)} reached a finite loss")
        return best["values"]["alpha"], best["values"]["tau"]

    # How it gets there

    def look(self, models: Sequence[str], data: Data) -> Lab:
        """The lab, with each network's precision and speed measured on this machine, or as they were measured when its
        first run was begun: equal runs compute alike."""
        from ..runs import probe
        from ..verbs.common import device_of

        path = self.out / "machine.json"
        known = read_checked(path, _is_machine) if path.exists() else {}
        measured = known.get(self._kind(), {})
        recipe = recipe_of(self.scale.student_recipe)
        missing = [model for model in dict.fromkeys(models) if model not in measured]
        if missing:
            for model in missing:
                measured[model] = probe(
                    model, data, recipe, precision=self.scale.precision, device=device_of(self.device)
                )
                files.write_json(path, {**known, self._kind(): measured})
        steps = math.ceil(len(data.train) / recipe.batch_size)  # of these images, however many there were then
        measured = {model: {**one, "steps_an_epoch": steps} for model, one in measured.items()}
        return Lab(self.out, self.scale, self.data, self.device, self.table_limit, measured)

    def carry_out(self, work: Work, progress: Progress | None = None) -> None:
        """Do this work, or go on with it; what it needs must have been done."""
        scale, folder = self.scale, self.folder(work)
        if isinstance(work, Following):
            self.carry_out(self.advised(work), progress)
            return
        if isinstance(work, Probing):
            self._probe(work, progress)
            return
        if isinstance(work, Scoring):
            asked = self.estimator_settings(work.estimator)
            verbs.score(folder, estimator=asked.estimator, decoder_steps=asked.steps, decoder_seeds=asked.seeds,
                        data=self.data, device=self.device, progress=progress)  # fmt: skip
            if _decides(work):
                verbs.select(folder)
            return
        if isinstance(work, Measuring | Correlating):
            how: dict[str, Any] = {"data": self.data, "split": "test", "device": self.device, "progress": progress}
            if isinstance(work, Measuring):
                files.write_json(folder / FILES[Measuring], verbs.evaluate(*self._addresses(work.members), **how))
            else:
                run = self.folder(work.run)
                found = verbs.correlate(f"{run}@half", f"{run}@full", tau=scale.tau, **how)
                files.write_json(folder / FILES[Correlating], found)
            return
        assert isinstance(work, Training | Distillation | Search)
        teaches = _teaches(work)
        common: dict[str, Any] = {
            "data": self.data,
            "out": folder,
            "recipe": self._recipe(work),
            "epochs": scale.teacher_epochs if teaches else scale.student_epochs,
            "batch_size": scale.batch_size,
            "protocol": scale.protocol,
            "train_images": scale.train_images,
            "precision": self.machine[work.model]["precision"],
            "device": self.device,
            "progress": progress,
        }
        if isinstance(work, Search):
            teachers = self._addresses(work.teachers)
            verbs.search(work.model, teachers=teachers, seed=SEARCH_SEED, trials=scale.search_trials, weak_teacher=True,
                         table_limit=self.table_limit, **common)  # fmt: skip
            return
        common["half_checkpoints"] = scale.half_checkpoints
        common |= {"seed": work.seed, "save_every": self._every(work)}
        if isinstance(work, Training):
            verbs.train(work.model, label_smoothing=work.smoothing, **common)
        else:
            alpha, tau = self.alpha_tau(work)
            verbs.distill(work.model, teachers=self._addresses(work.teachers), alpha=alpha, tau=tau, weak_teacher=True,
                          table_limit=self.table_limit, **common)  # fmt: skip

    def _probe(self, work: Probing, progress: Progress | None) -> None:
        """Hold a probing's lessons."""
        from ..data import load_data
        from ..probing import Race, probe
        from ..verbs.common import device_of, recipe_from

        scale = self.scale
        probe(
            Race(
                student=work.model,
                trajectory=self.run(work.run),
                data=load_data(self.data_settings(), progress=progress),
                recipe=recipe_from(scale.student_recipe, scale.student_epochs, scale.batch_size, None),
                settings=self.probe_settings(work),
                out=self.folder(work),
                precision=self.machine[work.model]["precision"],
                table_limit=self.table_limit,
                device=device_of(self.device),
                told={"recipe": scale.student_recipe, "epochs": scale.student_epochs, "batch_size": scale.batch_size},
                progress=progress,
            )
        )

    def probe_settings(self, work: Probing) -> ProbeSettings:
        """A probing's settings; its seed is no student's."""
        return ProbeSettings(
            budget=work.budget, alphas=self.scale.alphas, tau=self.scale.tau, seed=PROBING_SEED + work.seed
        )

    def cost(self, work: Work) -> float:
        """About how many seconds this work takes on this machine, from nothing."""
        if isinstance(work, Probing):
            epochs = self.probe_settings(work).epochs(self.scale.student_epochs)
            return epochs * self._steps_an_epoch() * self._step(work.model)
        if isinstance(work, Scoring):
            return STEPS_A_SCORE * self.checkpoints(work.run) * self._step(work.run.model)
        if isinstance(work, Measuring | Correlating):
            return 10 * self._step((work.run if isinstance(work, Correlating) else work.members[0].run).model)
        if isinstance(work, Search):
            return 25 * self._epochs(work) * self._steps_an_epoch() * self._step(work.model) / 2  # half are stopped
        return self._epochs(work) * self._steps_an_epoch() * self._step(work.model)

    def megabytes(self, work: Training | Distillation | Following) -> float:
        """What a run's checkpoints take up."""
        return (
            self.checkpoints(work) * self.machine[work.model]["megabytes"] / (2 if self.scale.half_checkpoints else 1)
        )

    def asking_cost(self, picked: Picked, students: int) -> float:
        """About how many seconds it takes to ask a teacher for all that so many students will see of the images."""
        views = self._views()
        seen = views * (1 - math.exp(-students * self.scale.student_epochs / views))
        return seen * self._steps_an_epoch() * self._step(picked.run.model) / 3  # of a step a third is the way forward

    def table_gigabytes(self) -> float:
        """How large a table of one teacher's answers is; 0 for pictures that are streamed."""
        from ..tables import size_of

        if self.scale.dataset == "imagenet":
            return 0.0
        classes = {"digits": 10, "cifar100": 100, "tiny-imagenet": 200}[self.scale.dataset]
        images = self._steps_an_epoch() * recipe_of(self.scale.student_recipe).batch_size
        return size_of(images * self._views(), classes) / 1e9

    def _views(self) -> int:
        return 9 if self.scale.dataset == "digits" else 162

    def checkpoints(self, work: Training | Distillation | Following) -> int:
        """How many checkpoints a run leaves."""
        return math.ceil(self._epochs(work) / self._every(work))

    def _every(self, work: Training | Distillation | Following) -> int:
        """How many epochs lie between checkpoints. Where they are to be carried about, only runs of the first seed keep
        more than the last, as no study looks at others' curves."""
        if self.scale.half_checkpoints and work.seed > 0:
            return self._epochs(work)
        return self.scale.save_every if _teaches(work) else self.scale.student_save_every

    def _epochs(self, work: Training | Distillation | Following | Search | Probing) -> int:
        teaches = _teaches(work)
        return self.scale.teacher_epochs if teaches else self.scale.student_epochs

    def _recipe(self, work: Training | Distillation | Search | Probing) -> str:
        own = self.scale.teacher_recipe if _teaches(work) else self.scale.student_recipe
        return (work.recipe if isinstance(work, Training) else None) or own

    def _steps_an_epoch(self) -> int:
        return next(iter(self.machine.values()))["steps_an_epoch"]  # the same for all

    def _step(self, model: str) -> float:
        return self.machine[model]["seconds_a_step"]

    def _kind(self) -> str:
        """What the precision of networks depends on, beside the network."""
        return f"{self.device}, {self.scale.dataset}, {self.scale.precision}"

    def data_settings(self) -> DataSettings:
        """The images of all runs."""
        return DataSettings(data=self.data, protocol=self.scale.protocol, train_images=self.scale.train_images)

    def _addresses(self, picked: Sequence[Picked]) -> list[str]:
        return [f"{self.folder(one.run)}@{self.epoch(one)}" for one in picked]

    def _words(self, picked: Sequence[Picked]) -> str:
        """Checkpoints in a folder's name: `wrn_16_2.0e15+30` are two of the first run."""
        by_run: dict[Training, list[int]] = {}
        for one in picked:
            by_run.setdefault(one.run, []).append(self.epoch(one))
        return "-".join(f"{run.model}.{run.seed}e{'+'.join(map(str, epochs))}" for run, epochs in by_run.items())

    def _what(self, work: Work) -> dict[str, Any]:
        """All that determines what comes out of this work."""
        scale = self.scale
        if isinstance(work, Training | Distillation | Search | Probing):
            what: dict[str, Any] = {
                "data": [scale.dataset, scale.protocol, scale.train_images],
                "model": work.model,
                "recipe": self._recipe(work),
                "epochs": self._epochs(work),
                "batch_size": scale.batch_size,
                "precision": self.machine[work.model]["precision"],
            }
            if isinstance(work, Probing):
                probing = [self.folder(work.run).name, asdict(self.probe_settings(work)), list(self.run(work.run))]
                return {**what, "probing": probing, "plan": PLAN}
            if not isinstance(work, Search):
                what |= {"every": self._every(work), "seed": work.seed}
                what |= {"half": True} if scale.half_checkpoints else {}
            if isinstance(work, Training):
                return {**what, "smoothing": work.smoothing}
            what["teachers"] = self._named(work.teachers)
            return what if isinstance(work, Search) else {**what, "alpha, tau": self.alpha_tau(work)}
        if isinstance(work, Measuring):
            return {"members": self._named(work.members)}
        assert not isinstance(work, Following)
        return {"run": self.folder(work.run).name, "tau": scale.tau}

    def _named(self, picked: Sequence[Picked]) -> list[list[Any]]:
        return [[self.folder(one.run).name, self.epoch(one)] for one in picked]


@cache
def _choice(folder: Path, rule: str, written: int) -> Choice:
    """What a rule chooses of a run, by the scores that were written then; folders' names ask for it again and again."""
    from ..information import load_plane
    from ..selection import Candidates, choose
    from ..trajectory import open_trajectory

    run = open_trajectory(folder)
    return choose(Candidates(list(run), run.planned_epochs, load_plane(run)), rule=rule)


def read_checked(path: Path, check: Callable[[Any], bool]) -> dict[str, Any]:
    """What a JSON file holds; raises UserError unless the check finds it to be what it should."""
    found = files.read_json(path)
    try:
        right = isinstance(found, dict) and check(found)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
        right = False
    require(right, f"{path} is damaged; remove it, and it is made anew")
    return found


def _finite(*values: Any) -> bool:
    return all(isinstance(value, float | int) and math.isfinite(value) for value in values)


def _is_measured(found: dict[str, Any]) -> bool:
    together, members = found["ensemble"], found["members"]
    names = ("accuracy", "accuracy_se", "calibration_error", *(["disagreement"] if len(members) > 1 else []))
    return _finite(found["images"], *(together[name] for name in names), *(member["accuracy"] for member in members))


def _is_correlation(found: dict[str, Any]) -> bool:
    several = len(found["classes"])
    for kind in KINDS_OF_CORRELATION:
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


def _is_search(found: dict[str, Any]) -> bool:
    best = found["best"]
    right = best is None or _finite(best["values"]["alpha"], best["values"]["tau"])
    return right and isinstance(found["trials"], list) and _finite(found["planned"])


def _is_machine(found: dict[str, Any]) -> bool:
    """What `look` measured, by what precision depends on, then by network."""
    names = ("seconds_a_step", "steps_an_epoch", "megabytes")
    return all(
        one["precision"] in get_args(Precision) and _finite(*(one[name] for name in names))
        and all(one[name] > 0 for name in names)
        for networks in found.values() for one in networks.values()
    )  # fmt: skip


CHECKS = {Measuring: _is_measured, Correlating: _is_correlation, Search: _is_search, Probing: is_probing}


def _teaches(work: Work) -> bool:
    return isinstance(work, Training) and work.role == "teacher"


def _decides(work: Scoring) -> bool:
    """Whether Algorithm 1 chooses by these scores."""
    return _teaches(work.run) and work.estimator == "decoder"


def _name(words: str, key: str) -> str:
    """A folder's name that every file system takes."""
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', words)[:120]}-{key}"
