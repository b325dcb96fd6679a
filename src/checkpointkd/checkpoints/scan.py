"""Find the checkpoints in another trainer's folder, and number them by completed epochs.

Where neither a file's content nor its name tells the epoch, the user gives `--pattern 'ckpt_{epoch}.pt'`.
"""

from __future__ import annotations

import filecmp
import glob
import itertools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import UserError, check_exists
from ..models import read_config
from ..models.hugging_face import same_architecture
from .distributed import deepspeed_file, sharded_folder
from .formats import COPY, COUNT, EPOCH, STEP, UNKNOWN, FoundFile, recognize
from .metadata import METADATA_DIR
from .tensor_plans import UnusableFile
from .weights import EMA, ENDINGS, SHARDS, WHOLE, inside

Unit = Literal["epoch", "step"]
NO_NETWORK = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.(pt|pth|bin)")  # Hugging Face's
CONFIGS = ("config.json", "preprocessor_config.json")  # of Hugging Face and timm
SAVED = re.compile(r"(checkpoint|epoch|step|global_step)[-_]?[0-9]{1,9}")  # a trainer's folders beside its last network
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number with which files from before 2020 begin
SEARCHED_FOLDERS = 10_000  # at most, for a hint about where checkpoints are
NUMBERED = re.compile(r"\d|best|last|latest|final|\.ckpt$")  # names of folders that may hold one checkpoint

OTHER_FORMATS = {  # endings of files that are not read, and what to do
    ".keras": "Keras files are not read. Save the network's weights as safetensors from PyTorch.",
    ".h5": "Keras files are not read. Save the network's weights as safetensors from PyTorch.",
    ".npz": "NumPy archives are not read. Save a state dict with torch.save.",
    ".gguf": "GGUF files are not read. Name the safetensors files that they were made from.",
    "_checkpoint_metadata": "Orbax checkpoints are not read. Save the arrays as safetensors.",
    ".pt2": "Exported programs are not read. Save the network's state dict with torch.save.",
}


@dataclass(frozen=True)
class FoundFolder:
    """The checkpoints of a folder, a glob or a file, in order, and the files left out, each with a reason."""

    path: Path
    checkpoints: dict[int, FoundFile]
    left_out: list[str]
    unit: Unit  # "step" where checkpoints were saved within epochs

    @property
    def last(self) -> FoundFile:
        """The last checkpoint."""
        return self.checkpoints[max(self.checkpoints)]

    @property
    def network(self) -> str | None:
        """The network that all files name, as `--model` takes it; None where they name none."""
        last = self.last.network
        names = {file.network for file in self.checkpoints.values()} - {last}
        if last is None or None in names:
            return None
        config = read_config(last)
        same = all(config is not None and same_architecture(read_config(name), config) for name in names if name)
        return last if same else None


def scan_folder(path: Path | str, pattern: str | None = None) -> FoundFolder:
    """Return the checkpoints in another trainer's folder, by completed epochs.

    Args:
        path: A folder, a file, or a glob such as `output/run1_*.pth`.
        pattern: The form of the file names, such as `ckpt_{epoch}.pt`. It decides which files are checkpoints and which
            number is the epoch. `{step}` instead of `{epoch}` counts in steps; `*` matches any text.

    Raises:
        UserError: If there is no checkpoint, if a file cannot be read, if an epoch is not found, or if two files have
            the same epoch.
    """
    root, paths, left_out = _candidates(str(path))
    if Path(path) == root:
        left_out += _beside(root, paths)
    numbers: dict[Path, int] = {}
    if pattern is not None:
        numbers = _numbers_by_pattern(pattern, root, paths)
        left_out += [f"{path.name}: does not match {pattern}" for path in paths if path.path not in numbers]
        paths = [path for path in paths if path.path in numbers]
    files = []
    damaged: UnusableFile | None = None
    for candidate in paths:
        try:
            file = recognize(candidate.path, candidate.name)
        except UnusableFile as error:
            damaged = damaged or error
            left_out.append(f"{candidate.name}: {without_path(error, candidate.path)}")
            continue
        if file is None:
            left_out.append(f"{candidate.name}: holds no weights")
        elif candidate.name.startswith("recovery-"):
            left_out.append(f"{candidate.name}: saved within an epoch, by timm")
        else:
            files.append(file)
    if not files:
        raise damaged or _nothing_found(path, root, left_out)
    unit: Unit
    if pattern is None:
        files, unit = _in_one_unit(_of_one_run(root, files, left_out), left_out)
    else:
        unit = "step" if "{step}" in pattern else "epoch"
        files = [replace(file, number=numbers[file.path], number_from="--pattern", stated=file.name) for file in files]
    return FoundFolder(root, _by_number(root, files, unit, left_out), left_out, unit)


