"""Read the weights in files of other trainers, without running any code in them.

Whatever the trainer, a file becomes a flat dict of named tensors. In nested dicts a tensor has a dotted name, such as
`state_dict.model.conv1.weight`. A network's weights are where all of its names occur behind one prefix
(`state_dict.model.`).
"""

from __future__ import annotations

import collections
import fnmatch
import itertools
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from .. import storage
from ..errors import UserError, check_exists, first_line
from ..models.hugging_face import as_loaded, is_transformers
from ..models.network import ONE_CHANNEL
from .distributed import sharded_folder, sharded_tensors
from .inert_pickle import StandIn
from .tensor_plans import TensorPlan, UnusableFile, ready
from .torch_files import opened

ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin", ".th", ".pyth", ".pkl", ".pickle")
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
CONTAINERS = (StandIn, Mapping, list, tuple)
DEEPEST = 50  # containers in containers
LONGEST_NAME = 1000
MOST_VALUES = 2_000_000  # in the containers of a file; a shared container counts at each of its places
MOST_TENSORS = 100_000
MOST_LETTERS = 50_000_000  # in the names of all tensors
SETTINGS = ("hyper_parameters", "hparams", "args", "config", "cfg")  # keys whose networks are not the trained one
EMA = re.compile(r"(?<![a-z])ema(?![a-z])")
LIGHTNING_SETS = {"state_dict": "averaged", "current_model_state": "as trained"}  # of its WeightAveraging
# What torch.compile, FSDP and activation checkpointing put into names.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class StateDict(NamedTuple):
    """A network's tensors from a file that may hold several sets of them."""

    tensors: dict[str, Tensor]
    key: str  # of the set that was read; "" for the top of the file
    others: tuple[str, ...]  # the sets that were not read, such as `state_dict_ema (averaged)`


def weights(path: Path, body: nn.Module, *, key: str | None, model: str, ignore: Sequence[str] = ()) -> StateDict:
    """Return a network's tensors from a checkpoint, all of them and of the expected types, and where they were in it.

    Args:
        path: A file, or Hugging Face's directory.
        body: The network, which is not changed. Counters of batch norm may be missing from the file; they are 0 then.
        key: Which set of weights, where there are several (`state_dict_ema`, `state_dict.student`). DataParallel,
            torch.compile and Lightning put a prefix before the names, which is found without it.
        model: The network's name, for messages.
        ignore: Patterns of names of tensors to ignore if the network lacks them, such as `criterion.*`.

    Raises:
        UserError: If the file is damaged, does not fit, holds several sets, or holds NaN.
    """
    expected = body.state_dict()
    with opened_tensors(path) as flat:
        if key is not None and not any(name.startswith(f"{key}.") for name in flat):
            top = sorted({name.partition(".")[0] for name in flat})
            raise UserError(f"{path} has no key {key!r}. Its top-level keys are {', '.join(top[:8])}.")
        if key is None and is_transformers(body) and (path / "config.json").exists():
            kept = {name: plan for name, plan in flat.items() if not _is_ignored(name, ignore)}
            return StateDict(_as_transformers_loads(path, kept, body, model), "", ())
        prefix, inner, flat, others = _prefix(path, flat, expected, key=key, model=model)
        stored = {inner + name.removeprefix(prefix): plan for name, plan in flat.items() if name.startswith(prefix)}
        stored = {name: plan for name, plan in stored.items() if name in expected or not _is_ignored(name, ignore)}
        # A counter that is missing is 0 as in a new network, never that of a file which was read before.
        counters = {name: ready(torch.zeros_like(tensor)) for name, tensor in expected.items() if _is_counter(name)}
        stored = counters | stored
        differing = differing_shapes(expected, stored)
        if differing:
            raise UserError(f"{path} does not fit {model}: {differing}{_way_out(expected, stored, flat)}")
        tensors = {name: _read_tensor(path, name, stored[name], wanted, model) for name, wanted in expected.items()}
    return StateDict(tensors, prefix.rstrip("."), others)


