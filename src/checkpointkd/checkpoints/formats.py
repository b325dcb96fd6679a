"""Recognize a checkpoint that another trainer wrote: the format, and how many epochs it has completed.

The weights are found by their names, whatever the format (`weights.py`). A format here is a name and a way to read
the epoch, from the file's content or else from its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import UserError
from ..models.hugging_face import named_network, timm_network
from .distributed import sharded_folder
from .inert_pickle import StandIn
from .tensor_plans import TensorPlan, UnusableFile
from .torch_files import opened
from .weights import ENDINGS, flattened, parts, size

UNKNOWN = -1

# Who writes files with these entries, and whether they count epochs from 0.
FORMATS: dict[str, tuple[set[str], bool]] = {
    "Lightning": ({"pytorch-lightning_version", "state_dict"}, True),
    "timm": ({"state_dict", "arch", "version", "epoch"}, True),
    "torchvision reference": ({"model", "optimizer", "lr_scheduler", "epoch", "args"}, True),
    "CheckpointKD authors": ({"model_state", "optim_state", "epoch"}, False),
    "PyTorch ImageNet example": ({"state_dict", "arch", "best_acc1", "epoch"}, False),
}

# Files that count steps: their entries, and which of them is the number of steps.
STEP_FORMATS = (
    ("detectron2", {"model", "optimizer", "scheduler", "iteration"}, "iteration"),
    ("DeepSpeed", {"module", "global_steps"}, "global_steps"),
)

# Numbers in names: `epoch-10`, `epoch_10`, `ep10`; `step_500`, `iter_500`; `model_10`, `ckpt10` at the end.
_NUMBER = r"[=_. -]{0,2}(\d{1,9})(?!\d|\.\d|k)"
EPOCH = re.compile(rf"(?<![a-z])(?:epochs?|ep){_NUMBER}")
STEP = re.compile(rf"(?<![a-z])(?:steps?|iter(?:ation)?s?){_NUMBER}")
_NOUNS = "model|net|network|checkpoint|ckpt|weights|snapshot|state|student|teacher"
COUNT = re.compile(rf"(?<![a-z])(?:{_NOUNS})[_.-]?(\d{{1,6}})$")
COPY = re.compile(r"(?<![a-z])(?:best|last|latest|final|copy)(?![a-z])|-v\d+\.")


@dataclass(frozen=True)
class FoundFile:
    """One checkpoint of another trainer. `number` counts completed epochs, or steps where the folder is counted so."""

    path: Path  # the file, or the directory of one checkpoint
    name: str  # of the file, or of the folder that holds one checkpoint
    format: str
    number: int  # UNKNOWN where neither the content nor the name tells it
    number_from: str
    stated: str  # the number as its writer counts
    exact: bool = True  # False where the writer may count from 0
    step: int = UNKNOWN
    within: bool = False  # whether it was saved within an epoch, so that its step is the better count
    prefix: str = ""  # the name before its number, where the number is from the name
    network: str | None = None  # the name of the network, as `--model` takes it, where the file states it
    stood_in: tuple[str, ...] = ()  # classes in the file that are not weights, and were not imported
    args: Mapping[str, Any] = field(default_factory=dict)  # plain options of the training that the file holds
    accuracy: float | None = None  # from 0 to 1, as the file states it
    accuracy_of: str | None = None  # the key of the weights with this accuracy; None for any

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return size(self.path)

    @property
    def is_copy(self) -> bool:
        """Whether the name says that the file repeats another checkpoint (`last`, `best`), or has no number at all."""
        return COPY.search(self.name.lower()) is not None or not re.search(r"\d", self.name)


def recognize(path: Path, name: str | None = None) -> FoundFile | None:
    """Return the format and the epoch of a checkpoint; None for a file without weights.

    Args:
        path: A file, or a folder that holds the files of one checkpoint.
        name: The name that may tell the epoch: of the folder where it holds one file. By default the path's own.

    Raises:
        UserError: If the file is damaged or is not a checkpoint.
    """
    name = name or path.name
    if path.is_dir():
        by_trainer = (path / "trainer_state.json").exists() or not sharded_folder(path)
        return _hugging_face(path, name) if by_trainer else _sharded(path, name)
    if path.suffix.lower() == ".safetensors":
        metadata, format = storage.read_metadata(path), "safetensors, checkpointkd's writer"
        epoch, step = (
            _whole_number(number) if isinstance(number := metadata.get(unit), str) else None
            for unit in ("epoch", "step")
        )
        if epoch is not None:
            return FoundFile(path, name, format, epoch, "the file", f"epoch {epoch}")
        if step is not None:
            return FoundFile(path, name, format, UNKNOWN, "the file", f"step {step}", step=step, within=True)
        return _by_name(path, name, "safetensors")
    with opened(path) as content:
        file = _recognize(path, name, content.value)
        return file and replace(file, stood_in=content.stood_in)


def _recognize(path: Path, name: str, content: Any) -> FoundFile | None:
    flat = flattened(path, content)
    only_optimizer = isinstance(content, dict) and content.keys() == {"state", "param_groups"}
    if only_optimizer or not any(plan.dtype.is_floating_point for plan in flat.values()):
        return None
    if not isinstance(content, dict):
        kinds = ((StandIn, "pickled network"), (TensorPlan, "tensor"), (object, "list"))
        return _by_name(path, name, next(label for kind, label in kinds if isinstance(content, kind)))
    if all(isinstance(value, TensorPlan) for value in content.values()):
        return _by_name(path, name, "state dict")
    for format, keys, counter in STEP_FORMATS:
        step = _whole_number(content.get(counter)) if keys <= content.keys() else None
        if step is not None:
            return FoundFile(path, name, format, UNKNOWN, "the file", f"step {step}", step=step, within=True)
    epoch = _whole_number(content.get("epoch"))
    if epoch is None:
        return _by_name(path, name, "dict of weights")
    for format, (keys, from_zero) in FORMATS.items():
        if keys <= content.keys():
            stated = f"epoch {epoch}{' counted from 0' if from_zero else ''}"
            network = _timm_network(content) if format == "timm" else None
            file = FoundFile(path, name, format, epoch + from_zero, "the file", stated, network=network)
            args = _args(content)
            top1 = args.get("eval_metric", "top1") == "top1"
            averaged = "state_dict_ema" in content and not args.get("model_ema_force_cpu")
            file = replace(
                file,
                args=args,
                accuracy=_accuracy(content.get("metric")) if top1 else None,
                accuracy_of="state_dict_ema" if averaged else None,
            )
            return _lightning(file, content) if format == "Lightning" else file
    return FoundFile(path, name, "dict of weights", epoch, "the file", f"epoch {epoch}", exact=False)


def _args(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the training options in a file that are numbers, words, or lists of them."""
    args = content.get("args", content.get("hyper_parameters"))
    settings = args.state if isinstance(args, StandIn) else args
    plain = (str, int, float, bool)
    return {
        key: value
        for key, value in (settings.items() if isinstance(settings, Mapping) else ())
        if isinstance(key, str)
        and (
            isinstance(value, plain)
            or (isinstance(value, list | tuple) and len(value) < 10 and all(isinstance(each, plain) for each in value))
        )
    }


