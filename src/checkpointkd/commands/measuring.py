"""The verbs that look at what is there, and pass it on: `evaluate`, `correlate`, `export`, `report`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import (
    ClassOrder,
    Device,
    EnsembleAverage,
    KDConfig,
    OnProgress,
    SplitName,
    check_choice,
)
from ..errors import UserError
from .common import device_of, say_if_any_has_seen, shares_of

if TYPE_CHECKING:
    from ..data import Data, Images
    from ..teachers.ensemble import Teacher


log = logging.getLogger("checkpointkd")


def evaluate(
    *addresses: str,
    data: str | None = None,
    split: SplitName = "val",
    ensemble: str | None = None,
    average: EnsembleAverage = "probabilities",
    weights: list[float] | None = None,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure checkpoints, and the ensemble of them if there are several, on clean images.

    Under the holdout protocol the test images are for the last measurement; everything before it is for the selection
    images, which are the default.

    Example:

        checkpointkd evaluate runs/teacher@midpoint runs/teacher@last

    Parameters
    ----------
    addresses
        One or more checkpoints: RUN@160, RUN@0.5, RUN@midpoint, RUN@last, RUN@best.
    data
        A data set; by default the first run's own, with its protocol.
    split
        selection, or test for the final figure.
    ensemble
        Which checkpoints of the runs that are named: snapshot:K, full:K, mixed or all, as for distill.
    average
        Several: the mean of their probabilities (Eq. 2), or of their logits.
    weights
        How much each of several counts, in their order; by default all alike.
    device
        Where to compute.

    Raises
    ------
    UserError
        For addresses that lead nowhere, and for data of other classes.
    """
    from ..records import plain
    from ..teachers.cost import training_cost

    check_choice("average", average, EnsembleAverage)
    teacher, loaded, images = _asked(
        addresses, data=data, split=split, ensemble=ensemble, device=device, on_progress=on_progress
    )
    shares = shares_of(weights, len(teacher))
    return {
        "average": average,
        "weights": shares,
        "data": loaded.name,
        "select_on": loaded.record.select_on,
        "split": split,
        **plain(teacher.measure(images, average=average, weights=shares)),
        "training_cost": plain(training_cost(teacher.members)),
    }


