"""The information plane: estimators of I(X;F) and I(Y;F), and the plane that they span."""

from .decoder import Decoders, LargeDecoders, decoder_information, pixel_entropy, reconstruction_loss
from .features import maps_and_logits
from .labels import label_entropy, label_measures, per_image
from .plane import (
    ESTIMATORS,
    ImageInformationEstimator,
    Plane,
    load_plane,
    load_planes,
    score_trajectory,
    stale_epochs,
)
from .ridge import ridge_information

__all__ = [
    "ESTIMATORS",
    "Decoders",
    "ImageInformationEstimator",
    "LargeDecoders",
    "Plane",
    "decoder_information",
    "label_entropy",
    "label_measures",
    "load_plane",
    "load_planes",
    "maps_and_logits",
    "per_image",
    "pixel_entropy",
    "reconstruction_loss",
    "ridge_information",
    "score_trajectory",
    "stale_epochs",
]
