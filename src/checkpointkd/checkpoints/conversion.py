"""Convert checkpoints of any trainer to safetensors files that know their epoch, without the trainer's libraries.

OUT/epoch-0010.safetensors   every tensor of one checkpoint but those of optimizers (or step-00500.safetensors)
OUT/convert.json             each file's source, its hash, its epoch or step, and the classes that were read as data
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from .. import records, storage
from ..config import OnProgress
from ..errors import UserError, printable
from ..records.base import open_regular
from ..records.runs import ConvertedCheckpoint, ConvertRecord
from .formats import FoundFile
from .scan import FoundFolder, scan_folder
from .tensor_plans import UnusableFile
from .weights import opened_tensors, parts, size

LARGEST_SURPLUS = 500_000_000  # bytes by which tensors may exceed twice their file
MANIFEST = "convert.json"
NOT_WEIGHTS = re.compile(r"optim\w*|lr_schedulers?|schedulers?|scaler|loops|callbacks|rng\w*|param_groups")


def convert_folder(
    path: Path | str,
    *,
    out: Path,
    pattern: str | None = None,
    state_dict_key: str | None = None,
    on_progress: OnProgress | None = None,
) -> ConvertRecord:
    """Write every checkpoint of a folder as safetensors. What was converted before is kept.

    Args:
        path: A folder, a file, or a wildcard. See `scan_folder`.
        out: The folder to write. It must be new, empty, or of the same conversion.
        pattern: The form of the file names. See `scan_folder`.
        state_dict_key: The key of the weights to keep. By default all sets of weights are kept.
        on_progress: Called after each checkpoint.

    Raises:
        UserError: If a file is damaged, if the folder `out` holds something else, or if there is no checkpoint.
    """
    folder = scan_folder(path, pattern)
    with storage.locked(out):
        done = _converted_before(out)
        converted: dict[int, ConvertedCheckpoint] = {}
        left_out = list(folder.left_out)
        for number, file in folder.checkpoints.items():
            try:
                converted[number] = _convert(folder, number, file, out, state_dict_key, done)
            except UnusableFile as error:
                if len(folder.checkpoints) == 1:
                    raise
                left_out.append(f"{file.name}: {error}")
                continue
            record = ConvertRecord(
                unit=folder.unit,
                state_dict_key=state_dict_key,
                left_out=tuple(map(printable, left_out)),
                checkpoints={**done, **converted},
                provenance=records.provenance(),
            )
            storage.write_json(out / MANIFEST, record)
            if on_progress is not None:
                on_progress(f"convert {path}", len(converted), len(folder.checkpoints))
    if not converted:
        raise UserError(f"No checkpoint in {path} could be converted: {left_out[0]}")
    return record


def _convert(
    folder: FoundFolder,
    number: int,
    file: FoundFile,
    out: Path,
    key: str | None,
    done: dict[int, ConvertedCheckpoint],
) -> ConvertedCheckpoint:
    source, source_sha256 = printable(os.path.relpath(file.path, folder.path)), _files_hash(file.path)
    target = out / (f"epoch-{number:04d}.safetensors" if folder.unit == "epoch" else f"step-{number:06d}.safetensors")
    before = done.get(number)
    same = before is not None and (before.source_sha256, before.key) == (source_sha256, key)
    if before is not None and same and _is_intact(target):
        return before
    same = same or (before is None and _source_of(target) == (source_sha256, key or ""))  # written before a kill
    if not same and (before is not None or target.exists()):
        raise UserError(f"{target} is of another file or another --state-dict-key. Choose another --out.")
    with opened_tensors(file.path) as flat:
        names = [name for name in flat if not any(map(NOT_WEIGHTS.fullmatch, name.split(".")))]
        if "__metadata__" in names:
            raise UserError(f"{file.path} has a tensor named __metadata__, which safetensors cannot hold")
        if key is not None:
            names = [name for name in names if name.startswith(f"{key}.")]
        unreadable = [name for name in names if flat[name].problem]
        names = [name for name in names if not flat[name].problem]
        if sum(flat[name].bytes for name in names) > 2 * size(file.path) + LARGEST_SURPLUS:
            raise UserError(f"{file.path} is refused: its tensors overlap, and are larger than the file")
        if not names:
            raise UserError(f"{file.path} holds no weights{f' at {key!r}' if key else ''}")
        sha256 = storage.save_tensors(
            target,
            {name: flat[name].read() for name in names},
            {"format": "checkpointkd", folder.unit: str(number), "source": source_sha256, "key": key or ""},
        )
    return ConvertedCheckpoint(
        file=target.name,
        source=source,
        source_sha256=source_sha256,
        format=file.format,
        stated=file.stated,
        key=key,
        sha256=sha256,
        tensors=len(names),
        unreadable=tuple(unreadable),
        stood_in=file.stood_in,
    )


def _converted_before(out: Path) -> dict[int, ConvertedCheckpoint]:
    """Return what an earlier conversion left in a folder; raise UserError if the folder holds something else."""
    manifest = out / MANIFEST
    if manifest.exists():
        return dict(records.read(manifest, ConvertRecord, remedy="Choose another --out.").checkpoints)
    entries = [entry for entry in out.iterdir() if not entry.name.startswith(".")]
    others = sorted(entry.name for entry in entries if _source_of(entry) is None)
    if others:
        raise UserError(f"{out} holds something else ({', '.join(others[:3])}). Choose another --out.")
    return {}


def _source_of(path: Path) -> tuple[str, str] | None:
    """Return the hash of the source and the key of a file that `convert` wrote; None for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        metadata = storage.read_metadata(path)
    except UserError:
        return None
    return (metadata["source"], metadata.get("key", "")) if "source" in metadata else None


def _is_intact(path: Path) -> bool:
    try:
        storage.load_tensors(path)
    except UserError:
        return False
    return True


def _files_hash(path: Path) -> str:
    """Return the hash of the files of a checkpoint, with their names where there are several."""
    digest, files = hashlib.sha256(), parts(path)
    for file in files:
        if len(files) > 1:
            digest.update(f"{file.name}\n{file.stat().st_size}\n".encode(errors="surrogateescape"))
        with open_regular(file) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
