"""Checkpoints that other trainers wrote: who wrote each, and how many epochs it had done.

Their weights are found by name, whatever the format (`reading`), so a format here is no more than a name and a way to
tell the epoch.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .. import storage
from ..errors import UserError, check_exists
from .weights import ENDINGS, SHARDS, WHOLE, flatten, inside, parts, size, unpickled

NO_NETWORK = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin)")  # Hugging Face's


@dataclass(frozen=True)
class FoundFile:
    """One checkpoint of another trainer: where it lies, who wrote it, and how far its training was."""

    path: Path  # the file, or Hugging Face's folder
    format: str
    number: int | None  # completed epochs; None where nothing tells
    number_from: str
    stated: str  # the same as its writer counts
    exact: bool  # whether `number` counts completed epochs; it may count from 0 otherwise
    step: int | None = None
    within: bool = False  # whether it was saved within an epoch, which makes its steps the better count

    @property
    def bytes(self) -> int:
        return size(self.path)


@dataclass(frozen=True)
class FoundFolder:
    """What a folder, a pattern or a file holds: checkpoints in order of epoch, and what was left out, and why."""

    path: Path
    checkpoints: dict[int, FoundFile]
    left_out: list[str]
    unit: Literal["epoch", "step"]  # "step" where checkpoints were saved within epochs


def scan_folder(path: Path | str) -> FoundFolder:
    """The checkpoints in a folder (or a pattern, or a file) of another trainer.

    An epoch is a number of completed epochs. Raises UserError, naming the file, for one that can't be read, for two of
    one epoch, and when there is none.
    """
    root, paths, left_out = _candidates(str(path))
    found = []
    for candidate in paths:
        try:
            checkpoint = _recognize(candidate)
        except UserError as error:
            if len(paths) == 1:
                raise
            raise UserError(f"{error}; if it is no checkpoint, name the others by a pattern in quotes") from None
        if checkpoint is None:
            left_out.append(f"{candidate.name}: there are no weights in it")
        elif candidate.name.startswith("recovery-"):
            left_out.append(f"{candidate.name}: timm's, saved within an epoch")
        else:
            found.append(checkpoint)
    if not found:
        below = {file.parent for file in root.rglob("*") if file.suffix in ENDINGS} if root.is_dir() else set()
        elsewhere = sorted(below, key=lambda folder: (len(folder.parts), folder))  # a run before its lessons and trials
        hint = f"; there are some in {', '.join(map(str, elsewhere[:3]))}" if elsewhere and not left_out else ""
        why = f" ({'; '.join(left_out[:3])})" if left_out else ""
        raise UserError(f"there are no checkpoints in {path}{why}{hint}")
    found, copies = _one_run(root, found)
    left_out += copies
    found = _numbered_by_name(found)
    steps = any(one.within for one in found)
    if steps and all(one.step is not None for one in found):
        found = [replace(one, number=one.step, exact=True) for one in found]
    elif steps:
        left_out += [f"{one.path.name}: saved within an epoch" for one in found if one.within]
        found = [one for one in found if not one.within]
        steps = False
    unit: Literal["epoch", "step"] = "step" if steps else "epoch"
    numbered = [one for one in found if one.number is not None]
    if numbered:
        left_out += [f"{one.path.name}: nothing tells its epoch" for one in found if one.number is None]
    else:
        ordered = sorted(found, key=lambda one: _natural(one.path.name))
        numbered = [replace(one, number=n + 1, number_from="the order of names") for n, one in enumerate(ordered)]
    by_epoch: dict[int, FoundFile] = {}
    for one in sorted(_from_one(numbered), key=lambda one: (one.number, _is_a_copy(one.path.name), one.path.name)):
        assert one.number is not None
        other = by_epoch.setdefault(one.number, one)
        if other is one:
            continue
        if not _is_a_copy(one.path.name):
            raise UserError(
                f"{other.path.name} and {one.path.name} in {root} are both of {unit} {one.number}; if there are "
                f"several runs in it, name one's files by a pattern in quotes, such as '{root}/run1_*'"
            )
        left_out.append(f"{one.path.name}: of the same {unit} as {other.path.name}")
    return FoundFolder(root, dict(sorted(by_epoch.items())), left_out, unit)


def _is_a_copy(name: str) -> bool:
    """Whether a name says that its file repeats another of the same epoch, or has no number at all."""
    words = r"(?<![a-z])(best|last|latest|final|copy)(?![a-z])|-v\d+\."
    return re.search(words, name.lower()) is not None or not re.search(r"\d", name)


def candidate_files(path: Path | str) -> list[str]:
    """The names of what may be checkpoints at a path, without a look into them."""
    root, paths, _ = _candidates(str(path))
    return [os.path.relpath(one, root) for one in paths]


def _candidates(path: str) -> tuple[Path, list[Path], list[str]]:
    """The folder that a path or a pattern is about, the files (or Hugging Face's folders) to look into, and what was
    left out."""
    if not os.path.exists(path) and glob.has_magic(path):
        if glob.has_magic(str(Path(path).parent)):
            raise UserError(f"in the pattern {path} only the files' names may be unsure; name their folder itself")
        paths = sorted(map(Path, glob.glob(path)))
        if not paths:
            raise UserError(f"no file fits the pattern {path}")
        if len({one.parent for one in paths}) != 1:
            raise UserError(f"the pattern {path} leads into several folders; name one")
        return paths[0].parent, [inside(one, paths[0].parent) for one in paths], []
    root = check_exists(Path(path), "file or folder")
    if not root.is_dir():
        if not _is_named_so(root):
            raise UserError(f"{root} is no file of weights, which end in {', '.join(ENDINGS)}")
        if not root.is_file():
            raise UserError(f"{root} is no plain file")
        return root.parent, [root], []
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"could not look into {root}: {error.strerror}") from None
    steps = [entry for entry in entries if re.fullmatch(r"checkpoint-[0-9]{1,9}", entry.name) and entry.is_dir()]
    if steps:
        done = [step for step in steps if (step / "trainer_state.json").exists()] or steps
        left_out = [
            f"{step.name}: it has no trainer_state.json, as if its saving had been stopped"
            for step in steps
            if step not in done
        ]
        return root, [inside(step, root) for step in done], left_out
    if any((root / name).exists() for name in (*WHOLE, *SHARDS)):
        return root, [root], []
    named = [entry for entry in entries if _is_named_so(entry)]
    plain = [entry for entry in named if os.path.isfile(inside(entry, root))]
    return root, plain, [f"{entry.name}: no plain file" for entry in named if entry not in plain]


def _is_named_so(path: Path) -> bool:
    """Whether a file's name is one of a checkpoint."""
    name = path.name
    return name.lower().endswith(ENDINGS) and not NO_NETWORK.fullmatch(name) and not name.startswith(".")


def _recognize(path: Path) -> FoundFile | None:
    """Who wrote a checkpoint and how far its training was; None for a file without weights."""
    if path.is_dir():
        return _hugging_face(path)
    if path.suffix.lower() == ".safetensors":
        epoch = storage.read_metadata(path).get("epoch")
        if isinstance(epoch, str) and re.fullmatch(r"[0-9]{1,9}", epoch):
            return FoundFile(path, "safetensors, checkpointkd's writer", int(epoch), "the file", f"epoch {epoch}", True)
        return _unnumbered(path, "safetensors")
    content = unpickled(path, whole=False)
    flat: dict[str, Tensor] = {}
    flatten(path, content, "", flat, set())
    only_optimizer = isinstance(content, dict) and content.keys() == {"state", "param_groups"}
    if only_optimizer or not any(tensor.is_floating_point() for tensor in flat.values()):
        return None
    if not isinstance(content, dict) or all(isinstance(value, Tensor) for value in content.values()):
        return _unnumbered(path, "state dict")
    epoch = _whole_number(content.get("epoch"))
    if epoch is None:
        return _unnumbered(path, "dict of weights")
    for name, (keys, from_zero) in FORMATS.items():
        if keys <= content.keys():
            stated = f"epoch {epoch}{' counted from 0' if from_zero else ''}"
            found = FoundFile(path, name, epoch + from_zero, "the file", stated, True)
            return _lightnings(found, content) if name == "Lightning" else found
    return FoundFile(path, "dict of weights", epoch, "the file", f"epoch {epoch}", False)


# Who writes files with these entries, and whether they count epochs from 0.
FORMATS: dict[str, tuple[set[str], bool]] = {
    "Lightning": ({"pytorch-lightning_version", "state_dict"}, True),
    "timm": ({"state_dict", "arch", "version", "epoch"}, True),
    "torchvision reference": ({"model", "optimizer", "lr_scheduler", "epoch", "args"}, True),
    "CheckpointKD authors": ({"model_state", "optim_state", "epoch"}, False),
    "PyTorch ImageNet example": ({"state_dict", "arch", "best_acc1", "epoch"}, False),
}


def _lightnings(found: FoundFile, content: dict) -> FoundFile:
    """Lightning stores how many epochs were begun and how many are done, which tells a save within an epoch."""
    step = _whole_number(content.get("global_step"))
    found = replace(found, step=step, stated=f"{found.stated}, step {step}")
    try:
        loop = content["loops"]["fit_loop"]
        epochs, last_batch = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["is_last_batch"]
        begun, done = _whole_number(epochs["started"]), _whole_number(epochs["processed"])
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError):
        return found
    if begun is None or done is None:
        return found
    within = done < begun and last_batch is not True
    return replace(found, number=done if within else begun, within=within)


