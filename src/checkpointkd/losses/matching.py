"""Which features of the student meet which features of a teacher, and their sizes.

Letters in names: B batch, C image channels, H W image height and width, D channels of a map, h w its height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Images
from ..distill_config import DistillConfig
from ..errors import UserError
from ..models import Network, as_map, capture_activations, last_map_path, stage_paths, vector_path
from .features import FeatureKind, FeatureSpec, Size

_OPTIONS = "--student-features and --teacher-features"


@dataclass(frozen=True)
class FeaturePaths:
    """Module paths of the features that meet, in order: the student's and one teacher's."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]


def match_features(
    feature_kind: FeatureKind,
    student: Network,
    teacher: Network,
    images: Images,
    distill_config: DistillConfig,
    *,
    teacher_name: str,
) -> FeatureSpec:
    """Return the features that meet: those named in `distill_config`, else the method's default ones.

    Default stages meet where they have equal height and width. Where no two stages do, the last ones meet in order.

    Args:
        feature_kind: The method's default features.
        student: A network like the student.
        teacher: One teacher's network.
        images: The training images; two of them run through both networks.
        distill_config: Its `student_features`, `teacher_features` and `channel_adapter` count.
        teacher_name: The teacher's name in error messages.

    Raises:
        UserError: A named module does not exist or has no features, or the numbers of features differ.
    """
    trial_BCHW = images.subset(torch.arange(2)).to_float()
    named = (distill_config.student_features, distill_config.teacher_features)
    student_sizes = _feature_sizes(student, named[0], feature_kind, trial_BCHW, owner="the student")
    teacher_sizes = _feature_sizes(teacher, named[1], feature_kind, trial_BCHW, owner=f"the teacher {teacher_name}")
    if named == (None, None) and feature_kind in ("stages", "middle"):
        student_sizes, teacher_sizes = _matching_stages(student_sizes, teacher_sizes)
        if feature_kind == "middle":
            student_sizes, teacher_sizes = _middle(student_sizes), _middle(teacher_sizes)
    if len(student_sizes) != len(teacher_sizes):
        raise UserError(
            f"Each student feature needs one teacher feature, but the student has {len(student_sizes)} "
            f"({', '.join(student_sizes)}) and the teacher {teacher_name} has {len(teacher_sizes)} "
            f"({', '.join(teacher_sizes)}). Name the same number of features with {_OPTIONS}."
        )
    return FeatureSpec(
        student=student_sizes,
        teacher=teacher_sizes,
        labels_N=images.labels_N,
        index_N=images.index_N,
        channel_adapter=distill_config.channel_adapter,
    )


def channels_first_map(features: Tensor, images_BCHW: Tensor) -> Tensor:
    """Return the features of a batch as maps (B, D, h, w), at least float32; vectors become maps with h = w = 1.

    Raises:
        UserError: The features are not one map, one row of tokens or one vector per image.
    """
    shape, dtype = tuple(features.shape), str(features.dtype).removeprefix("torch.")
    if not (features.is_floating_point() and features.dim() > 1 and len(features) == len(images_BCHW)):
        raise UserError(
            f"Features of shape {shape} and type {dtype} are not one map or vector for each of "
            f"{len(images_BCHW)} images. Name another module."
        )
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if features.dim() == 2:
        return features[:, :, None, None]
    if features.dim() == 4 and features.shape[2:] == (1, 1):
        return features
    map_BhwD = as_map(features, (images_BCHW.shape[2], images_BCHW.shape[3]))
    if map_BhwD is None:
        raise UserError(f"Features of shape {shape} are not maps, tokens or vectors. Name another module.")
    return map_BhwD.permute(0, 3, 1, 2)


def _feature_sizes(
    network: Network, named: Sequence[str] | None, feature_kind: FeatureKind, images_BCHW: Tensor, *, owner: str
) -> dict[str, Size]:
    """Return the sizes of the named features, or of the default ones, by path."""
    was_training = network.training
    images_BCHW = images_BCHW.to(network.mean.device)
    try:
        paths = list(named if named is not None else _default_paths(network, feature_kind, images_BCHW))
        if len(set(paths)) < len(paths):
            raise UserError(f"A module is named twice ({', '.join(paths)}). Name each module once.")
        with torch.no_grad(), capture_activations(network.eval().body, paths) as activations:
            network(images_BCHW)
        sizes = {}
        for path in paths:
            if path not in activations:
                raise UserError(f"The model never calls {path!r}. Name another module.")
            _, D, h, w = channels_first_map(activations[path], images_BCHW).shape
            sizes[path] = (D, h, w)
        return sizes
    except UserError as error:
        raise UserError(f"Features of {owner}: {error}") from None
    finally:
        network.train(was_training)


def _default_paths(network: Network, feature_kind: FeatureKind, images_BCHW: Tensor) -> list[str]:
    if feature_kind == "vector":
        return [vector_path(network.body, network.normalized(images_BCHW), option=_OPTIONS)]
    if feature_kind == "last":
        return [last_map_path(network.body, network.normalized(images_BCHW), option=_OPTIONS)]
    return stage_paths(network.body, network.normalized(images_BCHW), option=_OPTIONS)


def _matching_stages(student: dict[str, Size], teacher: dict[str, Size]) -> tuple[dict[str, Size], dict[str, Size]]:
    """Keep the stages of equal height and width; where there are none, equally many of the last."""
    student_path_of, teacher_path_of = (
        {size[1:]: path for path, size in sizes.items()} for sizes in (student, teacher)
    )
    common = [extent for extent in student_path_of if extent in teacher_path_of]
    count = min(len(student), len(teacher))
    student_paths = [student_path_of[extent] for extent in common] or list(student)[-count:]
    teacher_paths = [teacher_path_of[extent] for extent in common] or list(teacher)[-count:]
    return {path: student[path] for path in student_paths}, {path: teacher[path] for path in teacher_paths}


def _middle(sizes: dict[str, Size]) -> dict[str, Size]:
    path = list(sizes)[len(sizes) // 2]
    return {path: sizes[path]}
