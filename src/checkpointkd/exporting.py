"""Exported networks: weights and a config.json that load with one line, for disk, the Hugging Face Hub and ONNX.

An exported folder has `config.json` and the weights. `config.json` names the network, its classes, its normalization
and its accuracy, and a student's teachers and method. The weights are `student.safetensors` in a student's run
directory, and `model.safetensors` in the Hub's layout. The network takes images in [0, 1]: normalization is part of it.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from . import storage
from .checkpoints import Checkpoint, Trajectory, is_registered, open_trajectory, resolve
from .config import ChannelOrder
from .errors import UserError, first_line
from .models import Network, build_network, names_code
from .records.base import plain, selection_set
from .records.runs import DistillRecord, ExternalRecord, RunResult

log = logging.getLogger("checkpointkd")

CONFIG = "config.json"
STUDENT = "student.safetensors"  # in a student's run folder
WEIGHTS = "model.safetensors"  # in the Hub's layout
PLAIN = "state_dict.safetensors"  # the original network's tensors under its own names
ONNX = "model.onnx"
HUB = "hf:"  # before the name of a repository on the Hugging Face Hub
FORMAT = "checkpointkd"
AGREEMENT = 1e-4  # how far ONNX's logits may be from PyTorch's, of their greatest if that is above 1


def write_student(run: Trajectory) -> None:
    """Write the finished student into its run directory as an exported network, unless it is already there."""
    checkpoint = run.last
    config = config_of(checkpoint, result=run.result(), weights=STUDENT)
    weights = run.path / STUDENT
    with storage.locked(run.path):
        if not _is_whole(weights, checkpoint.sha256):
            storage.atomic_copy(checkpoint.path, weights)
        if not (run.path / CONFIG).exists() or storage.read_json(run.path / CONFIG) != config:
            storage.write_json(run.path / CONFIG, config)


def _is_whole(weights: Path, sha256: str) -> bool:
    try:
        return storage.load_tensors(weights)[1].get("sha256") == sha256
    except UserError:
        return False


def config_of(checkpoint: Checkpoint, *, result: RunResult | None, weights: str) -> dict[str, Any]:
    """Return the content of config.json: everything that a user of the weights needs."""
    run = checkpoint.run
    config: dict[str, Any] = {
        "format": FORMAT,
        "weights": weights,
        "sha256": checkpoint.sha256,
        "model": run.model,
        **({} if run.channel_order == "rgb" else {"channel_order": run.channel_order}),
        **({} if run.network_config is None else {"network_config": run.network_config}),
        "classes": list(run.classes),
        "image_shape": list(run.data.shape),
        **({"image_transform": plain(run.data.eval_transform)} if run.data.image_size is not None else {}),
        "mean": list(run.mean),
        "std": list(run.std),
        "epoch": checkpoint.epoch,
        **({"average": checkpoint.average} if checkpoint.average else {}),
        "data": {name: getattr(run.data, name) for name in ("name", "sha256", "select_on", "train_size")},
        "accuracy": None,
    }
    if result is not None and result.epoch == checkpoint.epoch and not checkpoint.average:
        config["accuracy"] = {"val": result.val.accuracy} | ({"test": result.test.accuracy} if result.test else {})
    if isinstance(run, DistillRecord):
        config |= {"method": run.method, "kd": plain(run.kd), "distill_config": plain(run.distill_config)}
        config["teachers"] = [
            {**plain(teacher), "accuracy": member.accuracy}  # their paths mean nothing elsewhere
            for teacher, member in zip(run.teachers, run.teachers_measured.members, strict=True)
        ]
    return config | {"provenance": plain(run.provenance)}


def load(
    source: Path | str,
    /,
    *,
    model: str | None = None,
    device: torch.device | str = "cpu",
    local_only: bool = False,
) -> Network:
    """Load a network that takes images (B, C, H, W) in [0, 1] and returns logits (B, K).

    `network.classes` holds the names of the classes.

    Args:
        source: One of

            - a checkpoint reference such as `runs/teacher@160`, `@0.5`, `@midpoint`, `@last` or `@best`. A run
              directory alone is its last checkpoint. Register folders of external checkpoints first, with
              `checkpointkd inspect` or `score`;
            - a folder that `checkpointkd export` wrote, or a copy of a student's `config.json` and weights;
            - `hf:NAME`, such as `hf:me/student`: a repository on the Hugging Face Hub with an exported network. A path
              without this prefix is never looked for on the Hub.
        model: The network's name, required if the network is `package.module:callable`. A config can come from anyone,
            so its code is imported only if you name the network, too.
        device: Where the network computes.
        local_only: For `hf:NAME`: use the copy that an earlier download left on this machine, and no network
            connection.

    Raises:
        UserError: If there is no such network, or if it is damaged.

    >>> load("runs/nowhere")
    Traceback (most recent call last):
    checkpointkd.errors.UserError: There is no run directory at runs/nowhere
    """
    text = str(source)
    if text.startswith(HUB):
        return _load_export(_from_hub(text.removeprefix(HUB), local_only), model, device)
    folder = Path(source)
    if _exists(folder / CONFIG) and not is_registered(folder):
        return _load_export(folder, model, device)
    checkpoint = resolve(text).checkpoint
    _vouch(checkpoint.run.model, model, where=text)
    network = checkpoint.network(device)
    network.classes = list(checkpoint.run.classes)
    return network


def _load_export(folder: Path, model: str | None, device: torch.device | str) -> Network:
    config = storage.read_json(folder / CONFIG)
    _check(config, folder / CONFIG)
    _vouch(config["model"], model, where=str(folder / CONFIG))
    weights = folder / config["weights"]
    tensors, _ = storage.load_tensors(weights)
    if storage.content_hash(tensors) != config["sha256"]:
        raise UserError(
            f"The weights in {weights} differ from the hash in {CONFIG}. Export the network again, or restore the file."
        )
    network = build_network(
        config["model"],
        num_classes=len(config["classes"]),
        in_channels=len(config["mean"]),
        mean=config["mean"],
        std=config["std"],
        config=config.get("network_config"),
        channel_order=config.get("channel_order", "rgb"),
    )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {config['model']}: {str(error).splitlines()[-1].strip()}") from None
    network.classes = list(config["classes"])
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _vouch(named: str, model: str | None, *, where: str) -> None:
    if not (not names_code(named) or model == named):
        raise UserError(f"{where} names code, {named!r}. If you trust this code, pass model={named!r}.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def write_export(reference: str, *, out: Path, onnx: bool = False) -> dict[str, Any]:
    """Write a checkpoint as a folder in the Hub's layout, with `model.onnx` if `onnx`. Return the result of `export`.

    Raises:
        UserError: If the folder holds other files, or if ONNX's logits differ from PyTorch's.
    """
    checkpoint = resolve(reference).checkpoint
    run = checkpoint.run
    if not (not out.exists() or out.is_dir()):
        raise UserError(f"{out} is a file. Choose another --out.")
    there = {entry.name for entry in out.iterdir()} if out.exists() else set()
    there = {name for name in there if not name.startswith(".lock") and not name.endswith(storage.TMP_SUFFIX)}
    if there:
        ours = {CONFIG, WEIGHTS, PLAIN, ONNX, "README.md", ".gitattributes"}
        config = storage.read_json(out / CONFIG) if (out / CONFIG).exists() else {"sha256": checkpoint.sha256}
        same = isinstance(config, dict) and config.get("sha256") == checkpoint.sha256
        begun = WEIGHTS in there and _is_whole(out / WEIGHTS, checkpoint.sha256)  # an export that was killed, at least
        if not (same and begun and there <= ours):
            raise UserError(f"{out} already holds other files ({', '.join(sorted(there)[:3])}). Choose another --out.")
    network = checkpoint.network()
    result = None if isinstance(run, ExternalRecord) else open_trajectory(checkpoint.saved_path.parents[1]).result()
    config = config_of(checkpoint, result=result, weights=WEIGHTS)
    written = [WEIGHTS, PLAIN, "README.md", CONFIG]
    content, difference = _onnx(network, config) if onnx else (b"", None)
    with storage.locked(out):
        storage.save_tensors(out / WEIGHTS, network.state_dict(), {"format": "pt"})
        storage.save_tensors(out / PLAIN, network.body.state_dict(), {"format": "pt"})
        if onnx:
            storage.atomic_write_bytes(out / ONNX, content)
            written.append(ONNX)
        storage.atomic_write_bytes(out / "README.md", _card(config).encode())
        storage.write_json(out / CONFIG, config)  # last: with it the folder is whole
    return {"folder": str(out), "files": written, "onnx_difference": difference, "config": config}


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub and return its URL. Raises UserError if the upload fails."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("--push needs the extra 'hub'. Run: pip install 'checkpointkd[hub]'.") from None
    api = HfApi()
    try:
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=[".lock*"])
    except Exception as error:  # whatever the network or the Hub may say
        raise UserError(
            f"Could not upload {folder} to the Hub as {repository!r} ({first_line(error)}). The folder is complete. "
            "Log in with `hf auth login` if necessary, and try again."
        ) from None
    return f"{api.endpoint}/{repository}"


def _from_hub(repository: str, local_only: bool) -> Path:
    """Return the folder of an exported network, downloaded if necessary. Raises UserError if the Hub lacks it."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            "Loading from the Hugging Face Hub needs an extra. Run: pip install 'checkpointkd[hub]'."
        ) from None
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS], local_files_only=local_only))
    except Exception as error:  # the network, the Hub or its cache may raise anything
        if local_only:
            raise UserError(
                f"There is no copy of {HUB}{repository} on this machine. Leave out local_only=True to download it."
            ) from None
        raise UserError(f"Could not download {repository!r} from the Hugging Face Hub: {first_line(error)}") from None