def _hugging_face(path: Path) -> FoundFile:
    parts(path)  # raises for what can't be read
    state_path = path / "trainer_state.json"
    step_in_name = re.fullmatch(r"checkpoint-([0-9]{1,9})", path.name)
    if not state_path.exists():
        step = int(step_in_name[1]) if step_in_name else None
        return FoundFile(
            path, "Hugging Face", None, "the folder's name", path.name, True, step=step, within=step is not None
        )
    state = storage.read_json(state_path)
    step, epoch = (state.get("global_step"), state.get("epoch")) if isinstance(state, dict) else (None, None)
    if (
        _whole_number(step) is None
        or isinstance(epoch, bool)
        or not isinstance(epoch, float | int)
        or not 0 <= epoch < 1e9
    ):
        raise UserError(f"{state_path} is damaged: it tells no step and epoch")
    within = abs(epoch - round(epoch)) > 1e-3
    number, stated = int(epoch) if within else round(epoch), f"step {step}, epoch {epoch:.3f}"
    return FoundFile(path, "Hugging Face", number, "the file", stated, True, step=step, within=within)


def _unnumbered(path: Path, format: str) -> FoundFile:
    return FoundFile(path, format, None, "the file's name", path.name, False)


_NUMBER = r"(\d{1,9})(?![\d.]*\d)(?![ek]\d|k)"
_BY_WORD = [  # what stands beside a word for it; `e` is one only where it is no exponent
    re.compile(rf"(?<![a-z])(?:epochs?|ep)[=_. -]{{0,2}}{_NUMBER}"),
    re.compile(r"(?<![\d.])(\d{1,9})(?:epochs?|ep)(?![a-z])"),
    re.compile(rf"(?<![a-z0-9.])e[=_-]?{_NUMBER}"),
]
_STEP = re.compile(rf"(?<![a-z])(?:steps?|iter(?:ation)?s?)[=_. -]{{0,2}}{_NUMBER}")
_RUN = re.compile(r"(?<![a-z])(?:run|seed|fold|trial|exp)[=_-]?(\d{1,9})")
_NO_EPOCH = re.compile(  # numbers of other things: a run's, a date's, a network's (resnet18)
    r"(?<![a-z])(?:run|seed|fold|trial|exp|version|v)[=_-]?\d+"
    r"|(?<!\d)(?:19|20)\d\d([-_.]?)\d\d\1\d\d(?!\d)"
    r"|(?<![a-z])(?!(?:ckpt|checkpoint|cp|model|net|network|weights|state|snapshot|snap|save|chkpt|step|iter)\d)[a-z]{3,}\d+"
)


