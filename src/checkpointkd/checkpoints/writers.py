"""For those who train elsewhere: leave a checkpoint every so many epochs that we can use, and that knows its epoch and
its checksum.

A folder of these is used as any trainer's: `checkpointkd inspect FOLDER --model MODEL --data DATA`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import storage
from ..errors import UserError


def save_checkpoint(
    folder: Path | str,
    *,
    epoch: int,
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write the network after so many completed epochs, whole or not at all, with its checksum; from any training loop.

    `mean` and `std` are those with which images in [0, 1] were normalized; they are remembered. Raises UserError for
    weights that are not finite.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(folder, epoch=10, model=nn.Linear(2, 3)).name
    'epoch-0010.safetensors'
    """
    if not (type(epoch) is int and epoch >= 0):
        raise UserError(f"an epoch is a whole number of completed epochs, not {epoch!r}")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    spoiled = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if spoiled:
        raise UserError(f"after epoch {epoch} {', '.join(spoiled[:1])} holds NaN or infinite numbers; it is not saved")
    path = Path(folder) / f"epoch-{epoch:04d}.safetensors"
    about: dict[str, Any] = {"format": "checkpointkd", "epoch": str(epoch)}
    if mean is not None and std is not None:
        about |= {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    storage.save_tensors(path, tensors, about)
    return path


def lightning_callback(
    folder: Path | str,
    *,
    every: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """A Lightning callback that leaves a checkpoint every so many epochs and after the last.

    What is written is the whole LightningModule; the network is found in it. Raises UserError where Lightning isn't
    installed.
    """
    if not every >= 1:
        raise UserError(f"a checkpoint every {every} epochs makes no sense")
    base = _lightning().Callback

    class LeaveTrajectory(base):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            epoch = trainer.current_epoch + 1
            if trainer.is_global_zero and (epoch % every == 0 or epoch == trainer.max_epochs):
                save_checkpoint(folder, epoch=epoch, model=pl_module, mean=mean, std=std)

    return LeaveTrajectory()


def transformers_callback(
    folder: Path | str,
    *,
    every: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """A callback for Hugging Face's Trainer that leaves a checkpoint every so many epochs and after the last.

    Raises UserError where transformers isn't installed.
    """
    if not every >= 1:
        raise UserError(f"a checkpoint every {every} epochs makes no sense")
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise UserError(f"this needs transformers ({error})") from None

    class LeaveTrajectory(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            epoch = round(state.epoch)
            if state.is_world_process_zero and (epoch % every == 0 or epoch >= args.num_train_epochs):
                save_checkpoint(folder, epoch=epoch, model=model, mean=mean, std=std)

    return LeaveTrajectory()


def _lightning() -> Any:
    """Lightning comes under two names; a trainer takes callbacks of its own only, so the one that is in use counts."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise UserError("this needs Lightning: pip install lightning")
