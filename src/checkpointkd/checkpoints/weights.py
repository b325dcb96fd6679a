"""Others' files, read without running any code in them: whatever the trainer, a flat list of named tensors.

`state_dict.model.conv1.weight` is the tensor's name in nested dicts. A network's weights are where all of its names are
found behind one prefix (`state_dict.model.`).
"""

from __future__ import annotations

import argparse
import collections
import io
import json
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
from ..errors import UserError, check_exists

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
DEEPEST = 50  # dicts in dicts
KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}  # NumPy's numbers


class _Inert:
    """Stands in for what is neither weights nor a number: made from anything, it does and holds nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Kind(_Inert):
    """Stands in for NumPy's dtype, of which a file could make a pointer of its own."""

    def __init__(self, kind: Any = "", *_: Any) -> None:
        self.kind = kind if isinstance(kind, str) and kind in KINDS else None


def _number(kind: Any, content: Any = b"") -> Any:
    """NumPy's number from its bytes, little-endian; nothing where it is none."""
    if isinstance(kind, _Kind) and kind.kind and isinstance(content, bytes) and len(content) == int(kind.kind[1:]):
        return np.frombuffer(content, np.dtype(f"<{kind.kind}")).item()
    return None


# What trainers store beside weights: settings, numbers, paths, dates, arrays. Only the first two are read.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_Kind, "numpy.dtype"),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Inert, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Inert, f"numpy.{core}.numeric._frombuffer") for core in ("core", "_core")),
    (_Inert, "numpy.ndarray"),
    *((_Inert, f"datetime.{name}") for name in ("datetime", "date", "timedelta")),
    *((_Inert, f"pathlib.{at}{system}Path") for at in ("", "_local.") for system in ("Posix", "Windows", "PurePosix")),
]
BYTES_FROM_NOTHING = (b"cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n")  # of any size; PyTorch allows it