def candidate_files(path: Path | str) -> list[str]:
    """Return the names of the files at a path that may be checkpoints, without opening them."""
    root, paths, _ = _candidates(str(path))
    return [os.path.relpath(candidate.path, root) for candidate in paths]


def without_path(error: UserError, path: Path) -> str:
    """Return the message of an error without the path that it begins with."""
    return str(error).removeprefix(f"{path} ").removeprefix("is ")


class _Candidate(NamedTuple):
    """A path to open, and the name that may tell the epoch: a folder's where it holds one checkpoint."""

    path: Path
    name: str


def _candidates(path: str) -> tuple[Path, list[_Candidate], list[str]]:
    """Return the folder of a path, the checkpoints in it to open, and the entries left out, each with a reason."""
    if not os.path.exists(path) and glob.has_magic(path):
        if glob.has_magic(str(Path(path).parent)):
            raise UserError(
                f"{path} has a wildcard in its folder. Name the folder; only file names may have wildcards."
            )
        paths = sorted(
            match for match in map(Path, glob.glob(path)) if match.name != METADATA_DIR and not _is_special(match)
        )
        if not paths:
            raise UserError(f"No file matches {path}")
        checkpoints, refused = _checkpoints_of([inside(match, match.parent) for match in paths if match.is_dir()])
        left_out = [f"{name}: {without_path(error, paths[0].parent / name)}" for name, error in refused.items()]
        opened = [
            (inside(match, match.parent) if match.is_file() else checkpoints.get(match), match) for match in paths
        ]
        nothing = [match.name for each, match in opened if each is None and match.name not in refused]
        left_out += [f"{name}: holds no weights" for name in nothing]
        return paths[0].parent, [_Candidate(each, match.name) for each, match in opened if each], left_out
    root = check_exists(Path(path), "file or folder")
    if not root.is_dir():
        if not root.is_file():
            raise UserError(f"{root} is not a regular file")
        if not (_may_be_checkpoint(root) or _is_torch_file(root) or root.name in SHARDS):
            raise UserError(f"{root} is not a file of weights, which ends in {', '.join(ENDINGS)}")
        # Hugging Face's file of weights is read with the configs beside it.
        one = root.name in SHARDS
        one |= root.name in WHOLE and any((root.parent / name).is_file() for name in CONFIGS)
        return root.parent, [_Candidate(root.parent if one else root, root.parent.name if one else root.name)], []
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"Could not list {root}: {error.strerror}") from None
    whole = _one_checkpoint(root, entries=[])
    named = [entry for entry in entries if _may_be_checkpoint(entry)] if whole is None else []
    folders = [entry for entry in entries if NUMBERED.search(entry.name) and entry.is_dir() and inside(entry, root)]
    if whole is not None:  # a trainer's last network lies beside its checkpoint-N
        folders = [folder for folder in folders if SAVED.fullmatch(folder.name)]
        if [folder.name[:6] for folder in folders] == ["global"]:  # DeepSpeed's part of this one checkpoint
            folders = []
    files = [entry for entry in named if entry.is_file()]
    if files:  # a folder beside files is a checkpoint only if it is called like one
        folders = [folder for folder in folders if folder in named or SAVED.fullmatch(folder.name)]
    checkpoints, refused = _checkpoints_of(folders)
    if any(_tells_epoch(file.name) for file in files):
        beside = [folder for folder, path in checkpoints.items() if path and folder not in named]
        reason = UserError("lies beside files that tell their epochs. To use it, name it")
        refused |= {folder.name: reason for folder in beside}
        checkpoints = {folder: path for folder, path in checkpoints.items() if folder not in beside}
    left_out = [f"{name}: {without_path(error, root / name)}" for name, error in refused.items()]
    if whole is not None and not any(checkpoints.values()):
        return root, [_Candidate(whole, root.name)], left_out + _deeper(entries)
    if refused and not any(checkpoints.values()) and not named:
        raise next(iter(refused.values()))
    steps = [folder for folder in folders if (folder / "trainer_state.json").exists()]  # written last by the trainer
    partial = [folder for folder in folders if steps and folder not in steps]
    found = [_Candidate(path, folder.name) for folder, path in checkpoints.items() if path and folder not in partial]
    left_out += [f"{folder.name}: saved in part, without trainer_state.json" for folder in partial]
    if not named and not found:
        named = [entry for entry in entries if _is_torch_file(entry)]
    regular = [entry for entry in named if os.path.isfile(inside(entry, root))]
    opened = [entry for entry in named if entry in regular or checkpoints.get(entry)]
    left_out += [f"{entry.name}: not a regular file" for entry in named if entry not in opened]
    return root, [*(_Candidate(entry, entry.name) for entry in regular), *found], left_out