def _onnx(network: Network, config: dict[str, Any]) -> tuple[bytes, float]:
    """Return the network as an ONNX file for any batch size, and the largest difference from PyTorch's logits."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - PyTorch's exporter needs it
    except ImportError:
        raise UserError("--onnx needs the extra 'onnx'. Run: pip install 'checkpointkd[onnx]'.") from None
    if config["image_shape"] is None:
        raise UserError("This run does not record the size of its images, which --onnx needs. Leave out --onnx.")
    network = network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    trials = [
        torch.rand(size, *config["image_shape"], generator=torch.Generator().manual_seed(size)) for size in (3, 1, 8)
    ]
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # PyTorch's exporter warns of PyTorch
            program: Any = torch.onnx.export(
                network,
                (trials[0],),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            path = Path(folder) / ONNX
            program.save(path, external_data=False)
            content = path.read_bytes()
    except Exception as error:  # the exporter may say anything about a user's network
        cause = error.__cause__ or error
        raise UserError(f"PyTorch cannot write this network as ONNX: {first_line(cause)}. Leave out --onnx.") from None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = max(_difference(session, network, images_BCHW) for images_BCHW in trials)
    if not difference <= AGREEMENT:
        raise UserError(
            f"ONNX logits differ from PyTorch's by {difference:.1e}, more than {AGREEMENT:.0e}. Leave out --onnx."
        )
    return content, difference


def _difference(session: Any, network: Network, images_BCHW: Tensor) -> float:
    """Return the largest difference of the two logits, relative to the largest logit if that is above 1."""
    with torch.no_grad():
        expected = network(images_BCHW)
    (got,) = session.run(None, {"images": images_BCHW.numpy()})
    return ((torch.from_numpy(got) - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


def _check(config: Any, path: Path) -> None:
    """Raise UserError unless the config has the form that `write_export` writes."""
    kinds = {"weights": str, "sha256": str, "model": str, "classes": list, "mean": list, "std": list}
    if not (isinstance(config, dict) and config.get("format") == FORMAT):
        raise UserError(f"{path} was not written by checkpointkd")
    for name, kind in kinds.items():
        if type(config.get(name)) is not kind:
            raise UserError(f"{path} is damaged: {name!r} must have type {kind.__name__}")
    if Path(config["weights"]).name != config["weights"]:
        raise UserError(f"{path} is damaged: its weights are in another folder")
    numbers = [*config["mean"], *config["std"]]
    if not (
        all(type(number) in (int, float) and abs(number) < 1e6 for number in numbers)
        and len(config["mean"]) == len(config["std"]) > 0
        and min(config["std"]) > 0
        and len(config["classes"]) > 0
        and all(type(name) is str for name in config["classes"])
        and config.get("channel_order", "rgb") in get_args(ChannelOrder)
        and isinstance(config.get("network_config", {}), dict)
    ):
        raise UserError(f"{path} is damaged: its classes or its normalization are invalid")


def _card(config: dict[str, Any]) -> str:
    """Return the model card in the Hub's layout."""
    lines = [
        "---",
        "library_name: checkpointkd",
        "tags: [image-classification, knowledge-distillation]",
        "---",
        f"# {config['model']}, {len(config['classes'])} classes of {config['data']['name']}",
        "",
        "```python",
        "import checkpointkd",
        'network = checkpointkd.load("FOLDER")  # or "hf:NAME" from the Hub',
        f"logits = network(images)  # floats in [0, 1], {config['image_shape']} each; network.classes has the names",
        "```",
        "",
        f"Without checkpointkd, `{PLAIN}` is the state dict of the original network ({config['model']}). This network "
        "takes normalized images:",
        "",
        "```python",
        "from safetensors.torch import load_file",
        "from torchvision import transforms",
        f'network.load_state_dict(load_file("{PLAIN}"))',
        f"transform = transforms.Compose([{_resizing(config)}transforms.ToTensor(), {_normalize(config)}])",
        "```",
        *_resizing_note(config),
        *([] if config.get("channel_order", "rgb") == "rgb" else ["", "Its channels are blue, green, red."]),
        "",
        f"Checkpoint of epoch {config['epoch']}, trained on {config['data']['train_size']:,} images "
        f"(`--select-on {config['data']['select_on']}`).",
    ]
    for split, accuracy in (config["accuracy"] or {}).items():
        images = selection_set(config["data"]["select_on"]) if split == "val" else "the test set"
        lines.append(f"Accuracy on {images}: {100 * accuracy:.2f}%.")
    for teacher in config.get("teachers", []):
        lines.append(
            f"Distilled (`{config['method']}`) from the checkpoint of epoch {teacher['epoch']}, weights "
            f"`{teacher['sha256'][:12]}`, accuracy {100 * teacher['accuracy']:.1f}% on "
            f"{selection_set(config['data']['select_on'])}."
        )
    return "\n".join(lines) + "\n"


def _resizing(config: dict[str, Any]) -> str:
    """Return the code of torchvision's transforms that make an image a square, as in the evaluation of the network."""
    transform = config.get("image_transform")
    if transform is None:
        return ""
    size = config["image_shape"][-1]
    shorter = math.floor(size / transform["crop_share"] + 1e-6)
    sides = f"({shorter}, {shorter})" if transform["resize"] == "squash" else str(shorter)
    mode = f"transforms.InterpolationMode.{transform['interpolation'].upper()}"
    return f"transforms.Resize({sides}, {mode}), transforms.CenterCrop({size}), "


def _resizing_note(config: dict[str, Any]) -> list[str]:
    if "image_transform" not in config:
        return []
    size = config["image_shape"][-1]
    return [
        "",
        f"`checkpointkd.load` and ONNX take images of {size}×{size} pixels: resize and crop them in the same way.",
    ]


def _normalize(config: dict[str, Any]) -> str:
    """Return the code of torchvision's transform that normalizes images for the original network."""
    mean, std = ([round(value, 6) for value in config[name]] for name in ("mean", "std"))
    return f"transforms.Normalize({mean}, {std})"