def _as_transformers_loads(path: Path, flat: dict[str, TensorPlan], body: nn.Module, model: str) -> dict[str, Tensor]:
    """Return a network's tensors from a folder that transformers saved, with the names that it has in memory."""
    held, needed = (
        sum(math.prod(part.shape) for part in parts) for parts in (flat.values(), body.state_dict().values())
    )
    if held > 2 * needed + 1_000_000:
        raise UserError(f"{path} does not fit {model}: it holds {held:,} values, and the network has {needed:,}")
    tensors, differing = as_loaded(
        body, {name: _read_tensor(path, name, plan, None, model) for name, plan in flat.items()}
    )
    if differing:
        raise UserError(f"{path} does not fit {model}: {len(differing)} tensors differ, first {differing[0]}")
    return tensors


def _is_ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor is ignored: a counter of thop, or a name that matches a pattern of the user."""
    return name.endswith(("total_ops", "total_params")) or any(fnmatch.fnmatchcase(name, each) for each in patterns)


def _way_out(expected: Mapping[str, Tensor], stored: Mapping[str, TensorPlan], flat: Mapping[str, TensorPlan]) -> str:
    """Return the probable reason why a file does not fit, and the remedy if there is one."""
    if not differing_shapes(expected, {name: plan for name, plan in stored.items() if name in expected}):
        first = next(name for name in stored if name not in expected)
        pattern = f"{first.rpartition('.')[0]}.*" if "." in first else first
        return f". If the network works without these tensors, give --ignore-tensors '{pattern}'"
    problems = sorted({plan.problem for plan in flat.values() if plan.problem})
    return f". The file holds tensors that are {' and '.join(problems)}" if problems else ""


def _read_tensor(path: Path, name: str, plan: TensorPlan, wanted: Tensor | None, model: str) -> Tensor:
    """Return a tensor with the type that the network has; with its own where `wanted` is None."""
    floating = plan.dtype.is_floating_point
    if plan.problem or plan.dtype.is_complex or (wanted is not None and floating != wanted.is_floating_point()):
        raise UserError(f"{path} does not fit {model}: {name} is {plan.problem or f'of type {plan.dtype}'}")
    tensor = plan.read() if wanted is None else plan.read().to(wanted.dtype)
    if not tensor.isfinite().all():
        raise UnusableFile(f"{path} is damaged: its tensor {name} has NaN or infinite values")
    return tensor


def _prefix(
    path: Path, flat: Mapping[str, TensorPlan], expected: dict[str, Tensor], *, key: str | None, model: str
) -> tuple[str, str, Mapping[str, TensorPlan], tuple[str, ...]]:
    """Find the set of a network's tensors in a file.

    Returns:
        The prefix of the tensors' names in the file, and the prefix in a network that the user wrapped. Then all
        tensors of the file by name, and the other sets in the file.
    """
    asked = "" if key is None else f"{key}."
    # A set with more than half of the tensors is meant to be complete: no other set must take its place.
    needed = sum(not _is_counter(name) for name in expected) / 2
    fitting, sets, inner = _fitting(flat, expected), list[str](), ""
    wrapper = os.path.commonprefix([*expected]).rpartition(".")[0]  # noqa: RUF071 - cut at a dot
    for own, rename in itertools.product(
        dict.fromkeys(("", wrapper and f"{wrapper}.")), (str, _without_data_parallel, _as_our_wide_resnet)
    ):
        if not sets:
            renamed = {rename(name): plan for name, plan in flat.items()}
            counts = _fitting(renamed, {name.removeprefix(own): tensor for name, tensor in expected.items()})
            sets = [prefix for prefix, count in counts.items() if count > needed and prefix.startswith(asked)]
            fitting, flat, inner = (counts, renamed, own) if sets else (fitting, flat, inner)
    described = {prefix: _described_set(prefix, flat) for prefix, count in fitting.items() if count > needed}
    if key is None and sets:
        sets = [prefix for prefix in sets if not EMA.search(prefix.lower())]
        if not sets:
            averaged = next(iter(described)).rstrip(".")
            raise UserError(
                f"{path} holds only averaged weights of {model}. To use them, give --state-dict-key {averaged}."
            )
    if len(sets) > 1:
        keys = ", ".join(described[prefix] for prefix in sets)
        raise UserError(f"{path} holds the weights of {model} more than once: {keys}. Choose with --state-dict-key.")
    best = max((prefix for prefix in fitting if prefix.startswith(asked)), key=fitting.__getitem__, default=asked)
    prefix = sets[0] if sets else best
    return prefix, inner, flat, tuple(text for other, text in described.items() if other != prefix)


def _described_set(prefix: str, flat: Mapping[str, TensorPlan]) -> str:
    """Return the key of a set of weights, and whether it is averaged or as trained, where the file tells it."""
    key = prefix.rstrip(".") or "(top)"
    top = key.partition(".")[0]
    if top in LIGHTNING_SETS and any(name.startswith("current_model_state.") for name in flat):
        return f"{key} ({LIGHTNING_SETS[top]})"
    return f"{key} (averaged)" if EMA.search(key.lower()) else key


def _without_data_parallel(name: str) -> str:
    """Return the name of a tensor of a network whose part was wrapped in DataParallel."""
    return name.replace(".module.", ".")


def _as_our_wide_resnet(name: str) -> str:
    """Return our name of a tensor of the Wide ResNets of RepDistiller, mdistiller and LSKD.

    >>> _as_our_wide_resnet("model.block2.layer.0.convShortcut.weight"), _as_our_wide_resnet("model.bn1.bias")
    ('model.stage2.0.shortcut.weight', 'model.bn.bias')
    """
    name, in_block = re.subn(r"(^|\.)block([123])\.layer\.", r"\1stage\2.", name)
    if in_block:
        return name.replace(".convShortcut.", ".shortcut.")
    return re.sub(r"(^|\.)bn1\.", r"\1bn.", re.sub(r"(^|\.)fc\.", r"\1classifier.", name))


def _fitting(flat: Mapping[str, TensorPlan], expected: dict[str, Tensor]) -> collections.Counter[str]:
    """Return how many tensors fit the network, by prefix."""
    fitting: collections.Counter[str] = collections.Counter()
    longest = max((name.count(".") for name in expected), default=0) + 1
    for name, plan in flat.items():
        segments = name.split(".")
        for ending in (".".join(segments[start:]) for start in range(max(0, len(segments) - longest), len(segments))):
            if ending in expected and plan.shape == tuple(expected[ending].shape):
                fitting[name.removesuffix(ending)] += not _is_counter(ending)
    return fitting


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def differing_shapes(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor | TensorPlan]) -> str:
    """Return how names or shapes of stored tensors differ from those expected; "" if they are the same."""
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (stored, expected)]
    names = [name for name in {**expected, **stored} if shapes[0].get(name) != shapes[1].get(name)]
    if not names:
        return ""
    in_file, in_model = (of.get(names[0], "absent") for of in shapes)
    gray = ONE_CHANNEL if (in_file[1:2], in_model[1:2]) == ([1], [3]) else ""
    return (
        f"{len(names)} tensors are missing, unexpected or of another shape, first {names[0]} ({in_file} in the file, "
        f"{in_model} in the model){gray}"
    )


def size(path: Path) -> int:
    """Return the bytes of the files that hold a checkpoint's weights."""
    return sum(file.stat().st_size for file in parts(path))


