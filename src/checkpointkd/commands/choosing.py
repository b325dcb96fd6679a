"""The verbs that choose a teacher: `inspect`, `score`, `select`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..config import (
    DataConfig,
    Device,
    EstimatorConfig,
    EstimatorName,
    OnProgress,
    PilotConfig,
    PrecisionChoice,
    SelectOn,
    check_choice,
)
from ..errors import UserError, unknown_name
from ..records import ExternalRecord, PilotResult, PlaneSettings
from .common import AUTO, device_of, recipe_from, say_if_seen

if TYPE_CHECKING:
    import torch

    from ..checkpoints import Trajectory
    from ..data import Data
    from ..information import Plane
    from ..models import Network
    from ..selection import Choice


log = logging.getLogger("checkpointkd")


def inspect(
    path: Path | str,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    select_on: SelectOn | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    pattern: str | None = None,
    state_dict_key: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Say what is in a run's folder, or in a folder of checkpoints that another trainer left.

    Another trainer's checkpoints are known by their content: Hugging Face, Lightning, timm, torchvision's reference
    scripts, CheckpointKD's authors, plain state dicts in safetensors or PyTorch files. Told which network they are of
    and which data it knows, inspect holds every file against the network, measures each checkpoint, and remembers what
    it was told: from then on PATH is used like a run, as in PATH@best.

    Example:

        checkpointkd inspect runs/teacher

        checkpointkd inspect output/train/resnet18 --model timm:resnet18 --data folder:pictures

    Parameters
    ----------
    path
        The folder; or a pattern, such as 'output/run1_*.pth'; or one file.
    model
        For another trainer's checkpoints: the network, as for train.
    data
        For another trainer's checkpoints: the data set that they know, as for train.
    select_on
        On which images they are measured and chosen: holdout, the default, a part of the training images, which they
        may have seen; paper, the test images.
    image_size
        The side of the squares that pictures in folders are brought to, by ImageNet's practice: the shorter side to
        256/224 of it, then the center; pictures that are such squares already stay as they are.
    flip
        Whether their students learn from mirror images too, as for train.
    pattern
        The form of another trainer's file names, where the epoch cannot be read from them: 'ckpt_{epoch}.pt'. It also
        decides which files are checkpoints. {step} instead of {epoch} counts in steps, * matches any text.
    state_dict_key
        Which weights, where a file holds several: state_dict_ema, say, or state_dict.student.
    mean
        The mean of each channel of images in [0, 1] with which they were trained; by default as Hugging Face's
        preprocessor or timm's model says, else as the data have it.
    std
        The standard deviation likewise.
    device
        Where to compute.

    Raises
    ------
    UserError
        When there is no run and no checkpoint, and for files that are damaged, refused or don't fit.
    """
    from ..checkpoints import (
        GIVEN,
        describe,
        is_registered,
        open_trajectory,
        refresh_external,
        register_external,
    )
    from ..data import config_like, load_data
    from ..teachers.ensemble import chance_level

    told = {"data": data, "state-dict-key": state_dict_key, "mean": mean, "std": std}
    told |= {"select_on": select_on, "image-size": image_size, "flip": flip}
    if is_registered(path):
        told["pattern"] = pattern
    said = [f"--{name}" for name, value in told.items() if value is not None]
    there = open_trajectory(path) if model is None and is_registered(path) else None
    if model is None and (there is None or not there.external or not said):
        if said:
            raise UserError(f"{' and '.join(said)} is about another trainer's checkpoints; say --model too")
        unmeasured = there is not None and there.external and not there.measured
        if there is not None and (there.new_files() or unmeasured):
            loaded = load_data(config_like(there.run.data, None), on_progress=on_progress)
            accuracy = _accuracy_on(loaded, device_of(device))
            refresh_external(there, data=loaded, accuracy=accuracy, on_progress=on_progress)
        return describe(path, pattern)
    if there is not None:  # what is not said anew stays
        assert isinstance(there.run, ExternalRecord)
        model, state_dict_key, path = there.run.model, state_dict_key or there.run.state_dict_key, there.source
        pattern = pattern or there.run.pattern
        if mean is None and std is None and there.run.normalized_as == GIVEN:
            mean, std = list(there.run.mean), list(there.run.std)
        settings = config_like(there.run.data, data, select_on, image_size=image_size, flip=flip)
    else:
        if data is None:
            raise UserError("--model goes with --data, which says how many classes the network knows")
        settings = DataConfig(data=data, select_on=select_on or "val", image_size=image_size, flip=flip)
    assert model is not None
    loaded = load_data(settings, on_progress=on_progress)
    accuracy = _accuracy_on(loaded, device_of(device))
    trajectory = register_external(
        path,
        model=model,
        data=loaded,
        pattern=pattern,
        state_dict_key=state_dict_key,
        mean=mean,
        std=std,
        accuracy=accuracy,
        on_progress=on_progress,
    )
    say_if_seen(str(path), trajectory.run, loaded)
    found = describe(trajectory.path)
    chance, clearly = chance_level(loaded.val.labels_N)
    if all(checkpoint["val_accuracy"] < clearly for checkpoint in found["checkpoints"]):
        log.warning(
            "none of the checkpoints knows more than guessing does, which is right on %.1f%%: the order of the classes"
            " or the preprocessing (--mean, --std, --image-size) differs from what they were trained with",
            100 * chance,
        )
    return found


