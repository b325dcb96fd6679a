"""The information plane: estimators of I(X;F) and I(Y;F), and the plane that they span."""

from .decoder import Decoders, LargeDecoders, decoder_information, pixel_entropy, reconstruction_loss
from .estimators import ESTIMATORS, ImageInformationEstimator, get_estimator
from .features import maps_and_logits
from .in_memory import LogitScores, scores_of_logits
from .labels import label_entropy, label_measures, per_image
from .plane import (
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
    "LogitScores",
    "Plane",
    "decoder_information",
    "get_estimator",
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
    "scores_of_logits",
    "stale_epochs",
]
