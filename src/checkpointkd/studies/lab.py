"""Where studies' work is done: each piece in a folder named by all that it is, so that none is done twice."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, verbs
from ..errors import UserError
from ..recipes import recipe as recipe_of
from ..settings import DataSettings, Device, Progress
from .scales import Scale
from .work import Correlating, Distillation, Measuring, Picked, Scoring, Search, Training, Work

if TYPE_CHECKING:
    from ..information import Plane
    from ..trajectory import Trajectory

log = logging.getLogger("checkpointkd")

STEPS_A_SCORE = 33  # training steps of its network that a checkpoint's score costs, at the scales small and paper
MEASURED = {"precision", "seconds_a_step", "steps_an_epoch", "megabytes"}  # of each network
SEARCH_SEED = 1000  # of a search's students, who are no others


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
        what = self._what(work)
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        if isinstance(work, Training):
            smoothed = "-smoothed" if work.smoothing else ""
            return self.out / "runs" / _name(f"{work.model}{smoothed}-{work.role}-seed{work.seed}", key)
        if isinstance(work, Distillation):
            return self.out / "runs" / _name(f"{work.model}-from-{self._words(work.teachers)}-seed{work.seed}", key)
        if isinstance(work, Search):
            return self.out / "searches" / _name(f"{work.model}-from-{self._words(work.teachers)}", key)
        if isinstance(work, Measuring):
            return self.out / "measured" / _name(self._words(work.members), key)
        if isinstance(work, Correlating):
            return self.out / "correlated" / _name(f"{work.run.model}-seed{work.run.seed}", key)
        return self.folder(work.run)

    def done(self, work: Work) -> bool:
        """Whether this work is done; false as well where something that it needs isn't."""
        if not all(self.done(before) for before in work.after()):
            return False
        if isinstance(work, Scoring):
            return self.plane(work) is not None
        file = {Search: "search.json", Measuring: "measured.json", Correlating: "correlated.json"}
        path = self.folder(work) / file.get(type(work), "result.json")
        if isinstance(work, Search) and path.exists():
            found = files.read_json(path)
            return len(found["trials"]) >= found["planned"]
        return path.exists()

    def run(self, work: Training | Distillation) -> Trajectory:
        """A run that is done."""
        from ..trajectory import open_trajectory

        return open_trajectory(self.folder(work))

    def plane(self, work: Scoring) -> Plane | None:
        """The plane of a run that is done, if all of its checkpoints are scored as the scale says."""
        from ..information import load_plane, stale_epochs

        run = self.run(work.run)
        plane = load_plane(run, missing_ok=True)
        if plane is None or plane.epochs != list(run) or stale_epochs(plane, run):
            return None
        settings = plane.settings["settings"]
        asked = (self.scale.decoder_steps, self.scale.decoder_seeds)
        return plane if (settings["steps"], settings["seeds"]) == asked else None

    def found(self, work: Measuring | Correlating | Search) -> dict[str, Any]:
        """What a measurement or a search that is done has found."""
        name = {Search: "search", Measuring: "measured", Correlating: "correlated"}[type(work)]
        return files.read_json(self.folder(work) / f"{name}.json")

    def epoch(self, picked: Picked) -> int:
        """The epoch of a checkpoint whose run is done."""
        from ..trajectory import find

        run = self.run(picked.run)
        selection = run.selection()
        if picked.which == "best" and (selection is None or selection["rule"] != "paper"):
            verbs.select(run.path)
            run = self.run(picked.run)
        return find(run, picked.which).epoch

    def alpha_tau(self, work: Distillation) -> tuple[float, float]:
        """The weight of the labels and the temperature with which a student is taught."""
        if not work.searched:
            return self.scale.alpha, self.scale.tau
        best = self.found(work.search)["best"]["values"]
        return best["alpha"], best["tau"]

    # How it gets there

    def look(self, models: Sequence[str], progress: Progress | None = None) -> Lab:
        """The lab, with each network's precision and speed measured on this machine, or as they were measured when its
        first run was begun: equal runs compute alike."""
        from ..data import load_data
        from ..runs import probe
        from ..verbs.common import device_of

        path = self.out / "machine.json"
        known = files.read_json(path) if path.exists() else {}
        measured = known.get(self._kind(), {}) if isinstance(known, dict) else None
        if not isinstance(measured, dict) or not all(one.keys() >= MEASURED for one in measured.values()):
            raise UserError(f"{path} is damaged; remove it, and the networks' speed is measured anew")
        missing = [model for model in dict.fromkeys(models) if model not in measured]
        if missing:
            data = load_data(self._data_settings(), progress=progress)
            for model in missing:
                recipe = recipe_of(self.scale.student_recipe)
                measured[model] = probe(
                    model, data, recipe, precision=self.scale.precision, device=device_of(self.device)
                )
                files.write_json(path, {**known, self._kind(): measured})
        return Lab(self.out, self.scale, self.data, self.device, self.table_limit, measured)

    def carry_out(self, work: Work, progress: Progress | None = None) -> None:
        """Do this work, or go on with it; what it needs must have been done."""
        scale, folder = self.scale, self.folder(work)
        if isinstance(work, Scoring):
            steps: dict[str, Any] = {"decoder_steps": scale.decoder_steps, "decoder_seeds": scale.decoder_seeds}
            verbs.score(folder, data=self.data, device=self.device, progress=progress, **steps)
            if isinstance(work.run, Training) and work.run.role == "teacher":
                verbs.select(folder)
            return
        if isinstance(work, Measuring | Correlating):
            how: dict[str, Any] = {"data": self.data, "split": "test", "device": self.device, "progress": progress}
            if isinstance(work, Measuring):
                files.write_json(folder / "measured.json", verbs.evaluate(*self._addresses(work.members), **how))
            else:
                run = self.folder(work.run)
                found = verbs.correlate(f"{run}@half", f"{run}@full", tau=scale.tau, **how)
                files.write_json(folder / "correlated.json", found)
            return
        teaches = isinstance(work, Training) and work.role == "teacher"
        common: dict[str, Any] = {
            "data": self.data,
            "out": folder,
            "recipe": scale.teacher_recipe if teaches else scale.student_recipe,
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
        common |= {"seed": work.seed, "save_every": scale.save_every if teaches else scale.student_save_every}
        if isinstance(work, Training):
            verbs.train(work.model, label_smoothing=work.smoothing, **common)
        else:
            alpha, tau = self.alpha_tau(work)
            verbs.distill(work.model, teachers=self._addresses(work.teachers), alpha=alpha, tau=tau, weak_teacher=True,
                          table_limit=self.table_limit, **common)  # fmt: skip

    def cost(self, work: Work) -> float:
        """About how many seconds this work takes on this machine, from nothing."""
        if isinstance(work, Scoring):
            return STEPS_A_SCORE * self.checkpoints(work.run) * self._step(work.run.model)
        if isinstance(work, Measuring | Correlating):
            return 10 * self._step((work.run if isinstance(work, Correlating) else work.members[0].run).model)
        if isinstance(work, Search):
            return 25 * self._epochs(work) * self._steps_an_epoch() * self._step(work.model) / 2  # half are stopped
        return self._epochs(work) * self._steps_an_epoch() * self._step(work.model)

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

    def checkpoints(self, work: Training | Distillation) -> int:
        """How many checkpoints a run leaves."""
        teaches = isinstance(work, Training) and work.role == "teacher"
        every = self.scale.save_every if teaches else self.scale.student_save_every
        return math.ceil(self._epochs(work) / every)

    def _epochs(self, work: Training | Distillation | Search) -> int:
        teaches = isinstance(work, Training) and work.role == "teacher"
        return self.scale.teacher_epochs if teaches else self.scale.student_epochs

    def _steps_an_epoch(self) -> int:
        return self.machine[self.scale.pairs[0].student]["steps_an_epoch"]

    def _step(self, model: str) -> float:
        return self.machine[model]["seconds_a_step"]

    def _kind(self) -> str:
        """What the precision of networks depends on, beside the network."""
        return f"{self.device}, {self.scale.dataset}, {self.scale.precision}"

    def _data_settings(self) -> DataSettings:
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
        if isinstance(work, Training | Distillation | Search):
            teaches = isinstance(work, Training) and work.role == "teacher"
            what: dict[str, Any] = {
                "data": [scale.dataset, scale.protocol, scale.train_images],
                "model": work.model,
                "recipe": scale.teacher_recipe if teaches else scale.student_recipe,
                "epochs": self._epochs(work),
                "batch_size": scale.batch_size,
                "precision": self.machine[work.model]["precision"],
            }
            if not isinstance(work, Search):
                what |= {"every": scale.save_every if teaches else scale.student_save_every, "seed": work.seed}
            if isinstance(work, Training):
                return {**what, "smoothing": work.smoothing}
            what["teachers"] = self._named(work.teachers)
            return what if isinstance(work, Search) else {**what, "alpha, tau": self.alpha_tau(work)}
        if isinstance(work, Measuring):
            return {"members": self._named(work.members)}
        return {"run": self.folder(work.run).name, "tau": scale.tau}

    def _named(self, picked: Sequence[Picked]) -> list[list[Any]]:
        return [[self.folder(one.run).name, self.epoch(one)] for one in picked]


def _name(words: str, key: str) -> str:
    """A folder's name that every file system takes."""
    return f"{re.sub(r'[^A-Za-z0-9._+-]', '_', words)[:120]}-{key}"