def score(
    run: Path | str,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    estimator: EstimatorName = "decoder",
    feature_layer: str | None = None,
    fit_images: int | None = None,
    measure_images: int | None = None,
    decoder_steps: int = EstimatorConfig.steps,
    decoder_seeds: int = EstimatorConfig.seeds,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> Plane:
    """Put every checkpoint of a run on the information plane: I(Y;F) by accuracy, I(X;F) by reconstruction (§4.2).

    What is scored already, with the same settings, is kept.

    Example:

        checkpointkd score runs/teacher

    Parameters
    ----------
    run
        The run's folder; or a folder of checkpoints from another trainer, see inspect.
    model
        For another trainer's checkpoints: the network, as for train; asked for once.
    data
        A data set; by default the run's own, with its protocol and its images.
    estimator
        How I(X;F) is estimated: by the paper's reconstruction decoder; or by ridge, a linear decoder in closed form, in
        a fraction of the time and in nats.
    feature_layer
        The module, by its path in the model, whose map is decoded; by default the last, which enters global pooling.
    fit_images
        On how many training images the estimator is fitted; by default a tenth, from 1,000 to 10,000, and 1,000 for
        ridge.
    measure_images
        On how many selection images it is measured; by default all, at most 10,000, and 1,000 for ridge.
    decoder_steps
        For how many steps a decoder is fitted.
    decoder_seeds
        From how many starts; their spread is reported, and part of how sure a choice is.
    device
        Where to compute.

    Raises
    ------
    UserError
        When there is no map to decode from.
    """
    from ..checkpoints import is_registered, open_trajectory, refresh_external, register_external
    from ..data import config_like, load_data
    from ..information import score_trajectory
    from ..storage import locked

    settings = EstimatorConfig(
        estimator=estimator,
        fit_images=fit_images,
        measure_images=measure_images,
        steps=decoder_steps,
        seeds=decoder_seeds,
    )
    there = open_trajectory(run) if model is None or is_registered(run) else None
    if there is not None and model not in (None, there.run.model):
        there = None  # said anew
    if there is None:
        if data is None:
            raise UserError("--model is for another trainer's checkpoints, and goes with --data")
        assert model is not None
        assert data is not None
        loaded = load_data(DataConfig(data=data), on_progress=on_progress)
        trajectory = register_external(run, model=model, data=loaded, on_progress=on_progress)
    else:
        trajectory = there
        if trajectory.new_files():  # its folder has grown
            noted = load_data(config_like(trajectory.run.data, None), on_progress=on_progress)
            trajectory = refresh_external(trajectory, data=noted, on_progress=on_progress)
        loaded = load_data(config_like(trajectory.run.data, data), on_progress=on_progress)
    _same_classes(trajectory, loaded)
    say_if_seen(str(run), trajectory.run, loaded)
    with locked(trajectory.path):
        plane = score_trajectory(
            trajectory,
            loaded,
            settings=settings,
            feature_layer=feature_layer,
            device=device_of(device),
            on_progress=on_progress and (lambda what, done, total: on_progress(f"score {what}", done, total)),
        )
    if len(plane.points) > 1 and len({point.image_information for point in plane.points}) == 1:
        log.warning(
            "I(X;F) is the same at every checkpoint: %s learned nothing of the images from %s of them; give it more, "
            "or take the other estimator",
            estimator,
            plane.settings.estimator_config.fit_images,
        )
    return plane


@overload
def select(
    run: Path | str, /, *, rule: str | None = None, estimator: EstimatorName = "decoder", student: None = None
) -> Choice: ...
@overload
def select(run: Path | str, /, *, student: str, out: Path | str, **options: Any) -> PilotResult: ...
def select(  # pyright: ignore[reportInconsistentOverload] - the options are these
    run: Path | str,
    /,
    *,
    rule: str | None = None,
    estimator: EstimatorName = "decoder",
    student: str | None = None,
    out: Path | str | None = None,
    budget: str | float = PilotConfig.budget,
    alpha: list[float] | None = None,
    tau: float | None = None,
    data: str | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    train_images: int | None = None,
    seed: int = 0,
    precision: PrecisionChoice = "auto",
    logit_cache_gb: float = 20.0,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> Choice | PilotResult:
    """Choose the checkpoint that is to teach; RUN@best means it from then on.

    By a rule that looks at the teacher alone: Algorithm 1 or a rival. Or, told which student is to learn, by short
    lessons of that student from several checkpoints, from two together and from none.

    Example:

        checkpointkd select runs/teacher

        checkpointkd select runs/teacher --student wrn_10_1 --out runs/probe

    Parameters
    ----------
    run
        The run's folder.
    rule
        auto: lessons where a student is given, else Algorithm 1. paper (Algorithm 1); half, full, random,
        best-accuracy; lowest-nll, lowest-brier, lowest-calibration-error; mcmi, the most information beyond the class;
        wrong-class-variance.
    estimator
        Which estimate of I(X;F) the rule goes by: decoder or ridge.
    student
        The student's network, as for distill. What follows goes with it.
    out
        Where the lessons are kept; the same command again continues what was stopped.
    budget
        What the lessons may cost in all: a share of one whole distillation (1.0), or a number of epochs (60).
    alpha
        Weights of the labels to try, 0.5 and 0.1 by default: the first with every checkpoint, the others with the best.
    tau
        The temperature, 5 by default.
    data
        A data set; by default the run's, with its protocol and its images.
    recipe
        Named settings of the student's whole training, as for distill.
    epochs
        How many epochs it has, in place of the recipe's.
    batch_size
        Images a step, in place of the recipe's.
    learning_rate
        The greatest learning rate, in place of the recipe's.
    train_images
        Train on this many images only; by default as the run.
    seed
        Fixes first weights, order and augmentation of the lessons.
    precision
        fp32, bf16, or auto, as for train.
    logit_cache_gb
        How many gigabytes the tables of teachers' answers may take up in all, as for distill.
    device
        Where to compute.

    Raises
    ------
    UserError
        When the rule needs scores and the checkpoints have none, and for a budget too small for lessons.
    """
    from .. import storage
    from ..checkpoints import open_trajectory, warn_if_new_files
    from ..selection import RULES
    from ..selection.selected import write_selection

    if rule not in (None, AUTO, *RULES):
        raise unknown_name("rule", rule, (AUTO, *RULES))
    check_choice("estimator", estimator, EstimatorName)
    trajectory = open_trajectory(run)
    warn_if_new_files(trajectory)
    choice: Choice | PilotResult
    made_with = None
    if student is not None:
        if rule not in (None, AUTO):
            raise UserError(f"--rule {rule} looks at no student; leave one of them out")
        if estimator != "decoder":
            raise UserError("--estimator is for rules, which look at no student; leave one of them out")
        if out is None:
            raise UserError("a student's lessons need --out, a folder to keep them in")
        assert out is not None
        settings = PilotConfig(
            budget=budget,
            alphas=PilotConfig.alphas if alpha is None else tuple(alpha),
            tau=PilotConfig.tau if tau is None else tau,
            seed=seed,
        )
        given = {
            "data": data,
            "recipe": recipe,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "train_images": train_images,
        }
        choice = _probe(
            student,
            trajectory,
            settings,
            given,
            out=Path(out),
            precision=precision,
            logit_cache_gb=logit_cache_gb,
            device=device,
            on_progress=on_progress,
        )
    else:
        usual = {"budget": PilotConfig.budget, "seed": 0, "precision": "auto", "logit_cache_gb": 20.0, "device": "auto"}
        given = {
            "out": out,
            "budget": budget,
            "alpha": alpha,
            "tau": tau,
            "data": data,
            "recipe": recipe,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "train_images": train_images,
            "seed": seed,
            "precision": precision,
            "logit_cache_gb": logit_cache_gb,
            "device": device,
        }
        told = [name.replace("_", "-") for name, value in given.items() if value != usual.get(name)]
        if told:
            raise UserError(f"--{told[0]} goes with --student" if told else "")
        choice, made_with = _by_rule(trajectory, "algorithm1" if rule in (None, AUTO) else rule, estimator)
    try:
        with storage.locked(trajectory.path):
            before = _meaning_of_best(trajectory)
            write_selection(trajectory, choice, made_with=made_with)
        if before not in (None, now := _meaning_of_best(trajectory)):
            log.info("%s@best is %s from now on; it was %s", run, now, before)
    except UserError as error:
        if student is None:
            raise
        log.warning("%s, so @best doesn't mean what was found; give the command again", error)
    for warning in choice.warnings:
        log.warning("%s", warning)
    return choice


def _meaning_of_best(trajectory: Trajectory) -> str | None:
    """What @best means now, and whence; None for nothing, also where that is damaged."""
    try:
        found = trajectory.selection()
    except UserError:
        return None
    if found is None:
        return None
    which = " and ".join(f"{trajectory.unit} {epoch}" for epoch in found.epochs) or "no teacher"
    return f"{which}, for {found.student}" if found.student else f"{which}, by the rule {found.rule}"


def _by_rule(trajectory: Trajectory, rule: str, estimator: EstimatorName) -> tuple[Choice, PlaneSettings | None]:
    """What a rule chooses that looks at the teacher alone, and with which settings it was scored."""
    from ..information import load_plane, stale_epochs
    from ..selection import NEED_NO_SCORES, Candidates, choose

    plane = None if rule in NEED_NO_SCORES else load_plane(trajectory, estimator=estimator)
    if plane is not None and (stale := stale_epochs(plane, trajectory)):
        raise UserError(
            f"in {trajectory.source} checkpoints are new, gone or changed since they were scored ({trajectory.unit}s "
            f"{', '.join(map(str, stale))}); run `checkpointkd score {trajectory.source}` again"
        )
    if plane is not None and trajectory.external:
        there, now = plane.settings.data, trajectory.run.data
        if not all(getattr(there, name) == getattr(now, name) for name in ("sha256", "select_on")):
            raise UserError(
                f"{trajectory.source} was scored on other images ({there.name}, --select-on {there.select_on}) than it "
                f"was last inspected on ({now.name}, --select-on {now.select_on}); run `checkpointkd score "
                f"{trajectory.source}` again"
            )
    choice = choose(Candidates(list(trajectory), trajectory.planned_epochs, plane, trajectory.unit), rule=rule)
    return choice, plane.settings if plane is not None else None


def _probe(
    student: str,
    trajectory: Trajectory,
    settings: PilotConfig,
    given: dict[str, Any],
    *,
    out: Path,
    precision: PrecisionChoice,
    logit_cache_gb: float,
    device: Device,
    on_progress: OnProgress | None,
) -> PilotResult:
    """What short lessons of this student say."""
    from ..data import config_like, load_data
    from ..selection.pilot import PilotSearch, run_pilot_search

    loaded = load_data(
        config_like(trajectory.run.data, given["data"], None, given["train_images"]), on_progress=on_progress
    )
    _same_classes(trajectory, loaded)
    say_if_seen(str(trajectory.source), trajectory.run, loaded)
    numbers = [given[name] for name in ("epochs", "batch_size", "learning_rate")]
    return run_pilot_search(
        PilotSearch(
            student=student,
            trajectory=trajectory,
            data=loaded,
            recipe=recipe_from(given["recipe"] or loaded.recipe, *numbers),
            settings=settings,
            out=out,
            precision=precision,
            logit_cache_gb=logit_cache_gb,
            device=device_of(device),
            command_options={**given, "logit_cache_gb": logit_cache_gb, "device": device},
            on_progress=on_progress,
        )
    )


def _accuracy_on(data: Data, device: torch.device) -> Callable[[Network], float]:
    from ..metrics import measure, predict

    images = data.val
    return lambda network: measure(predict(network.to(device).eval(), images), images.labels_N)["accuracy"]


def _same_classes(trajectory: Trajectory, data: Data) -> None:
    if trajectory.run.classes != data.classes:
        raise UserError(
            f"the run in {trajectory.path} knows {len(trajectory.run.classes)} classes, the data {data.name!r} has "
            f"{len(data.classes)}, or in another order"
        )