def _numbered_by_name(found: list[FoundFile]) -> list[FoundFile]:
    """Epochs from names, for the checkpoints whose content tells none: what stands beside the word epoch; beside step,
    a step; else the one whole number in which names that are alike otherwise differ."""
    stems = {
        one.path.name: re.sub(r"(\.(safetensors|ckpt|tar|pth|pt|bin))+$", "", one.path.name.lower()) for one in found
    }
    by_name = [one for one in found if one.number is None and not one.within and one.number_from == "the file's name"]
    words = {one.path.name: _by_word(stems[one.path.name]) for one in by_name}
    alike: dict[str, list[list[int]]] = {}
    for one in found:
        skeleton, numbers = _skeleton(stems[one.path.name])
        alike.setdefault(skeleton, []).append(numbers)
    largest = max(alike, key=lambda skeleton: len(alike[skeleton]))
    varying = [set(column) for column in zip(*alike[largest], strict=True)]
    fields = [field for field, values in enumerate(varying) if len(values) > 1]
    only_field = fields[0] if len(fields) == 1 and len(alike[largest]) > 1 else None
    said = set(words.values())
    if len(said) == 1 and len(by_name) > 1 and only_field is not None:
        words = dict.fromkeys(words, (None, None))  # of how many epochs the run is, say
    numbered = []
    for one in found:
        if one not in by_name:
            numbered.append(one)
            continue
        epoch, step = words[one.path.name]
        skeleton, numbers = _skeleton(stems[one.path.name])
        if epoch is not None:
            one = replace(one, number=epoch)
        elif step is not None:
            one = replace(one, step=step, within=True)
        elif skeleton == largest and only_field is not None:
            one = replace(one, number=numbers[only_field])
        numbered.append(one)
    return numbered


