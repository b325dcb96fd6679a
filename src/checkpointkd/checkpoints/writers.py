"""Save checkpoints from any training loop, each with its epoch and its checksum.

A folder of them is used like any other trainer's: `checkpointkd inspect FOLDER --model MODEL --data DATA`.
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
    accelerator: Any = None,
) -> Path:
    """Write the network after `epoch` completed epochs, complete or not at all, with its checksum.

    Args:
        folder: Where to write `epoch-0010.safetensors`.
        epoch: The number of completed epochs.
        model: The network.
        mean: The mean of each channel with which images in [0, 1] were normalized; stored in the file.
        std: The standard deviation of each channel, likewise.
        accelerator: In a loop of Accelerate: its `Accelerator`. Call this function in all processes, with the prepared
            model. Weights that are spread over processes are gathered, and the main process writes.

    Raises:
        UserError: If a weight is not finite, or if a value is of another kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(folder, epoch=10, model=nn.Linear(2, 3)).name
    'epoch-0010.safetensors'
    """
    if not (type(epoch) is int and epoch >= 0):
        raise UserError(f"The epoch must be a number of completed epochs, not {epoch!r}")
    for name, values in (("mean", mean), ("std", std)):
        if not (values is None or isinstance(values, Sequence)):
            raise UserError(f"{name} must be a list with one number for each channel, not {values!r}")
    path = Path(folder) / f"epoch-{epoch:04d}.safetensors"
    state = model.state_dict() if accelerator is None else _gathered(accelerator, model)
    if accelerator is not None and not accelerator.is_main_process:
        accelerator.wait_for_everyone()  # until the file is there
        return path
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    not_finite = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if not_finite:
        raise UserError(f"{not_finite[0]} holds NaN or infinite numbers after epoch {epoch}, so it is not saved")
    metadata: dict[str, Any] = {"format": "checkpointkd", "epoch": str(epoch)}
    if mean is not None and std is not None:
        metadata |= {"mean": [float(value) for value in mean], "std": [float(value) for value in std]}
    storage.save_tensors(path, tensors, metadata)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return path


def _gathered(accelerator: Any, model: nn.Module) -> dict[str, Any]:
    """Return the whole state dict of a model that `Accelerator.prepare` may have wrapped, compiled or sharded."""
    if not (hasattr(accelerator, "get_state_dict") and hasattr(accelerator, "is_main_process")):
        raise UserError(
            f"accelerator must be the Accelerator of your loop, as in accelerator=accelerator, not {accelerator!r}"
        )
    state = accelerator.get_state_dict(model)
    return {name.removeprefix("_orig_mod.").removeprefix("module."): value for name, value in state.items()}


def lightning_callback(
    folder: Path | str,
    *,
    every: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """Return a Lightning callback that saves a checkpoint every `every` epochs and after the last.

    The file holds the whole LightningModule, in which the network is found later.

    Raises:
        UserError: If Lightning is not installed.
    """
    _check_every(every)
    base = _lightning().Callback

    class SaveTrajectory(base):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            epoch = trainer.current_epoch + 1
            if trainer.is_global_zero and (epoch % every == 0 or epoch == trainer.max_epochs):
                save_checkpoint(folder, epoch=epoch, model=pl_module, mean=mean, std=std)

    return SaveTrajectory()


def transformers_callback(
    folder: Path | str,
    *,
    every: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """Return a callback for Hugging Face's Trainer that saves a checkpoint every `every` epochs and after the last.

    Raises:
        UserError: If transformers is not installed.
    """
    _check_every(every)
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise UserError(f"transformers is not installed ({error}). Run: pip install transformers.") from None

    class SaveTrajectory(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            epoch = round(state.epoch)
            if state.is_world_process_zero and (epoch % every == 0 or epoch >= args.num_train_epochs):
                save_checkpoint(folder, epoch=epoch, model=model, mean=mean, std=std)

    return SaveTrajectory()


def _check_every(every: int) -> None:
    if every < 1:
        raise UserError(f"every must be at least 1 epoch, not {every}")


def _lightning() -> Any:
    """Return Lightning's module. It has two names, and a trainer accepts callbacks only of the one in use."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise UserError("Lightning is not installed. Run: pip install lightning.")
