"""The information plane: estimators of I(X;F) and I(Y;F), and the plane that they span."""

from .decoder import Decoders, pixel_entropy, reconstruct, reconstruction_loss
from .plane import Plane, Point, load_plane, score_trajectory, stale_epochs

__all__ = [
    "Decoders",
    "Plane",
    "Point",
    "load_plane",
    "pixel_entropy",
    "reconstruct",
    "reconstruction_loss",
    "score_trajectory",
    "stale_epochs",
]