def _one_checkpoint(folder: Path, entries: list[Path]) -> Path | None:
    """Return what to open of a folder that holds one checkpoint: the folder or a file in it; None for other folders."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds a PEFT adapter. Merge it with merge_and_unload(), and save the whole network.")
    if sharded_folder(folder) or any((folder / name).is_file() for name in (*WHOLE, *SHARDS)):
        return folder
    file = deepspeed_file(folder)
    if file is not None:
        return inside(file, folder)
    files = [entry for entry in entries if _may_be_checkpoint(entry) and entry.is_file()]
    return inside(files[0], folder) if len(files) == 1 else None


def _tells_epoch(name: str) -> bool:
    """Whether a file's name has an epoch or a step, and is not that of a copy."""
    stem = name.lower()
    while stem.endswith(ENDINGS):
        stem = stem.rpartition(".")[0]
    return not COPY.search(name.lower()) and any(form.search(stem) for form in (EPOCH, STEP, COUNT))


def _checkpoints_of(folders: list[Path]) -> tuple[dict[Path, Path | None], dict[str, UserError]]:
    """Return what to open of each folder, as `_one_checkpoint` does, and the names of refused folders with errors."""
    checkpoints: dict[Path, Path | None] = {}
    refused: dict[str, UserError] = {}
    for folder in folders:
        try:
            checkpoints[folder] = _one_checkpoint(folder, entries=sorted(folder.iterdir()))
        except UserError as error:
            refused[folder.name] = error
    return checkpoints, refused


def _deeper(entries: list[Path]) -> list[str]:
    """Return why folders of checkpoints beside a network are left out, such as `checkpoints` of Accelerate."""
    folders = [entry for entry in entries if re.match("checkpoints|ckpts", entry.name) and entry.is_dir()]
    return [
        f"{folder.name}: holds folders of checkpoints. To use them, name {folder}"
        for folder in folders
        if any(SAVED.fullmatch(inner.name) for inner in folder.iterdir())
    ]


def _beside(root: Path, candidates: list[_Candidate]) -> list[str]:
    """Return why the weights in a folder are left out, if its checkpoints are folders in it."""
    folders = [candidate for candidate in candidates if candidate.path.parent == root and candidate.path.is_dir()]
    file = next((root / name for name in (*WHOLE, *SHARDS) if (root / name).is_file()), None)
    if file is None or not folders or file.is_symlink():
        return []
    for folder in reversed(folders):
        other = folder.path / file.name
        if file.name in WHOLE and other.is_file() and _are_equal(file, inside(other, root)):
            return [f"{file.name}: a copy of {folder.name}"]
    return [f"{file.name}: lies beside the folders of checkpoints. To use it, name the file"]