def _accuracy(percent: Any) -> float | None:
    """Return, as a value from 0 to 1, the accuracy that a file states in percent."""
    is_number = isinstance(percent, TensorPlan) and percent.shape == () and percent.dtype.is_floating_point
    value = percent.read().item() if is_number else percent
    return value / 100 if isinstance(value, int | float) and 0 <= value <= 100 else None


def _timm_network(content: Mapping[Any, Any]) -> str | None:
    """Return the network that timm's training script stores in its options."""
    args = content.get("args")
    settings = args.state if isinstance(args, StandIn) else args
    if not (isinstance(settings, Mapping) and isinstance(model := settings.get("model"), str)):
        return None
    more = settings.get("model_kwargs") or {}
    named = {key: settings.get(option) for key, option in (("global_pool", "gp"), ("bn_eps", "bn_eps"))}
    return timm_network(model, {**named, **more}) if isinstance(more, Mapping) else None


def _sharded(path: Path, name: str) -> FoundFile:
    """Return a folder of torch.distributed.checkpoint, whose name tells the epoch or the step."""
    file = _by_name(path, name, "torch.distributed.checkpoint")
    return replace(file, number_from="the folder's name")


def _lightning(file: FoundFile, content: dict) -> FoundFile:
    """Add the step. Lightning stores the epochs begun and done, which tells a save within an epoch."""
    step = _whole_number(content.get("global_step"))
    file = replace(file, step=UNKNOWN if step is None else step, stated=f"{file.stated}, step {step}")
    try:
        loop = content["loops"]["fit_loop"]
        epochs, last_batch = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["is_last_batch"]
        begun, done = _whole_number(epochs["started"]), _whole_number(epochs["processed"])
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError):
        return file
    if begun is None or done is None:
        return file
    within = done < begun and last_batch is not True
    return replace(file, number=done if within else begun, within=within)


