"""`checkpointkd correlate`: compare the class similarities that checkpoints have learned (Eq. 8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ClassOrder, check_choice
from ..distill_config import KDConfig
from ..errors import UserError
from .evaluate import SplitOptions
from .options import CommonOptions
from .signature import command

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Data


@dataclass(frozen=True, kw_only=True)
class CorrelateOptions(SplitOptions, CommonOptions):
    """Options of `correlate`."""

    tau: float = KDConfig.tau
    """Softmax temperature of the predictions."""

    order: ClassOrder = "auto"
    """The order of the classes. superclass: by CIFAR-100's superclasses. similarity: similar classes side by side.
    given: as in the data. auto: superclass if the data have superclasses, otherwise similarity."""

    out: Path | str | None = None
    """HTML file for the heatmaps. Default: none."""


@command(CorrelateOptions)
def correlate(*references: str, options: CorrelateOptions) -> dict[str, Any]:
    """Measure the class correlation of a checkpoint (Eq. 8), or compare two checkpoints.

    The similarity of two classes is the cosine of their mean logits, or of their mean softened predictions. The table
    has the mean similarity over all pairs of classes, and the diversity: the standard deviation over pairs. Both have
    95% bootstrap intervals over the images.

    Example:

        checkpointkd correlate runs/teacher@midpoint runs/teacher@last --out correlation.html

    Args:
        references: One or two checkpoint references: RUN@160, RUN@0.5, RUN@midpoint, RUN@last, RUN@best.

    Raises:
        UserError: If a reference names no checkpoint, if the data have other classes, or if a class has no images.
    """
    from ..analysis.class_correlation import class_correlation
    from ..data import superclasses
    from ..metrics import measure
    from ..records.base import plain, provenance
    from ..reports.build import write_correlation

    if len(references) > 2:
        raise UserError(f"correlate takes one or two checkpoints, not {len(references)}")
    tau = KDConfig(tau=options.tau).tau
    check_choice("order", options.order, ClassOrder)
    teacher, data, images = options.open(references, options)
    groups = superclasses(data.classes)
    if groups is None and options.order == "superclass":
        raise UserError(f"The classes of {data.name!r} have no superclasses. Choose another --order.")
    logits_MNK = teacher.predict(images)
    vectors = {"logits": logits_MNK, "softened": (logits_MNK / tau).softmax(-1)}
    correlations = {kind: class_correlation(vectors_MNK, images.labels_N) for kind, vectors_MNK in vectors.items()}
    order, ordered = _ordered(options.order, groups, correlations["logits"].similarity_MKK[0], data)
    measured = [measure(logits_NK, images.labels_N) for logits_NK in logits_MNK]
    result: dict[str, Any] = {
        "data": data.name,
        "select_on": data.record.select_on,
        "split": options.split,
        "images": len(images),
        "tau": tau,
        "order": order,
        "classes": [data.classes[number] for number in ordered],
        "groups": groups and [groups[number] for number in ordered],
        "checkpoints": [
            {"ref": member.text, "epoch": member.checkpoint.epoch, "sha256": member.checkpoint.sha256, **accuracy}
            for member, accuracy in zip(teacher.members, measured, strict=True)
        ],
        "provenance": plain(provenance()),
    }
    for kind, correlation in correlations.items():
        similarity_MKK = correlation.similarity_MKK[:, ordered][:, :, ordered].double()
        result[kind] = {
            "similarity": similarity_MKK.tolist(),
            "numbers": {
                number: [asdict(interval) for interval in intervals]
                for number, intervals in correlation.numbers.items()
            },
        }
        if correlation.differences:
            result[kind]["difference"] = (similarity_MKK[0] - similarity_MKK[1]).tolist()
            result[kind]["differences"] = {
                number: asdict(interval) for number, interval in correlation.differences.items()
            }
    page = None if options.out is None else write_correlation(result, out=Path(options.out))
    return result | {"page": page and str(page)}


def _ordered(
    order: ClassOrder, groups: list[str] | None, similarity_KK: Tensor, data: Data
) -> tuple[ClassOrder, list[int]]:
    """Return the order's name, with auto resolved, and the numbers of the classes in that order."""
    from ..analysis.class_correlation import by_similarity, grouped

    if groups is not None and order in ("auto", "superclass"):
        return "superclass", grouped(groups)
    if order in ("auto", "similarity"):
        return "similarity", by_similarity(similarity_KK)
    return order, list(range(len(data.classes)))