def _are_equal(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def _is_special(path: Path) -> bool:
    """Whether this is neither a file nor a folder, such as a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_torch_file(path: Path) -> bool:
    """Whether a file without a known ending begins as files of torch.save do."""
    if path.name.startswith(".") or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            first = file.read(300)
        return first.startswith(LEGACY) or (first.startswith(b"PK\x03\x04") and b"/data.pkl" in first)
    except OSError:
        return False


def _may_be_checkpoint(path: Path) -> bool:
    name = path.name
    return name.lower().endswith(ENDINGS) and not NO_NETWORK.fullmatch(name) and not name.startswith(".")


def _nothing_found(path: Path | str, root: Path, left_out: list[str]) -> UserError:
    reasons = f" ({'; '.join(left_out[:3])})" if left_out else ""
    folders: set[Path] = set()
    for parent, _, names in itertools.islice(os.walk(root), SEARCHED_FOLDERS):
        if Path(parent).name != METADATA_DIR and any(name.endswith(ENDINGS) for name in names):
            folders.add(Path(parent))
    nearest = sorted(folders, key=lambda folder: (len(folder.parts), folder))[:3]
    hint = f". Checkpoints are in {', '.join(map(str, nearest))}." if nearest and not left_out else ""
    other = _other_format(root)
    return UserError(f"There are no checkpoints in {str(path)!r}{reasons}{hint or (f'. {other}' if other else '')}")


def _other_format(root: Path) -> str | None:
    """Return what a folder holds in place of weights that can be read, and the way out."""
    names = [entry.name.lower() for entry in root.iterdir()] if root.is_dir() else []
    found = (remedy for ending, remedy in OTHER_FORMATS.items() if any(name.endswith(ending) for name in names))
    return next(found, None)


def _numbers_by_pattern(pattern: str, root: Path, paths: list[_Candidate]) -> dict[Path, int]:
    """Return the number that `--pattern` finds in each file's name; files that do not match are absent."""
    fields = re.findall(r"\{epoch\}|\{step\}", pattern)
    if len(fields) != 1 or "/" in pattern:
        raise UserError(f"--pattern {pattern!r} must be a file name with one {{epoch}}, such as 'ckpt_{{epoch}}.pt'")
    before, after = (".*".join(map(re.escape, text.split("*"))) for text in pattern.split(fields[0]))
    matches = {path: re.fullmatch(rf"(?s:{before}(\d{{1,9}}){after})", path.name) for path in paths}
    numbers = {path.path: int(match[1]) for path, match in matches.items() if match}
    if not numbers:
        names = ", ".join(path.name for path in paths[:3]) or "none"
        raise UserError(f"No file in {root} matches --pattern {pattern!r} (files: {names})")
    return numbers


def _of_one_run(root: Path, files: list[FoundFile], left_out: list[str]) -> list[FoundFile]:
    """Return the files whose epoch or step is known; refuse names of several runs, and names that tell nothing."""
    averages = [file for file in files if EMA.search(file.name.lower())]
    if len(averages) < len(files):
        files = _without(averages, files, left_out, "averaged weights beside plain ones")
    if len({file.prefix for file in files if file.prefix and not file.is_copy}) > 1:
        raise UserError(
            f"The file names in {root} look like several runs. Select one run with a wildcard in quotes, such as "
            f"'{root}/run1_*', or give --pattern 'run1_{{epoch}}.pt'."
        )
    unknown = [file for file in files if file.number == file.step == UNKNOWN]
    if len(unknown) == len(files) > 1:
        raise UserError(
            f"No epoch can be read from the file names in {root} ({', '.join(file.name for file in files[:2])}). "
            "Give `checkpointkd inspect` a --pattern with {epoch} in place of the number, such as 'ckpt_{epoch}.pt'."
        )
    if len(unknown) == len(files):
        return [replace(files[0], number=1, number_from="the only file", exact=True)]
    return _without(unknown, files, left_out, "its name tells no epoch")


def _in_one_unit(files: list[FoundFile], left_out: list[str]) -> tuple[list[FoundFile], Unit]:
    """Return the files counted in steps if some were saved within an epoch and all know their step; else in epochs."""
    within = [file for file in files if file.within]
    if within and all(file.step != UNKNOWN for file in files):
        return [replace(file, number=file.step) for file in files], "step"
    return _from_one(_without(within, files, left_out, "saved within an epoch")), "epoch"


def _from_one(files: list[FoundFile]) -> list[FoundFile]:
    """Count completed epochs where files, or names, count 0, 1, …: their 0 is the end of the first epoch."""
    from_zero = set()
    for source in {file.number_from for file in files}:
        numbers = sorted({file.number for file in files if file.number_from == source and not file.exact})
        if numbers[:2] == [0, 1] or (numbers == [0] and len(files) == 1):  # 0, 10, 20 may begin with initial weights
            from_zero.add(source)
    return [
        replace(file, number=file.number + 1, stated=f"{file.stated}, counted from 0")
        if file.number_from in from_zero and not file.exact
        else file
        for file in files
    ]


def _by_number(root: Path, files: list[FoundFile], unit: Unit, left_out: list[str]) -> dict[int, FoundFile]:
    """Return the files by their numbers; leave out copies, and refuse two other files of one number."""
    by_number: dict[int, FoundFile] = {}
    for file in sorted(files, key=lambda file: (file.number, file.is_copy, file.name)):
        first = by_number.setdefault(file.number, file)
        if file.is_copy and first is not file:
            left_out.append(f"{file.name}: the same {unit} as {first.name}")
        elif first is not file:
            raise UserError(
                f"{first.name} and {file.name} in {root} both have {unit} {file.number}. If these are "
                f"several runs, select one with a wildcard in quotes, such as '{root}/run1_*'. If another number "
                "is the epoch, give --pattern 'ckpt_{epoch}.pt'."
            )
    return by_number


def _without(unwanted: list[FoundFile], files: list[FoundFile], left_out: list[str], reason: str) -> list[FoundFile]:
    left_out += [f"{file.name}: {reason}" for file in unwanted]
    return [file for file in files if file not in unwanted]
