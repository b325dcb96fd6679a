"""Read the weights in files of other trainers, without running any code in them.

Whatever the trainer, a file becomes a flat dict of named tensors. In nested dicts a tensor has a dotted name, such as
`state_dict.model.conv1.weight`. A network's weights are where all of its names occur behind one prefix
(`state_dict.model.`).
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .. import storage
from ..errors import UserError, check_exists, first_line

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
DEEPEST = 50  # dicts in dicts
NUMPY_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Inert:
    """Stand in for objects that are neither weights nor numbers: accept any arguments, do and hold nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dtype(_Inert):
    """Stand in for NumPy's dtype, of which a file could forge pointers."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name if isinstance(name, str) and name in NUMPY_NUMBERS else None


def _number(dtype: Any, content: Any = b"") -> Any:
    """Return NumPy's number from its little-endian bytes; None where it is no number."""
    if isinstance(dtype, _Dtype) and dtype.name and isinstance(content, bytes) and len(content) == int(dtype.name[1:]):
        return np.frombuffer(content, np.dtype(f"<{dtype.name}")).item()
    return None


# What trainers store beside weights: settings, numbers, paths, dates, arrays. Only settings and numbers are read.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_Dtype, "numpy.dtype"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Inert, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Inert, f"numpy.{core}.numeric._frombuffer") for core in ("core", "_core")),
    (_Inert, "numpy.ndarray"),
    *((_Inert, f"datetime.{name}") for name in ("datetime", "date", "timedelta")),
    *((_Inert, f"pathlib.{at}{system}Path") for at in ("", "_local.") for system in ("Posix", "Windows", "PurePosix")),
]
# A bytearray of any size, which PyTorch's unpickler allows.
BYTEARRAYS = (b"cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n")