def weights(
    path: Path, wanted: Mapping[str, Tensor], *, where: str | None, model: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a network with these names and shapes, from a checkpoint, all of them, and where they were in it;
    or UserError.

    `where` says which of several there are (`state_dict_ema`, `state_dict.student`). Names may have a prefix that all
    share, as DataParallel, torch.compile and Lightning give; counters of batch norm may be missing.
    """
    flat = read(path)
    if where is not None and not any(name.startswith(f"{where}.") for name in flat):
        there = sorted({name.partition(".")[0] for name in flat})
        raise UserError(f"{path} has nothing at {where!r} (at its top: {', '.join(there[:8])})")
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    fitting: collections.Counter[str] = collections.Counter()  # how many tensors of the network fit, behind each prefix
    for name, tensor in flat.items():
        parts = name.split(".")
        for ending in (".".join(parts[start:]) for start in range(len(parts))):
            if ending in wanted and tensor.shape == wanted[ending].shape:
                fitting[name.removesuffix(ending)] += not ending.endswith("num_batches_tracked")
    if where is not None:
        fitting = collections.Counter({p: n for p, n in fitting.items() if p.startswith(f"{where}.")})
    # A set that is there by more than half is meant to be whole: another one must not take its place.
    sets = [prefix for prefix, count in fitting.items() if count > len(needed) / 2]
    if where is None and sets:
        plain = [prefix for prefix in sets if not re.search(r"(?<![a-z])ema(?![a-z])", prefix.lower())]
        if not plain:
            raise UserError(
                f"{path} holds averaged weights of {model} only; if they are meant, say --state-dict-key {sets[0].rstrip('.')}"
            )
        sets = plain
    if len(sets) > 1:
        said = ", ".join(prefix.rstrip(".") or "(top)" for prefix in sets)
        raise UserError(f"{path} holds the weights of {model} more than once ({said}); say which with --state-dict-key")
    prefix = sets[0] if sets else max(fitting, key=fitting.__getitem__, default=f"{where}." if where else "")
    behind = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    there = {name: tuple(tensor.shape) for name, tensor in behind.items()}
    optional = wanted.keys() - set(needed)
    unlike = [
        name
        for name in [*shapes, *(there.keys() - shapes.keys())]
        if shapes.get(name) != there.get(name) and not (name in optional and name not in there)
    ]
    if unlike:
        raise UserError(
            f"{path} does not fit {model}: {len(unlike)} tensors are missing, unexpected or misshapen, the first being "
            f"{unlike[0]} ({_shape(there, unlike[0])} in the file, {_shape(shapes, unlike[0])} in the model)"
        )
    taken = {name: behind[name] for name in wanted if name in behind}
    for name, tensor in taken.items():
        usable = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_complex()
        if not usable or tensor.is_floating_point() != wanted[name].is_floating_point():
            raise UserError(f"{path} does not fit {model}: {name} is of type {tensor.dtype}")
        taken[name] = tensor.to(wanted[name].dtype)
        if not taken[name].isfinite().all():
            raise UserError(f"{path} is spoiled: {name} in it holds NaN or infinite numbers")
    # A counter that the file lacks is 0, as in a new network, never that of a file which was read before.
    taken |= {name: torch.zeros_like(wanted[name]) for name in wanted.keys() - taken.keys()}
    return taken, prefix.rstrip(".")


def size(path: Path) -> int:
    """The bytes of the files with a checkpoint's weights."""
    return sum(file.stat().st_size for file in parts(path))


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor in a checkpoint, by dotted name, with what torch.compile adds to names taken away.

    Raises UserError when the file is damaged, or needs more than weights to be read.
    """
    flat: dict[str, Tensor] = {}
    shards = _shards(path)
    for file in parts(path):
        if file.suffix.lower() == ".safetensors":
            if "sha256" in storage.read_metadata(file):  # one of our own writers'
                content, _ = storage.load_tensors(file)
            else:
                try:
                    content = safetensors.torch.load_file(file)
                except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
                    raise _damaged(file, error) from None
        else:
            content = unpickled(file, whole=True)
        if shards is not None:
            named = [name for name, shard in shards.items() if shard == file.name]
            if not set(named) <= content.keys():
                raise UserError(f"{file} lacks tensors that its index says it has")
            content = {name: content[name] for name in named}
        flatten(file, content, "", flat, set())
    return flat


def _shards(path: Path) -> dict[str, str] | None:
    """Which shard has which tensor, for a checkpoint of Hugging Face's in several files."""
    for name in SHARDS:
        if path.is_dir() and (path / name).exists() and not any((path / whole).exists() for whole in WHOLE):
            index = storage.read_json(path / name)
            shards = index.get("weight_map") if isinstance(index, dict) else None
            if not (isinstance(shards, dict) and shards and all(isinstance(shard, str) for shard in shards.values())):
                raise UserError(f"{path / name} is damaged: it has no weight_map")
            for shard in shards.values():
                if Path(shard).name != shard or not shard.endswith(ENDINGS):
                    raise UserError(f"{path / name} names {shard!r}, which is no file of weights in its own folder")
            return shards
    return None


def inside(path: Path, root: Path) -> Path:
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle
        within = False
    if not within:
        raise UserError(f"{path} is a link that leads out of {root}; put the file itself there, or name its own folder")
    return path


def parts(path: Path) -> list[Path]:
    """The files in which a checkpoint's weights are."""
    if not path.is_dir():
        return [path]
    whole = [path / name for name in WHOLE if (path / name).is_file()][:1]
    found = whole or [path / shard for shard in dict.fromkeys((_shards(path) or {}).values())]
    if not found:
        raise UserError(f"there are no weights in {path}: neither {' nor '.join((*WHOLE, *SHARDS))}")
    return [inside(check_exists(file, "shard"), path) for file in found]


def unpickled(path: Path, *, whole: bool) -> Any:
    """What is in a file of torch.save, read by PyTorch's restricted unpickler. `whole` reads it once and holds those
    very bytes against their checksums; else only its directory is looked at, and its tensors must not be used."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = file.read() if whole or not zipped else b""
        if zipped:
            pickled = _check_archive(path, io.BytesIO(content) if whole else path, path.stat().st_size, whole=whole)
        else:
            pickled = content  # what torch.save wrote before 2020: without checksums
        if any(evil in pickled for evil in BYTES_FROM_NOTHING):
            raise UserError(f"{path} is refused: it asks for memory that it doesn't fill")
        with torch.serialization.safe_globals(HARMLESS):
            source = io.BytesIO(content) if content else path
            return torch.load(source, map_location="cpu", weights_only=True, mmap=not content)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)|`?([\w.]+)`? was not an allowed global", str(error))
        what = next((name for name in (asked.groups() if asked else ()) if name), None)
        raise UserError(
            f"{path} is refused: to read it, {what} would have to run, and weights must not run code; save its state "
            "dict alone"
            if what
            else f"{path} is refused: it is damaged, or holds more than weights and settings; save its state dict alone"
        ) from None
    except Exception as error:  # whatever a damaged file makes of the readers
        raise _damaged(path, error) from None


def _check_archive(path: Path, source: Any, size: int, *, whole: bool) -> bytes:
    """The pickle in an archive; raises UserError for one that is damaged, would unpack to more than it is, or isn't the
    archive that PyTorch would see."""
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise UserError(f"{path} is refused: it unpacks to more than it is, which no file of torch.save does")
        if len(set(names)) < len(names):
            raise UserError(f"{path} is refused: it holds two entries of one name")
        if min((entry.header_offset for entry in entries), default=1) != 0:
            raise UserError(f"{path} is refused: something lies before the archive in it")
        spoiled = archive.testzip() if whole else None
        if spoiled is not None:
            raise UserError(f"{path} is damaged: the checksum of {spoiled} in it does not match its content")
        return b"".join(archive.read(name) for name in names if name.endswith(".pkl"))


def flatten(path: Path, value: Any, name: str, flat: dict[str, Tensor], seen: set[int], depth: int = 0) -> None:
    """Put the tensors of nested dicts into `flat`, by dotted names without what torch.compile adds."""
    if depth > DEEPEST or name.count(".") > 10 * DEEPEST:
        raise UserError(f"{path} is refused: what it holds is nested deeper than any network is")
    if isinstance(value, Tensor):
        name = name.replace("_orig_mod.", "") or "(tensor)"
        if name in flat:
            raise UserError(f"{path} is refused: it holds two tensors named {name}")
        flat[name] = value.detach()
    elif isinstance(value, Mapping) and id(value) not in seen:  # a dict that is there twice is read once
        seen.add(id(value))
        for key, part in value.items():
            flatten(path, part, f"{name}.{key}" if name else str(key), flat, seen, depth + 1)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged, or no checkpoint ({_short(error)})")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return json.dumps(list(shapes[name])) if name in shapes else "absent"
