"""The context of tasks: their folder, preset, data, device, and what training takes on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import records, storage
from ..config import LOGIT_CACHE_GB, DataConfig, Device, EstimatorConfig, PrecisionChoice
from ..errors import UserError
from ..recipes import recipe as get_recipe
from ..records.experiments import NetworkSpeed
from ..trackers import Tracking
from .presets import Preset, Role

if TYPE_CHECKING:
    from ..data import Data

VIEWS = 162  # of an image, by padding, cropping and flipping
ID_FILE = ".folder-id"  # distinguishes folders that have the same path on different machines
DIGITS_VIEWS = 9  # digits are not flipped and shift by one pixel
CLASSES = {"digits": 10, "cifar100": 100, "tiny-imagenet": 200}  # logits of other data sets are not cached

MACHINE = "machine.json"  # precision and speed of each network, in the folder of experiments

log = logging.getLogger("checkpointkd")


@dataclass(frozen=True)
class Context:
    """All that tasks of one preset share. A context can be sent to another process.

    `speeds` has an entry per network. `folder_id` is the content of the file `ID_FILE` in `out`. `teacher_steps` and
    `student_steps` are optimizer steps per epoch, and `val_steps` the batches of the validation set, for estimates of
    time. `tracking` says where runs are logged. `train_labels` is the file of `--train-labels`.
    """

    out: Path
    preset: Preset
    data: str
    device: Device = "auto"
    logit_cache_gb: float = LOGIT_CACHE_GB
    speeds: dict[str, NetworkSpeed] = field(default_factory=dict)
    folder_id: str = ""
    teacher_steps: int = 1
    student_steps: int = 1
    val_steps: int = 0
    tracking: Tracking | None = None
    train_labels: str | None = None

    def folder(self, kind: str, name: str, key: dict[str, Any]) -> Path:
        """Return the folder of a task: the name is for people, the hash of the key makes it unique."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return self.out / kind / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)[:120]}-{digest}"

    def check_shared(self, wait: float) -> None:
        """Check that this process sees the folder of the process that started the experiment.

        Args:
            wait: Seconds to wait for the file: a network file system may show a new file late.

        Raises:
            UserError: If this process sees no such folder, or another one.
        """
        deadline = time.monotonic() + wait
        while self.folder_id and _text(self.out / ID_FILE) != self.folder_id:
            if time.monotonic() > deadline or _text(self.out / ID_FILE):
                raise UserError(
                    f"{socket.gethostname()} does not see the folder {self.out} of this experiment. Give --out a "
                    "folder that all machines share, with the same path on each."
                )
            time.sleep(1)

    def data_config(self, role: Role) -> DataConfig:
        """Return the settings of the images that teachers or students train on."""
        preset = self.preset
        return DataConfig(
            data=self.data,
            select_on=preset.select_on,
            train_images=preset.images_of(role),
            train_labels=self.train_labels,
        )

    def estimator_config(self, estimator: str) -> EstimatorConfig:
        """Return how I(X;F) is estimated. The preset's decoder settings apply to the decoder only."""
        if estimator != "decoder":
            return EstimatorConfig(estimator=estimator)
        return EstimatorConfig(steps=self.preset.decoder_steps, seeds=self.preset.decoder_seeds)

    def with_speeds(self, models: Sequence[str], data: Data) -> Context:
        """Return the context with each network's precision and speed, from machine.json or measured now.

        The precision is measured once, on the first network, and used for all networks: runs that are compared must
        have the same precision. It is part of a run's key.
        """
        from ..device import pick_device
        from ..training.precision import benchmark_loading, benchmark_training

        path = self.out / MACHINE
        stored = read_speeds(path) if path.exists() else {}
        recipe = get_recipe(self.preset.student_recipe)
        setting = f"{self.device}, {self.preset.dataset}, {self.preset.precision}, batches of {recipe.batch_size}"
        speeds = dict(stored.get(setting, {}))
        loading = next((speed.loading_seconds_per_step for speed in speeds.values()), None)
        missing = [model for model in dict.fromkeys(models) if model not in speeds]
        if missing:
            log.info(
                "Timing a few training steps of %s on %s training images", ", ".join(missing), f"{len(data.train):,}"
            )
        for model in missing:
            precision = next((speed.precision for speed in speeds.values()), self.preset.precision)
            measured = benchmark_training(
                model, data, recipe, precision=cast(PrecisionChoice, precision), device=pick_device(self.device)
            )
            if loading is None:
                loading = benchmark_loading(data, recipe, pick_device(self.device))
            speeds[model] = records.convert({**measured, "loading_seconds_per_step": loading}, NetworkSpeed)
            storage.write_json(path, records.plain({**stored, setting: speeds}))
        student_images = self.preset.student_train_images or len(data.train)
        return replace(
            self,
            speeds=speeds,
            teacher_steps=math.ceil(len(data.train) / recipe.batch_size),
            student_steps=math.ceil(student_images / recipe.batch_size),
            val_steps=math.ceil(len(data.val) / recipe.batch_size),
        )

    # Estimates of time and space

    @property
    def streams(self) -> bool:
        """Whether images are loaded from files as they are needed, so that teachers run at every step."""
        return self.preset.dataset not in CLASSES

    def training_seconds(
        self, model: str, epochs: int, role: Role = "student", live_teachers: Sequence[str] = ()
    ) -> float:
        """Return about how long a network trains for so many epochs, on the images of its role.

        A step takes as long as its computation, with the forward passes of teachers that run at every step, or as
        loading its images, whichever is longer.
        """
        steps = self.teacher_steps if role == "teacher" else self.student_steps
        speed = self.speeds[model]
        computing = speed.seconds_per_step + sum(map(self._forward_seconds, live_teachers))
        return epochs * steps * max(computing, speed.loading_seconds_per_step)

    def evaluation_seconds(self, model: str, evaluations: int) -> float:
        """Return about how long so many measurements of a network on the validation set take."""
        loading = self.speeds[model].loading_seconds_per_step
        return evaluations * self.val_steps * max(self._forward_seconds(model), loading)

    def teacher_forward_seconds(self, model: str, students: int) -> float:
        """Return about how long a teacher takes for all views that so many students will see of the images.

        It is 0 where teachers run at every step: these passes are part of the students' training.
        """
        if self.streams:
            return 0.0
        views = self._views
        seen = views * (1 - math.exp(-students * self.preset.student_epochs / views))
        return seen * self.student_steps * self._forward_seconds(model)

    def _forward_seconds(self, model: str) -> float:
        return self.speeds[model].seconds_per_step / 3  # the backward pass takes twice as long

    def logit_cache_gigabytes(self) -> float:
        """Return the size of the logit cache of one teacher; 0 for images that are streamed."""
        from ..teachers.logit_cache import size_of

        if self.streams:
            return 0.0
        images = self.student_steps * get_recipe(self.preset.student_recipe).batch_size
        return size_of(images * self._views, CLASSES[self.preset.dataset]) / 1e9

    @property
    def _views(self) -> int:
        return DIGITS_VIEWS if self.preset.dataset == "digits" else VIEWS


def read_speeds(path: Path) -> dict[str, dict[str, NetworkSpeed]]:
    """Return the speeds in a machine.json, by setting and network."""
    return records.read(
        path, dict[str, dict[str, NetworkSpeed]], remedy="Remove the file; the speeds are measured again."
    )


def _text(path: Path) -> str:
    """Return the content of a small file, or an empty string if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