def _hugging_face(path: Path, name: str) -> FoundFile:
    parts(path)  # raises if the weights cannot be read
    try:
        network = named_network(path)
    except UserError as error:
        raise UnusableFile(str(error)) from None
    file = replace(_by_name(path, name, "Hugging Face"), number_from="the folder's name", network=network)
    state_path = path / "trainer_state.json"
    if not state_path.exists():
        match = re.fullmatch(r"checkpoint-([0-9]{1,9})", name)
        return replace(file, step=int(match[1]), within=True) if match else file
    state = storage.read_json(state_path)
    epoch = state.get("epoch") if isinstance(state, dict) else None
    step = _whole_number(state.get("global_step")) if isinstance(state, dict) else None
    if step is None or isinstance(epoch, bool) or not isinstance(epoch, int | float) or not 0 <= epoch < 1e9:
        raise UserError(f"{state_path} is damaged: it holds no global_step and epoch")
    logged = state.get("log_history")
    rows = (
        [row for row in logged if isinstance(row, dict) and row.get("step") == step] if isinstance(logged, list) else []
    )
    accuracy = next((row["eval_accuracy"] for row in rows if isinstance(row.get("eval_accuracy"), float)), None)
    within = abs(epoch - round(epoch)) > 1e-3
    number, stated = int(epoch) if within else round(epoch), f"step {step}, epoch {epoch:.3f}"
    return replace(
        file,
        number=number,
        number_from="the file",
        stated=stated,
        step=step,
        within=within,
        exact=True,
        prefix="",
        accuracy=accuracy if accuracy is not None and 0 <= accuracy <= 1 else None,
    )


def _by_name(path: Path, name: str, format: str) -> FoundFile:
    """Read the epoch, or else the step, in the name of a file or folder."""
    stem = name.lower()
    while stem.endswith(ENDINGS):
        stem = stem.rpartition(".")[0]
    file = FoundFile(path, name, format, UNKNOWN, "the file's name", name, exact=False)
    for form in (EPOCH, STEP, COUNT):
        if matches := list(form.finditer(stem)):
            number, file = int(matches[-1][1]), replace(file, prefix=stem[: matches[-1].start()])
            return replace(file, step=number, within=True) if form is STEP else replace(file, number=number)
    return file


def _whole_number(value: Any) -> int | None:
    """Return a number of epochs or steps as files hold it: 5, 5.0, tensor(5), "5"."""
    if isinstance(value, TensorPlan) and value.shape == () and not value.problem and not value.dtype.is_complex:
        value = value.read().item()
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 10**9 else None
