"""Networks of Hugging Face's transformers, built from the config.json of a checkpoint: `hf:FOLDER`.

Nothing is downloaded, and no code that a config names is run: only numbers, words and lists of them are taken from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import storage
from ..errors import UserError, check_exists, first_line

PREFIX = "hf:"
MOST_PARAMETERS = 2_000_000_000
MOST_BLOCKS = 300
LARGEST = 100_000  # of a size in a config
LARGEST_CONFIG = 10_000_000  # bytes of config.json; names of 20,000 classes take 2,000,000
DEEPEST = 8  # containers in containers
MOST_BUFFERS = 50_000_000
# Not properties of the architecture: the classes are the data set's, and the rest may fetch weights or code.
IGNORED = {"auto_map", "id2label", "label2id", "num_labels", "problem_type", "quantization_config", "dtype"}
IGNORED |= {"torch_dtype", "attn_implementation", "experts_implementation", "backbone", "use_pretrained_backbone"}
IGNORED |= {"use_timm_backbone", "backbone_kwargs", "model_args"}


def named_network(folder: Path) -> str | None:
    """Return the network that the config.json in a folder describes, as `--model` takes it.

    timm's networks are `timm:NAME`, other image classifiers of transformers `hf:FOLDER`.

    Raises:
        UserError: If config.json is damaged.
    """
    if not (folder / "config.json").is_file():
        return None
    content = read_object(folder / "config.json")
    timm_name, arguments = content.get("architecture"), content.get("model_args") or {}
    if isinstance(timm_name, str) and isinstance(arguments, dict):
        pooling = content.get("global_pool")
        return timm_network(timm_name, {**({"global_pool": pooling} if pooling else {}), **arguments})
    architectures = content.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return f"{PREFIX}{folder}" if any("ForImageClassification" in str(name) for name in names) else None


def timm_network(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the name of a timm network with arguments, as `--model` takes it; None if it cannot be written so.

    >>> timm_network("resnet18", {"global_pool": "max", "bn_eps": 0.001})
    'timm:resnet18?global_pool=max&bn_eps=0.001'
    """
    words = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in arguments.items()
        if value is not None and key not in ("num_classes", "in_chans")  # of the data set
    ]
    name = re.sub(r"^((hf-hub|hf_hub):)?timm/", "", name)  # as the Hub names them
    named = f"timm:{name}{'?' if words else ''}{'&'.join(words)}"
    plain = all(_is_plain(value) for value in arguments.values() if value is not None)
    return named if plain and re.fullmatch(r"timm:[\w./-]{1,200}(\?[\w.=&,\[\] -]{1,300})?", named) else None


def read_config(model: str) -> dict[str, Any] | None:
    """Return the part of a config.json that describes the architecture, for `hf:FOLDER`; None for other names.

    Raises:
        UserError: If the folder has no config.json, or if it is damaged.
    """
    if not model.startswith(PREFIX):
        return None
    folder = Path(model.removeprefix(PREFIX))
    check_exists(folder / "config.json", "config")
    named = named_network(folder)
    if named is not None and not named.startswith(PREFIX):
        raise UserError(f"{folder / 'config.json'} describes a network of timm. Give --model {named}.")
    return _architecture(read_object(folder / "config.json"))


