"""The information plane: estimators of I(X;F) and I(Y;F), and the plane that they span."""

from .decoder import Decoders, LargeDecoders, decode, pixel_entropy, reconstruction_loss
from .labels import fitted_losses, label_entropy, label_measures, per_image
from .plane import (
    ESTIMATORS,
    Plane,
    Point,
    load_plane,
    load_planes,
    score_trajectory,
    stale_epochs,
)
from .ridge import ridge

__all__ = [
    "ESTIMATORS",
    "Decoders",
    "LargeDecoders",
    "Plane",
    "Point",
    "decode",
    "fitted_losses",
    "label_entropy",
    "label_measures",
    "load_plane",
    "load_planes",
    "per_image",
    "pixel_entropy",
    "reconstruction_loss",
    "ridge",
    "score_trajectory",
    "stale_epochs",
]