def _by_word(stem: str) -> tuple[int | None, int | None]:
    """The epoch, or else the step, that a name tells by a word."""
    for pattern in _BY_WORD:
        if epochs := pattern.findall(stem):
            return int(epochs[-1]), None
    steps = _STEP.findall(stem)
    return None, int(steps[-1]) if steps else None


def _one_run(root: Path, found: list[FoundFile]) -> tuple[list[FoundFile], list[str]]:
    """The checkpoints without averaged copies beside plain ones, and what was left out; raises UserError where names
    tell of several runs."""
    runs = {tuple(_RUN.findall(one.path.name.lower())) for one in found}
    if len(runs - {()}) > 1:
        raise UserError(
            f"the names in {root} tell of several runs; name one's files by a pattern in quotes, such as "
            f"'{root}/run1_*'"
        )
    averaged = [one for one in found if re.search(r"(?<![a-z])ema(?![a-z])", one.path.name.lower())]
    if len(averaged) in (0, len(found)):
        return found, []
    left_out = [f"{one.path.name}: averaged weights, beside plain ones" for one in averaged]
    return [one for one in found if one not in averaged], left_out


def _skeleton(stem: str) -> tuple[str, list[int]]:
    """A name without its numbers, and those that are whole and may be an epoch; a decimal is an accuracy or a loss."""
    without = re.sub(r"\d+\.\d+", "~", _NO_EPOCH.sub(lambda match: re.sub(r"\d+", "@", match[0]), stem))
    return re.sub(r"\d+", "#", without), [int(number[:9]) for number in re.findall(r"\d+", without)]


def _from_one(found: list[FoundFile]) -> list[FoundFile]:
    """Completed epochs, where files or names count 0, 1, …: 0 is then the first epoch's end."""
    counted = []
    for source in {one.number_from for one in found}:
        unsure = sorted({one.number or 0 for one in found if _is_unsure(one) and one.number_from == source})
        if unsure[:2] == [0, 1] or (
            unsure == [0] and len(found) == 1
        ):  # 0, 10, 20 may be the first weights and two more
            counted.append(source)
    return [
        replace(one, number=one.number + 1, stated=f"{one.stated}, counted from 0 as the first is 0")
        if _is_unsure(one) and one.number is not None and one.number_from in counted
        else one
        for one in found
    ]


def _is_unsure(one: FoundFile) -> bool:
    return one.number is not None and not one.exact


def _whole_number(value: Any) -> int | None:
    """A number of epochs or steps as files have it: 5, 5.0, tensor(5), "5"."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex() and not value.is_meta:
        value = value.item()
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 10**9 else None


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