@contextmanager
def opened_tensors(path: Path) -> Iterator[dict[str, TensorPlan]]:
    """Open a checkpoint, and give every tensor in it by dotted name, without the prefixes of wrappers.

    Raises:
        UserError: If the file is damaged or is not a checkpoint.
    """
    sharded = sharded_folder(path)
    if sharded is not None:
        yield flattened(path, sharded_tensors(sharded))
        return
    flat: dict[str, TensorPlan] = {}
    shards = _shards(path)
    with ExitStack() as stack:
        for file in parts(path):
            content = stack.enter_context(_opened_file(file))
            if shards is not None:
                names = [name for name, shard in shards.items() if shard == file.name]
                if not set(names) <= content.keys():
                    raise UserError(f"{file} lacks tensors that its index lists")
                content = {name: content[name] for name in names}
            flat |= flattened(file, content)
        yield flat


@contextmanager
def _opened_file(file: Path) -> Iterator[Any]:
    """Open one file of weights, and give its content as plain data and plans of tensors."""
    if file.suffix.lower() != ".safetensors":
        with opened(file) as content:
            yield content.value
        return
    if "sha256" in storage.read_metadata(file):  # from one of our own writers
        yield {name: ready(tensor) for name, tensor in storage.load_tensors(file)[0].items()}
        return
    with ExitStack() as stack:
        try:
            tensors = stack.enter_context(safetensors.safe_open(file, framework="pt"))
            plans = {name: _safetensors_plan(tensors, name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, MemoryError, RuntimeError, safetensors.SafetensorError) as error:
            raise _damaged(file, error) from None
        yield plans


def _safetensors_plan(tensors: Any, name: str) -> TensorPlan:
    part = tensors.get_slice(name)
    dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
    problem = "" if dtype else f"of type {part.get_dtype()}"
    return TensorPlan(
        tuple(part.get_shape()), dtype or torch.float32, lambda: tensors.get_tensor(name).clone(), problem
    )


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
    sharded = sharded_folder(path)
    if sharded is not None:
        return [inside(file, path) for file in sorted(sharded.iterdir()) if file.is_file()]
    files = [path / name for name in WHOLE if (path / name).is_file()][:1]
    files = files or [path / shard for shard in dict.fromkeys((_shards(path) or {}).values())]
    if not files:
        raise UserError(f"There are no weights in {path}. Expected one of {', '.join((*WHOLE, *SHARDS))}.")
    return [inside(check_exists(file, "shard"), path) for file in files]


def flattened(path: Path, content: Any) -> dict[str, TensorPlan]:
    """Return the tensors of nested dicts, lists and networks, by dotted names without the prefixes of wrappers."""
    flat: dict[str, TensorPlan] = {}
    values = letters = 0
    ancestors: set[int] = set()

    def visit(value: Any, name: str) -> None:
        nonlocal values, letters
        if len(ancestors) > DEEPEST or len(name) > LONGEST_NAME or values > MOST_VALUES:
            raise UnusableFile(f"{path} is refused: its content is nested too deeply for a network")
        if isinstance(value, TensorPlan):
            name = WRAPPERS.sub("", name) or "(tensor)"
            letters += len(name)
            if len(flat) >= MOST_TENSORS or letters > MOST_LETTERS:
                raise UnusableFile(f"{path} is refused: it holds more tensors, or longer names, than a network has")
            if name in flat:
                raise UnusableFile(f"{path} is refused: it holds two tensors named {name}")
            flat[name] = value
        elif id(value) not in ancestors:
            ancestors.add(id(value))
            values += 10 + (0 if isinstance(value, StandIn) else len(value))
            if values > MOST_VALUES:
                raise UnusableFile(f"{path} is refused: it holds more values than a network has")
            entries = _entries_of(value)
            for key, entry in entries:
                is_setting = value is content and isinstance(value, Mapping) and key in SETTINGS
                if isinstance(entry, TensorPlan) or (isinstance(entry, CONTAINERS) and not is_setting):
                    visit(entry, f"{name}.{key}" if name else str(key))
            ancestors.remove(id(value))

    if isinstance(content, (TensorPlan, *CONTAINERS)):
        visit(content, "")
    return flat


def _entries_of(value: Any) -> Collection[tuple[Any, Any]]:
    """Return the entries of a container, with their keys or numbers."""
    if isinstance(value, list | tuple):
        return [*enumerate(value)]
    return (_entries_of_object(value) if isinstance(value, StandIn) else value).items()


def _entries_of_object(value: StandIn) -> Mapping[Any, Any]:
    """Return the parameters, buffers and modules of a pickled network; the entries of any other object."""
    state = value.state
    if value.name.endswith(".OptimizedModule") and value.arguments:  # made by torch.compile
        return {"_orig_mod": value.arguments[0]}
    if not (isinstance(state, Mapping) and isinstance(state.get("_modules"), Mapping)):
        return value.entries
    content: dict[Any, Any] = {}
    listed = state.get("_non_persistent_buffers_set")
    temporary = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        part = state.get(kind)
        entries = part if isinstance(part, Mapping) else {}
        content |= {key: entry for key, entry in entries.items() if kind != "_buffers" or key not in temporary}
    return content


def _damaged(path: Path, error: Exception) -> UnusableFile:
    return UnusableFile(f"{path} is damaged, or is not a checkpoint ({first_line(error)[:160]})")
