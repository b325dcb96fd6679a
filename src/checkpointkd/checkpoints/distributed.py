"""Read checkpoints that several processes wrote: folders of torch.distributed.checkpoint, and DeepSpeed's ZeRO 1 and 2.

A folder of torch.distributed.checkpoint has `.metadata`, a pickle that names each tensor's chunks, and `*.distcp` files
that hold them. Both are read as data.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..records.base import open_regular
from .inert_pickle import Global, StandIn
from .tensor_plans import DTYPES, TensorPlan, UnusableFile
from .torch_files import opened, tensor_in

METADATA = ".metadata"
FSDP_FOLDERS = ("pytorch_model_fsdp_0", "pytorch_model_fsdp")  # in a folder of Hugging Face's trainer or Accelerate
DEEPSPEED_STATES = "mp_rank_00_model_states.pt"
LARGEST_CHUNK = 1 << 33  # bytes


def sharded_folder(path: Path) -> Path | None:
    """Return the folder of torch.distributed.checkpoint at or in this one; None if there is none."""
    candidates = [path, *(path / name for name in FSDP_FOLDERS)]
    return next((folder for folder in candidates if (folder / METADATA).is_file()), None)


def deepspeed_file(path: Path) -> Path | None:
    """Return the file of the whole network in a DeepSpeed checkpoint: in the folder, or one folder below.

    Raises:
        UserError: If the network is split over several files.
    """
    for folder in (path, path / "checkpoint", *_named_by_latest(path)):
        if (folder / DEEPSPEED_STATES).is_file():
            if (folder / "mp_rank_01_model_states.pt").exists():
                raise UnusableFile(f"{folder} holds a network that DeepSpeed split over devices. {CONSOLIDATE}")
            return folder / DEEPSPEED_STATES
        if (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").exists():
            raise UnusableFile(f"{folder} was written by DeepSpeed ZeRO stage 3, in parts. {CONSOLIDATE}")
    return None


def _named_by_latest(path: Path) -> list[Path]:
    """Return the folder that DeepSpeed's file `latest` names, such as `global_step100`."""
    latest = path / "latest"
    if not latest.is_file() or latest.stat().st_size > 200:
        return []
    name = latest.read_text(errors="replace").strip()
    return [path / name] if re.fullmatch(r"\w[\w.-]*", name) else []


CONSOLIDATE = "Run DeepSpeed's `python zero_to_fp32.py . pytorch_model.bin` in it, and name that file."


def sharded_tensors(path: Path) -> dict[str, TensorPlan]:
    """Return the tensors of a folder of torch.distributed.checkpoint, by name.

    Raises:
        UserError: If the folder is damaged.
    """
    metadata = path / METADATA
    with opened(metadata) as content:
        state = _state(content.value)
    tensors, places = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(tensors, Mapping) or not isinstance(places, Mapping):
        raise UnusableFile(f"{metadata} is damaged: it names no tensors")
    chunks: dict[str, dict[tuple[int, ...], tuple[Path, int, int]]] = {}
    for index, info in places.items():
        key, place = _state(index), _state(info)
        file, offset, length = (place.get(name) for name in ("relative_path", "offset", "length"))
        if place.get("transform_descriptors"):
            raise UnusableFile(f"{path} holds compressed chunks. Save it again without extensions.")
        if not (
            isinstance(file, str)
            and Path(file).name == file
            and file.isprintable()
            and _whole(offset)
            and _whole(length)
        ):
            raise UnusableFile(f"{metadata} is damaged: a chunk has no place in a file of its folder")
        at = key.get("offset")
        chunks.setdefault(str(key.get("fqn")), {})[_numbers(at)] = (path / file, int(offset), int(length))  # type: ignore[arg-type]
    return {
        str(name): plan
        for name, tensor in tensors.items()
        if (plan := _plan(metadata, str(name), _state(tensor), chunks)) is not None
    }


def _plan(metadata: Path, name: str, tensor: Mapping[str, Any], chunks: Mapping[str, Any]) -> TensorPlan | None:
    """Return the plan of a tensor from its chunks; None for what is not a tensor."""
    if "chunks" not in tensor:
        return None
    shape, properties = _numbers(tensor.get("size")), tensor.get("properties")
    dtype = DTYPES.get(next((part.name for part in _parts(properties) if isinstance(part, Global)), ""))
    if dtype is None or not isinstance(tensor["chunks"], list):
        raise UnusableFile(f"{metadata} is damaged: {name} has no type")
    parts = []
    for chunk in map(_state, tensor["chunks"]):
        offsets, sizes = _numbers(chunk.get("offsets")), _numbers(chunk.get("sizes"))
        place = chunks.get(name, {}).get(offsets) or (chunks.get(name, {}).get(()) if not any(offsets) else None)
        inside = len(offsets) == len(sizes) == len(shape) and all(
            at + size <= whole for at, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if place is None or not inside or place[2] < math.prod(sizes) * dtype.itemsize:
            raise UnusableFile(f"{metadata} is damaged: {name} lacks a chunk")
        parts.append((offsets, sizes, place))
    if sum(math.prod(sizes) for _, sizes, _ in parts) != math.prod(shape):
        raise UnusableFile(f"{metadata} is damaged: the chunks of {name} do not make up the tensor")

    def read() -> Tensor:
        whole, covered = torch.empty(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool)
        for offsets, sizes, (file, start, length) in parts:
            part = _chunk(file, start, length)
            if tuple(part.shape) != sizes or part.dtype != dtype:
                raise UnusableFile(f"{file} is damaged: a chunk of {name} has another shape or type")
            region = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
            if covered[region].any():
                raise UnusableFile(f"{metadata} is damaged: the chunks of {name} overlap")
            whole[region], covered[region] = part, True
        return whole

    return TensorPlan(shape, dtype, read)


def _chunk(file: Path, start: int, length: int) -> Tensor:
    """Return the tensor that torch.save wrote into a part of a file."""
    try:
        with open_regular(file) as stream:
            if not 0 < length <= LARGEST_CHUNK or start + length > stream.seek(0, io.SEEK_END):
                raise UnusableFile(f"{file} is damaged: it is too short")
            stream.seek(start)
            return tensor_in(file, io.BytesIO(stream.read(length)))
    except OSError as error:
        raise UnusableFile(f"Could not read {file}: {error.strerror}") from None


def _state(value: Any) -> Mapping[Any, Any]:
    """Return the fields of an object that was read as data."""
    state = value.state if isinstance(value, StandIn) else value
    return state if isinstance(state, Mapping) else {}


def _parts(properties: Any) -> list[Any]:
    state = properties.state if isinstance(properties, StandIn) else properties
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, tuple) else ()
    return list(values)


def _numbers(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not (isinstance(value, tuple | list) and len(value) <= 64 and all(map(_whole, value))):
        raise UnusableFile("A folder of torch.distributed.checkpoint is damaged: a tensor has no shape")
    return tuple(value)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50