def same_architecture(config: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Return whether two configs describe one network. Their versions of transformers may differ."""
    kept = [
        None if each is None else {key: value for key, value in each.items() if key != "transformers_version"}
        for each in (config, other)
    ]
    return kept[0] == kept[1]


def build_from_config(
    config: Mapping[str, Any], *, num_classes: int, in_channels: int, most: int = MOST_PARAMETERS
) -> nn.Module:
    """Build the image classifier that a config describes.

    Args:
        config: The content of config.json.
        num_classes: Number of logits.
        in_channels: Number of image channels.
        most: Refuse a network with more parameters.

    Raises:
        UserError: If transformers is missing or cannot build the network, or if the network is too large.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("hf:FOLDER needs Hugging Face's transformers. Run: pip install transformers") from None
    config = _architecture(config)  # it may come from a record of unknown origin
    kind = str(config.get("model_type"))
    known: Any = transformers.CONFIG_MAPPING[kind] if kind in transformers.CONFIG_MAPPING else None  # noqa: SIM401 - lazy
    if kind == "timm_wrapper" or known not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise UserError(f"config.json has the model type {kind!r}, which is no image classifier of transformers")
    _check_sizes(config)
    settings = {"architectures": []} | {key: value for key, value in config.items() if key != "model_type"}
    try:
        described = known.from_dict({**settings, "num_labels": num_classes, "num_channels": in_channels})
        with torch.device("meta"):
            outline = transformers.AutoModelForImageClassification.from_config(described, trust_remote_code=False)
        parameters = sum(parameter.numel() for parameter in outline.parameters())
        buffers = sum(buffer.numel() for buffer in outline.buffers())
        if buffers > MOST_BUFFERS:
            raise UserError(
                f"config.json describes {buffers:,} values in buffers; at most {MOST_BUFFERS:,} are allowed"
            )
        if parameters > most:
            raise UserError(
                f"config.json describes {parameters:,} parameters, but the weights in its folder have {most:,} bytes"
                if most < MOST_PARAMETERS
                else f"config.json describes {parameters:,} parameters; at most {most:,} are allowed"
            )
        return transformers.AutoModelForImageClassification.from_config(described, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # a config may hold any value
        raise UserError(
            f"transformers cannot build the {kind} of config.json: {first_line(error)}{_torchvision_advice(error)}"
        ) from None


def _torchvision_advice(error: BaseException) -> str:
    """Return what to do if torchvision, which timm and transformers import, is the reason for an error; else ""."""
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision" in str(cause):
            return (
                f". Its torchvision must be of the same build (CPU or CUDA) as PyTorch {torch.__version__}: install it "
                "with the same --index-url, or uninstall it."
            )
        cause = cause.__cause__ or cause.__context__
    return ""


def is_transformers(body: nn.Module) -> bool:
    """Return whether a network is one of transformers."""
    return any(kind.__module__ == "transformers.modeling_utils" for kind in type(body).__mro__)


def as_loaded(body: Any, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename, split and merge tensors of a file as transformers does when it loads them.

    transformers 5 saves other names than its networks have in memory.

    Args:
        body: A network of transformers; it is not changed.
        tensors: The tensors of the file, by name.

    Returns:
        The network's state dict, and the names that are missing, unexpected or of another shape.
    """
    import transformers

    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # its report of what differs; ours is an error
    transformers.logging.disable_progress_bar()
    try:
        loaded, report = type(body).from_pretrained(
            None,
            config=body.config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    differing = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[kind]]
    return loaded.state_dict(), sorted(str(name[0] if isinstance(name, tuple) else name) for name in differing)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint.

    Raises:
        UserError: If the file is damaged or very large, or holds no object.
    """
    if path.is_file() and path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path} is refused: it has {path.stat().st_size:,} bytes, more than {LARGEST_CONFIG:,}")
    content = storage.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return content


def most_parameters(folder: Path) -> int:
    """Return the most parameters that the weights in a folder can fill; without weights, the general limit."""
    endings = (".safetensors", ".bin")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(endings) and file.is_file())
    return min(size, MOST_PARAMETERS) or MOST_PARAMETERS


def _architecture(config: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return the entries that describe an architecture: numbers, words, lists of them, and dicts of such entries."""
    if depth > DEEPEST:
        raise UserError("config.json is refused: it is nested too deeply")
    if depth and config.get("model_type") == "timm_wrapper":
        raise UserError("config.json is refused: a timm_wrapper lies inside another network")
    return {
        key: _architecture(value, depth + 1) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in IGNORED and not key.startswith("_") and (isinstance(value, dict) or _is_plain(value))
    }


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether this is a number, a word or a list of them."""
    if isinstance(value, list):
        return len(value) <= MOST_BLOCKS and depth < DEEPEST and all(_is_plain(entry, depth + 1) for entry in value)
    return isinstance(value, str | int | float | bool)


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Raise UserError for sizes that would fill the memory."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value)
        numbers = _numbers(value)
        blocks = any(word in key for word in ("layer", "depth", "blocks"))
        listed = value if isinstance(value, list) else [value]
        counts = [number for number in listed if isinstance(number, int)] if blocks else []
        largest = 20 * LARGEST if "vocab" in key else LARGEST
        if any(abs(number) > largest for number in numbers) or sum(counts) > MOST_BLOCKS or min(counts, default=0) < -1:
            raise UserError(f"config.json is refused: {key} is {str(value)[:60]}")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for entry in value for number in _numbers(entry)]
    return [value] if isinstance(value, int | float) else []