def correlate(
    *addresses: str,
    data: str | None = None,
    split: SplitName = "val",
    tau: float = KDConfig.tau,
    order: ClassOrder = "auto",
    out: Path | str | None = None,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Say how alike a checkpoint finds the classes (Eq. 8), and how that differs from another's.

    The similarity of two classes is the cosine of their mean logits, and of their mean softened predictions. Its mean
    over pairs, and its diversity, how widely pairs differ, come with 95% intervals by bootstrap over the images.

    Example:

        checkpointkd correlate runs/teacher@midpoint runs/teacher@last --out correlation.html

    Parameters
    ----------
    addresses
        One checkpoint or two: RUN@160, RUN@0.5, RUN@midpoint, RUN@last, RUN@best.
    data
        A data set; by default the first run's own, with its protocol.
    split
        The images that are looked at: selection, or test.
    tau
        The temperature at which predictions are softened.
    order
        How the classes are ordered: by superclass (CIFAR-100's), so that similar ones are neighbors (similarity), as
        the data have them (given); by default by superclass where there are any, else by similarity.
    out
        An HTML file for the heatmaps.
    device
        Where to compute.

    Raises
    ------
    UserError
        For addresses that lead nowhere, for data of other classes, and for classes without images.
    """
    from ..analysis.class_correlation import by_similarity, class_correlation, grouped
    from ..data import superclasses
    from ..metrics import measure
    from ..records import plain, provenance
    from ..reports import write_correlation

    if not len(addresses) <= 2:
        raise UserError(f"correlate takes one checkpoint or two, not {len(addresses)}")
    settings = KDConfig(tau=tau)
    check_choice("order", order, ClassOrder)
    teacher, loaded, images = _asked(addresses, data=data, split=split, device=device, on_progress=on_progress)
    groups = superclasses(loaded.classes)
    if not (groups is not None or order != "superclass"):
        raise UserError(f"no superclasses are known of the classes of {loaded.name!r}")
    logits_MNK = teacher.predict(images)
    kinds = {"logits": logits_MNK, "softened": (logits_MNK / settings.tau).softmax(-1)}
    found = {name: class_correlation(vectors_MNK, images.labels_N) for name, vectors_MNK in kinds.items()}
    ordered = list(range(len(loaded.classes)))
    if groups is not None and order in ("auto", "superclass"):
        order, ordered = "superclass", grouped(groups)
    elif order in ("auto", "similarity"):
        order, ordered = "similarity", by_similarity(found["logits"].similarity_MKK[0])
    measured = [measure(logits_NK, images.labels_N) for logits_NK in logits_MNK]
    result: dict[str, Any] = {
        "data": loaded.name,
        "select_on": loaded.record.select_on,
        "split": split,
        "images": len(images),
        "tau": settings.tau,
        "order": order,
        "classes": [loaded.classes[number] for number in ordered],
        "groups": groups and [groups[number] for number in ordered],
        "checkpoints": [
            {"ref": member.text, "epoch": member.checkpoint.epoch, "sha256": member.checkpoint.sha256, **accuracy}
            for member, accuracy in zip(teacher.members, measured, strict=True)
        ],
        "provenance": plain(provenance()),
    }
    for name, one in found.items():
        similarity_MKK = one.similarity_MKK[:, ordered][:, :, ordered].double()
        result[name] = {
            "similarity": similarity_MKK.tolist(),
            "numbers": {number: [asdict(each) for each in intervals] for number, intervals in one.numbers.items()},
        }
        if one.differences:
            result[name]["difference"] = (similarity_MKK[0] - similarity_MKK[1]).tolist()
            result[name]["differences"] = {number: asdict(interval) for number, interval in one.differences.items()}
    page = None if out is None else write_correlation(result, out=Path(out))
    return result | {"page": page and str(page)}


def export(
    address: str,
    /,
    *,
    out: Path | str,
    onnx: bool = False,
    push: str | None = None,
    public: bool = False,
) -> dict[str, Any]:
    """Write a network as a folder that loads anywhere with one line, in the layout of the Hugging Face Hub.

    checkpointkd.load(FOLDER) brings it back in Python. What it was taught by, and how, is inside.

    Example:

        checkpointkd export runs/student --out student --onnx

    Parameters
    ----------
    address
        The checkpoint: a run's folder, for its last epoch, or RUN@160, RUN@0.5, RUN@midpoint, RUN@best.
    out
        The folder to write.
    onnx
        Also write model.onnx, for any number of images, and check its predictions against PyTorch's.
    push
        Put the folder on the Hugging Face Hub under this name, such as me/student.
    public
        For everyone to see there; by default for you alone.

    Raises
    ------
    UserError
        For an address that leads nowhere, a folder that holds something else, and where ONNX or the Hub fail.
    """
    from ..exporting import push as to_hub
    from ..exporting import write_export

    written = write_export(address, out=Path(out), onnx=onnx)
    return {**written, "hub": to_hub(Path(out), push, private=not public) if push is not None else None}


def report(folder: Path | str, /, *, out: Path | str | None = None) -> Path:
    """Write a report on every run in a folder: one HTML file that works from disk, without a network.

    Example:

        checkpointkd report runs/demo --out report.html

    Parameters
    ----------
    folder
        A run's folder, or one with several runs in it.
    out
        The HTML file; report.html in the folder by default.

    Raises
    ------
    UserError
        When there is no run to report on.
    """
    from ..reports import write_report

    return write_report(Path(folder), out=Path(out) if out is not None else Path(folder) / "report.html")


def _asked(
    addresses: Sequence[str],
    *,
    data: str | None,
    split: SplitName,
    ensemble: str | None = None,
    device: Device,
    on_progress: OnProgress | None,
) -> tuple[Teacher, Data, Images]:
    """The checkpoints at these addresses, the data that they are asked about, and the split's images."""
    from ..checkpoints import resolve_ensemble
    from ..data import config_like, load_data, load_test
    from ..teachers.ensemble import Teacher

    if not len(addresses) > 0:
        raise UserError("name at least one checkpoint, such as runs/teacher@last")
    check_choice("split", split, SplitName)
    found = resolve_ensemble(addresses, ensemble)
    settings = config_like(found[0].checkpoint.run.data, data)
    loaded = load_data(settings, on_progress=on_progress)
    teacher = Teacher(found, device=device_of(device))
    if teacher.classes != list(loaded.classes):
        raise UserError(f"{addresses[0]} knows other classes than the data {loaded.name!r}")
    if split == "val":
        say_if_any_has_seen(found, loaded)
    return teacher, loaded, load_test(settings, on_progress=on_progress) if split == "test" else loaded.val
