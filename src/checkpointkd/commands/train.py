"""`checkpointkd train`: train one network and keep its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config import LabelLoss
from ..user_code import name_of
from ..user_data import Data as UserData
from .log_options import LogOptions
from .options import CommonOptions, DataOptions, Model, TrainingOptions
from .signature import command

if TYPE_CHECKING:
    from ..checkpoints import Trajectory


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, TrainingOptions, LogOptions, CommonOptions):
    """Options of `train`."""

    data: str | UserData = field()  # required: there is no run to take it from

    loss: LabelLoss = "cross-entropy"
    """cross-entropy; or squared-error, the squared distance between predicted probabilities and labels. Hamidi et al.
    (2024) report that a teacher trained with squared error teaches better, although it is less accurate."""


@command(TrainOptions)
def train(model: Model, /, *, options: TrainOptions) -> Trajectory:
    """Train a network and keep its trajectory of checkpoints. Repeat the command to continue an interrupted run.

    Example:

        checkpointkd train wrn_16_2 --data digits --epochs 40 --save-every 4 --out runs/teacher

    Args:
        model: The network: wrn_D_K, such as wrn_16_2; resnet_D, such as resnet_32; mobilenetv2_W, such as
            mobilenetv2_0.75; timm:NAME; hf:FOLDER with a config.json of transformers; or your own, as
            package.module:callable, or in Python as a function that takes num_classes= and in_channels=.

    Raises:
        UserError: If the directory holds another run or other files, or if the loss becomes NaN or infinite.
    """
    from ..data import load_data
    from ..trackers import tracked
    from ..training.run import from_labels, run_training

    tracking = options.tracking()
    data = load_data(options.config(options.data, options.train_images), on_progress=options.on_progress)
    spec = options.run_spec(name_of(model), data, options.torch_device)
    method = from_labels(spec.recipe.label_smoothing, options.loss)
    with tracked(spec.out, tracking) as on_row:
        return run_training(spec, data, method, on_row=on_row, on_progress=options.on_progress)