def weights(path: Path, expected: dict[str, Tensor], *, key: str | None, model: str) -> tuple[dict[str, Tensor], str]:
    """Return a network's tensors from a checkpoint, all of them and of the expected types, and where they were in it.

    Args:
        path: A file, or Hugging Face's directory.
        expected: The network's state dict. Counters of batch norm may be missing from the file; they are 0 then.
        key: Which set of weights, where there are several (`state_dict_ema`, `state_dict.student`). DataParallel,
            torch.compile and Lightning put a prefix before the names, which is found without it.
        model: The network's name, for messages.

    Returns:
        The tensors, and the key of the set they are from ("" for the top).

    Raises:
        UserError: If the file is damaged, does not fit, holds several sets, or holds NaN.
    """
    flat = read(path)
    if key is not None and not any(name.startswith(f"{key}.") for name in flat):
        top = sorted({name.partition(".")[0] for name in flat})
        raise UserError(f"{path} has no key {key!r}. Its top-level keys are {', '.join(top[:8])}.")
    prefix = _prefix(path, flat, expected, key=key, model=model)
    # A counter that is missing is 0 as in a new network, never that of a file which was read before.
    stored = {name: torch.zeros_like(tensor) for name, tensor in expected.items() if _is_counter(name)}
    stored |= {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    differing = differing_shapes(expected, stored)
    if differing:
        raise UserError(f"{path} does not fit {model}: {differing}")
    tensors = {}
    for name, wanted in expected.items():
        tensor = stored[name]
        usable = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_complex()
        if not usable or tensor.is_floating_point() != wanted.is_floating_point():
            raise UserError(f"{path} does not fit {model}: {name} has type {tensor.dtype}")
        tensors[name] = tensor.to(wanted.dtype)
        if not tensors[name].isfinite().all():
            raise UserError(f"{path} is damaged: its tensor {name} has NaN or infinite values")
    return tensors, prefix.rstrip(".")


def _prefix(path: Path, flat: Mapping[str, Tensor], expected: dict[str, Tensor], *, key: str | None, model: str) -> str:
    """Return the prefix behind which a file holds most of a network's tensors."""
    fitting: collections.Counter[str] = collections.Counter()  # fitting tensors, by prefix
    for name, tensor in flat.items():
        segments = name.split(".")
        for ending in (".".join(segments[start:]) for start in range(len(segments))):
            if ending in expected and tensor.shape == expected[ending].shape:
                fitting[name.removesuffix(ending)] += not _is_counter(ending)
    if key is not None:
        fitting = collections.Counter({p: count for p, count in fitting.items() if p.startswith(f"{key}.")})
    # A set with more than half of the tensors is meant to be complete: no other set must take its place.
    needed = sum(not _is_counter(name) for name in expected)
    sets = [prefix for prefix, count in fitting.items() if count > needed / 2]
    if key is None and sets:
        plain = [prefix for prefix in sets if not re.search(r"(?<![a-z])ema(?![a-z])", prefix.lower())]
        if not plain:
            raise UserError(
                f"{path} holds only averaged weights of {model}. To use them, give --state-dict-key "
                f"{sets[0].rstrip('.')}."
            )
        sets = plain
    if len(sets) > 1:
        keys = ", ".join(prefix.rstrip(".") or "(top)" for prefix in sets)
        raise UserError(f"{path} holds the weights of {model} more than once ({keys}). Choose with --state-dict-key.")
    return sets[0] if sets else max(fitting, key=fitting.__getitem__, default=f"{key}." if key else "")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def differing_shapes(expected: dict[str, Tensor], stored: dict[str, Tensor]) -> str:
    """Return how names or shapes of stored tensors differ from those expected; "" if they are the same."""
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (stored, expected)]
    names = [name for name in (expected | stored) if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return ""
    in_file, in_model = (of.get(names[0], "absent") for of in shapes)
    return (
        f"{len(names)} tensors are missing, unexpected or of another shape, first {names[0]} ({in_file} in the file, "
        f"{in_model} in the model)"
    )


def size(path: Path) -> int:
    """Return the bytes of the files that hold a checkpoint's weights."""
    return sum(file.stat().st_size for file in parts(path))


def read(path: Path) -> dict[str, Tensor]:
    """Return every tensor in a checkpoint, by dotted name without the prefix of torch.compile.

    Raises:
        UserError: If the file is damaged, or if reading it needs more than weights.
    """
    flat: dict[str, Tensor] = {}
    shards = _shards(path)
    for file in parts(path):
        if file.suffix.lower() == ".safetensors":
            if "sha256" in storage.read_metadata(file):  # from one of our own writers
                content, _ = storage.load_tensors(file)
            else:
                try:
                    content = safetensors.torch.load_file(file)
                except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                    raise _damaged(file, error) from None
        else:
            content = unpickled(file, whole=True)
        if shards is not None:
            names = [name for name, shard in shards.items() if shard == file.name]
            if not set(names) <= content.keys():
                raise UserError(f"{file} lacks tensors that its index lists")
            content = {name: content[name] for name in names}
        flatten(file, content, "", flat, set())
    return flat


def _shards(path: Path) -> dict[str, str] | None:
    """Return which shard holds which tensor, for a Hugging Face checkpoint in several files."""
    for name in SHARDS:
        if path.is_dir() and (path / name).exists() and not any((path / whole).exists() for whole in WHOLE):
            index = storage.read_json(path / name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not (isinstance(shards, dict) and shards and all(isinstance(shard, str) for shard in shards.values())):
                raise UserError(f"{path / name} is damaged: it has no weight_map")
            for shard in shards.values():
                if Path(shard).name != shard or not shard.endswith(ENDINGS):
                    raise UserError(f"{path / name} names {shard!r}, which is not a file of weights in its own folder")
            return shards
    return None


def inside(path: Path, root: Path) -> Path:
    """Return the path itself; raise UserError for a link that leads out of the root."""
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        within = False
    if not within:
        raise UserError(
            f"{path} is a link that leads out of {root}. Put the file itself there, or name its own folder."
        )
    return path


def parts(path: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights."""
    if not path.is_dir():
        return [path]
    files = [path / name for name in WHOLE if (path / name).is_file()][:1]
    files = files or [path / shard for shard in dict.fromkeys((_shards(path) or {}).values())]
    if not files:
        raise UserError(f"There are no weights in {path}. Expected one of {', '.join((*WHOLE, *SHARDS))}.")
    return [inside(check_exists(file, "shard"), path) for file in files]


def unpickled(path: Path, *, whole: bool) -> Any:
    """Return the content of a file of torch.save, read by PyTorch's restricted unpickler.

    Args:
        path: The file.
        whole: Read the file once, and compare these very bytes with their checksums. Otherwise only the archive's
            directory is read, and the tensors must not be used.

    Raises:
        UserError: If the file is damaged, or if reading it needs more than weights and settings.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = file.read() if whole or not zipped else b""
        if zipped:
            pickled = _check_archive(path, io.BytesIO(content) if whole else path, path.stat().st_size, whole=whole)
        else:
            pickled = content  # as torch.save wrote before 2020, without checksums
        if any(construction in pickled for construction in BYTEARRAYS):
            raise UserError(f"{path} is refused: it allocates memory that it does not fill")
        with torch.serialization.safe_globals(HARMLESS):
            source = io.BytesIO(content) if content else path
            return torch.load(source, map_location="cpu", weights_only=True, mmap=not content)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)|`?([\w.]+)`? was not an allowed global", str(error))
        name = next((group for group in (match.groups() if match else ()) if group), None)
        reason = (
            f"reading it would run {name}, and weights must not run code"
            if name
            else "it is damaged, or holds more than weights and settings"
        )
        raise UserError(f"{path} is refused: {reason}. Save its state dict alone.") from None
    except Exception as error:  # readers raise anything for a damaged file
        raise _damaged(path, error) from None


def _check_archive(path: Path, source: Any, size: int, *, whole: bool) -> bytes:
    """Return the pickles in an archive.

    Raises:
        UserError: If the archive is damaged, unpacks to more than its size, or is not the one that PyTorch would read.
    """
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise UserError(f"{path} is refused: it unpacks to more than its size, unlike files of torch.save")
        if len(set(names)) < len(names):
            raise UserError(f"{path} is refused: two entries have the same name")
        if min((entry.header_offset for entry in entries), default=1) != 0:
            raise UserError(f"{path} is refused: it has other bytes before the archive")
        damaged = archive.testzip() if whole else None
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of its entry {damaged} does not match")
        return b"".join(archive.read(name) for name in names if name.endswith(".pkl"))


def flatten(path: Path, value: Any, name: str, flat: dict[str, Tensor], seen: set[int], depth: int = 0) -> None:
    """Put the tensors of nested dicts into `flat`, by dotted names without the prefix of torch.compile."""
    if depth > DEEPEST or name.count(".") > 10 * DEEPEST:
        raise UserError(f"{path} is refused: its content is nested too deeply for a network")
    if isinstance(value, Tensor):
        name = name.replace("_orig_mod.", "") or "(tensor)"
        if name in flat:
            raise UserError(f"{path} is refused: it holds two tensors named {name}")
        flat[name] = value.detach()
    elif isinstance(value, Mapping) and id(value) not in seen:  # a dict that occurs twice is read once
        seen.add(id(value))
        for key, entry in value.items():
            flatten(path, entry, f"{name}.{key}" if name else str(key), flat, seen, depth + 1)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged, or is not a checkpoint ({first_line(error)[:160]})")
