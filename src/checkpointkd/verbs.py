"""The verbs: train, inspect, score, select, distill, evaluate, report. The command line is made from their signatures.

Each takes names and paths, leaves its result in a run's folder, and returns it. What is worth saying goes to the logger
`checkpointkd`; how far a verb is, to the callable `progress(task, done, total)`. Torch is imported inside the functions
only, because the command line imports this module to answer `--help`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, require, unknown
from .recipes import recipe as recipe_of
from .settings import (
    Average,
    BatchNorm,
    ClassOrder,
    DataSettings,
    Device,
    Estimator,
    EstimatorSettings,
    KDSettings,
    PrecisionChoice,
    Progress,
    Protocol,
    Recipe,
    Route,
    Sampler,
    SplitName,
    TeachingSettings,
    one_of,
)

if TYPE_CHECKING:
    import torch

    from .data import Data, Images
    from .information import Plane
    from .models import Network
    from .selection import Choice
    from .teacher import Teacher
    from .trajectory import Address, Trajectory

log = logging.getLogger("checkpointkd")


def train(
    model: str,
    /,
    *,
    data: str,
    out: Path | str,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    save_every: int | None = None,
    seed: int = 0,
    protocol: Protocol = "holdout",
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    label_smoothing: float = 0.0,
    precision: PrecisionChoice = "auto",
    compile: bool = False,
    best_of_last_ten: bool = False,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Trajectory:
    """Train a network and keep its trajectory of checkpoints; the same command again continues a run that was stopped.

    Example:

        checkpointkd train wrn_16_2 --data digits --epochs 40 --save-every 4 --out runs/teacher

    Parameters
    ----------
    model
        A network: wrn_16_2 (any WRN), resnet_32 (any 6n + 2), mobilenetv2_0.75, timm:NAME, or your own,
        package.module:callable.
    data
        A data set: digits, cifar10, cifar100, tiny-imagenet, imagenet; folder:PATH, with PATH/train/CLASS and
        PATH/val/CLASS; hf:NAME of the Hugging Face Hub. NAME:PATH says where it lies.
    out
        The run's folder; it is made if need be and never overwritten.
    recipe
        Named settings of the training: digits, cifar100, cifar100-step, cifar100-small, cifar100-small-student,
        tiny-imagenet or imagenet; by default what suits the data. The first line that is printed says what it means.
    epochs
        How many epochs, in place of the recipe's.
    batch_size
        Images a step, in place of the recipe's.
    learning_rate
        The greatest learning rate, in place of the recipe's.
    save_every
        A checkpoint every so many epochs, and the last; a twentieth of the run by default.
    seed
        Fixes first weights, order and augmentation.
    protocol
        holdout keeps images of the training set back to choose with; paper chooses on the test set, as the paper did.
    train_images
        Train on this many images only, class by class in proportion.
    image_size
        The side, in pixels, of the squares that pictures in folders are resized and cropped to; 224 by default.
    flip
        Whether mirror images are learned from too; by default yes, but not for digits.
    label_smoothing
        The weight of the uniform prediction against the labels, in [0, 1): label smoothing, which is distilling from a
        teacher that knows nothing (§4.3).
    precision
        fp32, or bf16 for 16 bits where they suffice; auto measures a few steps of each and takes bf16 where it pays.
    compile
        Compile the network first: it takes a minute or so, and whether it pays depends on the network and the machine.
    best_of_last_ten
        Measure the test images after each of the last ten epochs and report the best beside the last, as the authors'
        code does, which flatters; with --protocol paper only.
    device
        Where to compute.

    Raises
    ------
    UserError
        When the folder holds another run or anything else, and when the loss stops being a number.
    """
    from .data import load_data
    from .losses import Supervised
    from .runs import carry_out

    objective = Supervised(smoothing=label_smoothing)
    settings = DataSettings(data=data, protocol=protocol, train_images=train_images, image_size=image_size, flip=flip)
    loaded = load_data(settings, progress=progress)
    return carry_out(
        model,
        kind="train",
        out=Path(out),
        data=loaded,
        recipe=_recipe(recipe or loaded.recipe, epochs, batch_size, learning_rate),
        save_every=save_every,
        seed=seed,
        precision=precision,
        compile=compile,
        device=_device(device),
        progress=progress,
        objective=objective,
        best_of_last_ten=best_of_last_ten,
        more={"label_smoothing": label_smoothing},
    )


def distill(
    student: str,
    /,
    *,
    teachers: list[str],
    out: Path | str,
    data: str | None = None,
    ensemble: str | None = None,
    method: str = "kd",
    alpha: float | None = None,
    tau: float | None = None,
    tau_squared: bool = KDSettings.tau_squared,
    weight: float | None = None,
    average: Average = KDSettings.average,
    weights: list[float] | None = None,
    route: Route = "together",
    teacher_batch_norm: BatchNorm = "eval",
    teacher_features: list[str] | None = None,
    student_features: list[str] | None = None,
    adapt: bool = False,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    save_every: int | None = None,
    seed: int = 0,
    protocol: Protocol | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    precision: PrecisionChoice = "auto",
    compile: bool = False,
    weak_teacher: bool = False,
    table_limit: float = 20.0,
    best_of_last_ten: bool = False,
    device: Device = "auto",
    progress: Progress | None = None,
) -> Trajectory:
    """Distil a student from one checkpoint, or from an ensemble of several; the same command again continues.

    Each teacher's accuracy is measured and said first.

    Example:

        checkpointkd distill wrn_10_1 --teachers runs/teacher@half runs/teacher@full --out runs/student

    Parameters
    ----------
    student
        The student's network, as for train.
    teachers
        One or more addresses: RUN@160 (an epoch), RUN@0.5 (a share of the training), RUN@half, RUN@full, RUN@best; RUN
        alone is its last epoch.
    out
        The student's run folder.
    data
        A data set; by default the first teacher's, with its protocol and its images.
    ensemble
        Which checkpoints of the runs in --teachers teach together: snapshot:K, one run's end and K − 1 equally spaced
        before it; full:K, the ends of K runs; mixed, half-way of the first and the end of the second; all of one run.
    method
        How the teachers' knowledge is passed on. By their predictions: kd, lskd (standardised logits), dkd, dist. By
        what they compute inside: fitnets, at, sp, cc, vid, rkd, fsp, pkt, crd.
    alpha
        The weight of the labels, in [0, 1]. With kd the teachers' predictions have the rest (Eq. 1), 0.5 by default.
        Other methods add a term of their own: with those that look inside, predictions have the rest, nothing by
        default (1); with the others nothing has it (0.1 for lskd, 1 for dkd and dist).
    tau
        The temperature at which predictions are softened; by default the method's own, 5 for kd.
    tau_squared
        Multiply the teachers' term by the temperature squared, as the field does and the paper's formula does not.
    weight
        What multiplies the method's term; by default as its paper or the field's benchmark has it.
    average
        Several teachers: the mean of their probabilities (Eq. 2), or of their logits, as the authors' code has it.
    weights
        How much each of several teachers counts, in their order; the weights sum to 1. By default all count alike.
    route
        When several teachers teach: together; or one after the other in their order, each for an equal part of the
        training (rco), also with a temperature that falls to 1 (progressive). Goes with --ensemble snapshot:K or all.
    teacher_batch_norm
        Whether teachers normalise with what they learned (eval), or with each batch's own statistics (batch), as the
        authors' code does for most of training.
    teacher_features
        For methods that look inside: modules of the teacher, by their paths in the model.
    student_features
        The student's modules that meet them, in the same order.
    adapt
        Put a trained convolution behind the student's features where fsp needs as many channels as the teacher's.
    recipe
        Named settings of the training: digits, cifar100, cifar100-step, cifar100-small, cifar100-small-student,
        tiny-imagenet or imagenet; by default what suits the data. The first line that is printed says what it means.
    epochs
        How many epochs, in place of the recipe's.
    batch_size
        Images a step, in place of the recipe's.
    learning_rate
        The greatest learning rate, in place of the recipe's.
    save_every
        A checkpoint every so many epochs, and the last; a twentieth of the run by default.
    seed
        Fixes first weights, order and augmentation.
    protocol
        holdout or paper, see train; by default the first teacher's.
    train_images
        Train on this many images only; by default as the first teacher.
    image_size
        The side, in pixels, of the squares that pictures in folders are resized and cropped to; by default the first
        teacher's.
    flip
        Whether mirror images are learned from too; by default as the first teacher.
    precision
        fp32, or bf16 for 16 bits where they suffice; auto measures a few steps of each and takes bf16 where it pays.
    compile
        Compile the network first: it takes a minute or so, and whether it pays depends on the network and the machine.
    weak_teacher
        Take a teacher even if it knows no more than guessing does.
    table_limit
        How many gigabytes the tables of teachers' answers may take up in all; those not used for longest make room.
        With 0 the teachers are asked at every step, which gives the same student more slowly.
    best_of_last_ten
        Measure the test images after each of the last ten epochs and report the best beside the last, as the authors'
        code does, which flatters; with --protocol paper only.
    device
        Where to compute.

    Raises
    ------
    UserError
        For a teacher that knows no more than guessing does, for teachers of other classes, and as `train`
        does.
    """
    from .data import load_data, settings_like
    from .distillation import distil, prepare
    from .losses import METHODS, defaults, takes_features
    from .trajectory import ensemble_of

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    own_alpha, own_tau = defaults(method)
    require(
        tau is None or not takes_features(method) or (alpha is not None and alpha < 1),
        f"--tau means nothing to {method} while alpha is 1: predictions have no weight",
    )
    settings = KDSettings(
        alpha=own_alpha if alpha is None else alpha,
        tau=own_tau if tau is None else tau,
        tau_squared=tau_squared,
        average=average,
    )
    require(len(teachers) > 0, "distilling needs --teachers; to train without one, use `checkpointkd train`")
    addresses = ensemble_of(teachers, ensemble)
    teaching = TeachingSettings(
        weight=weight,
        weights=_weights(weights, len(addresses)),
        route=route,
        batch_norm=teacher_batch_norm,
        teacher_features=None if teacher_features is None else tuple(teacher_features),
        student_features=None if student_features is None else tuple(student_features),
        adapt=adapt,
    )
    taught_on = addresses[0].checkpoint.run["data"]
    loaded = load_data(settings_like(taught_on, data, protocol, train_images, image_size, flip), progress=progress)
    _say_if_any_has_seen(addresses, loaded)
    lesson = prepare(
        addresses, loaded, teaching=teaching, average=average, weak_teacher=weak_teacher, device=_device(device)
    )
    return distil(
        student,
        lesson,
        out=Path(out),
        method=method,
        settings=settings,
        recipe=_recipe(recipe or loaded.recipe, epochs, batch_size, learning_rate),
        save_every=save_every,
        seed=seed,
        precision=precision,
        compile=compile,
        table_limit=table_limit,
        best_of_last_ten=best_of_last_ten,
        progress=progress,
    )


def search(
    student: str,
    /,
    *,
    teachers: list[str],
    out: Path | str,
    data: str | None = None,
    ensemble: str | None = None,
    method: str = "kd",
    tau_squared: bool = KDSettings.tau_squared,
    average: Average = KDSettings.average,
    weights: list[float] | None = None,
    route: Route = "together",
    teacher_batch_norm: BatchNorm = "eval",
    teacher_features: list[str] | None = None,
    student_features: list[str] | None = None,
    adapt: bool = False,
    alpha: list[float] | None = None,
    tau: list[float] | None = None,
    weight: list[float] | None = None,
    learning_rate: list[float] | None = None,
    sampler: Sampler = "grid",
    trials: int | None = None,
    prune: bool = True,
    seeds: int = 1,
    storage: str | None = None,
    study: str = "checkpointkd",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    protocol: Protocol | None = None,
    train_images: int | None = None,
    precision: PrecisionChoice = "auto",
    weak_teacher: bool = False,
    table_limit: float = 20.0,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search the α and τ with which teachers teach a student best, on the selection images; the same command continues.

    With the teachers' table every trial costs a student alone. Bad trials are stopped early.

    Example:

        checkpointkd search wrn_10_1 --teachers runs/teacher@half --out runs/search

    Parameters
    ----------
    student
        The student's network, as for train.
    teachers
        One or more addresses, as for distill.
    out
        The search's folder: a run for each trial, search.json with what was found, and Optuna's study.
    data
        A data set; by default the first teacher's, with its protocol and its images.
    ensemble
        Which checkpoints of the runs in --teachers teach together, as for distill.
    method
        How the teachers' knowledge is passed on, as for distill.
    tau_squared
        Multiply the teachers' term by the temperature squared, as for distill.
    average
        Several teachers: the mean of their probabilities (Eq. 2), or of their logits.
    weights
        How much each of several teachers counts, as for distill.
    route
        When several teachers teach, as for distill.
    teacher_batch_norm
        How teachers normalise, as for distill.
    teacher_features
        For methods that look inside: modules of the teacher, as for distill.
    student_features
        The student's modules that meet them.
    adapt
        A trained convolution where fsp needs one, as for distill.
    alpha
        Weights of the labels to try: 0.1 0.3 0.5 0.7 0.9 for kd; for other methods their own.
    tau
        Temperatures to try: 1 2 4 8 16; for methods that look inside their own.
    weight
        Weights of the method's term to try: a tenth to ten times its own; for kd it is what alpha leaves.
    learning_rate
        Learning rates to try; by default the recipe's.
    sampler
        grid tries all combinations; tpe chooses between the least and the greatest of each, by what was found so far.
    trials
        How many trials; by default the whole grid, or 25.
    prune
        Stop trials early that are behind others (hyperband).
    seeds
        Students a trial, whose mean counts.
    storage
        Where Optuna keeps the study, for many machines at once: any URL that it takes; by default a file in --out.
    study
        The study's name there.
    recipe
        Named settings of the training, as for distill.
    epochs
        How many epochs, in place of the recipe's.
    batch_size
        Images a step, in place of the recipe's.
    seed
        Fixes first weights, order and augmentation of the first student of each trial; the next has the next.
    protocol
        holdout or paper, see train; by default the first teacher's.
    train_images
        Train on this many images only; by default as the first teacher.
    precision
        fp32, bf16, or auto, as for train.
    weak_teacher
        Take a teacher even if it knows no more than guessing does.
    table_limit
        How many gigabytes the tables of teachers' answers may take up in all, as for distill.
    device
        Where to compute.

    Raises
    ------
    UserError
        As distill does; when the study is another search's, and when its storage can't be used.
    """
    from . import tuning
    from .data import load_data, settings_like
    from .distillation import prepare
    from .losses import METHODS, takes_features
    from .trajectory import ensemble_of

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    one_of("average", average, Average)
    given = {"alpha": alpha, "tau": tau, "weight": weight, "learning_rate": learning_rate}
    space = tuning.usual_space(method) | {name: tuple(v) for name, v in given.items() if v is not None}
    require(
        tau is None or not takes_features(method) or min(space.get("alpha", (1.0,))) < 1,
        f"--tau means nothing to {method} while alpha is 1: predictions have no weight",
    )
    settings = tuning.SearchSettings(space=space, sampler=sampler, trials=trials, prune=prune, seeds=seeds)
    require(len(teachers) > 0, "a search needs --teachers")
    addresses = ensemble_of(teachers, ensemble)
    taught_on = addresses[0].checkpoint.run["data"]
    loaded = load_data(settings_like(taught_on, data, protocol, train_images), progress=progress)
    _say_if_any_has_seen(addresses, loaded)
    lesson = prepare(
        addresses,
        loaded,
        teaching=TeachingSettings(
            weights=_weights(weights, len(addresses)),
            route=route,
            batch_norm=teacher_batch_norm,
            teacher_features=None if teacher_features is None else tuple(teacher_features),
            student_features=None if student_features is None else tuple(student_features),
            adapt=adapt,
        ),
        average=average,
        weak_teacher=weak_teacher,
        device=_device(device),
    )
    task = tuning.Task(
        student=student,
        lesson=lesson,
        method=method,
        average=average,
        tau_squared=tau_squared,
        recipe=_recipe(recipe or loaded.recipe, epochs, batch_size, None),
        seed=seed,
        precision=precision,
        table_limit=table_limit,
    )
    found = tuning.search(task, settings=settings, out=Path(out), storage=storage, study_name=study, progress=progress)
    given = {
        "tau_squared": tau_squared,
        "weights": weights,
        "route": route,
        "teacher_batch_norm": None if teacher_batch_norm == "eval" else teacher_batch_norm,
        "teacher_features": teacher_features,
        "student_features": student_features,
        "adapt": adapt,
        "data": data,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "protocol": protocol,
        "train_images": train_images,
        "precision": found["precision"],
        "seed": seed,
        "weak_teacher": weak_teacher,
    }
    return found | {"command": tuning.command(found, given=given)}


def score(
    run: Path | str,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    estimator: Estimator = "decoder",
    features: str | None = None,
    fit_images: int | None = None,
    measure_images: int | None = None,
    decoder_steps: int = EstimatorSettings.steps,
    decoder_seeds: int = EstimatorSettings.seeds,
    device: Device = "auto",
    progress: Progress | None = None,
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
    features
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
    from .data import load_data, settings_like
    from .files import locked
    from .information import score_trajectory
    from .trajectory import adopt, adopt_again, known, open_trajectory

    settings = EstimatorSettings(
        estimator=estimator,
        fit_images=fit_images,
        measure_images=measure_images,
        steps=decoder_steps,
        seeds=decoder_seeds,
    )
    there = open_trajectory(run) if model is None or known(run) else None
    if there is not None and model not in (None, there.run["model"]):
        there = None  # said anew
    if there is None:
        require(data is not None, "--model is for another trainer's checkpoints, and goes with --data")
        assert model is not None
        assert data is not None
        loaded = load_data(DataSettings(data=data), progress=progress)
        trajectory = adopt(run, model=model, data=loaded, progress=progress)
    else:
        trajectory = there
        if trajectory.news():  # its folder has grown
            noted = load_data(settings_like(trajectory.run["data"], None), progress=progress)
            trajectory = adopt_again(trajectory, data=noted, progress=progress)
        loaded = load_data(settings_like(trajectory.run["data"], data), progress=progress)
    _same_classes(trajectory, loaded)
    _say_if_seen(str(run), trajectory.run, loaded)
    with locked(trajectory.path):
        plane = score_trajectory(
            trajectory,
            loaded,
            settings=settings,
            features=features,
            device=_device(device),
            on_progress=progress and (lambda what, done, total: progress(f"score {what}", done, total)),
        )
    if len(plane.points) > 1 and len({point.image_information for point in plane.points}) == 1:
        log.warning(
            "I(X;F) is the same at every checkpoint: %s learned nothing of the images from %s of them; give it more, "
            "or take the other estimator", estimator, plane.settings["settings"].get("fit_images") or "so few",
        )  # fmt: skip
    return plane


def select(run: Path | str, /, *, rule: str = "paper", estimator: Estimator = "decoder") -> Choice:
    """Choose the checkpoint that is to teach, by Algorithm 1 or a rival; RUN@best means it from then on.

    Example:

        checkpointkd select runs/teacher

    Parameters
    ----------
    run
        The run's folder.
    rule
        paper (Algorithm 1); half, full, random, best-accuracy; lowest-nll, lowest-brier, lowest-calibration-error;
        mcmi, the most information beyond the class; wrong-class-variance.
    estimator
        Which estimate of I(X;F) the rule goes by: decoder or ridge.

    Raises
    ------
    UserError
        When the rule needs scores and the checkpoints have none.
    """
    from . import files
    from .information import load_plane, stale_epochs
    from .selection import NEED_NO_SCORES, RULES, Candidates, choose
    from .trajectory import open_trajectory, say_if_grown

    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    one_of("estimator", estimator, Estimator)
    trajectory = open_trajectory(run)
    say_if_grown(trajectory)
    plane = None if rule in NEED_NO_SCORES else load_plane(trajectory, estimator=estimator)
    if plane is not None and (stale := stale_epochs(plane, trajectory)):
        raise UserError(
            f"in {trajectory.source} checkpoints are new, gone or changed since they were scored ({trajectory.unit}s "
            f"{', '.join(map(str, stale))}); run `checkpointkd score {trajectory.source}` again"
        )
    if plane is not None and trajectory.foreign:
        there, now = plane.settings["data"], trajectory.run["data"]
        require(
            all(there[name] == now[name] for name in ("sha256", "protocol")),
            f"{trajectory.source} was scored on other images ({there['data']}, protocol {there['protocol']}) than it "
            f"was last inspected on ({now['data']}, protocol {now['protocol']}); run `checkpointkd score "
            f"{trajectory.source}` again",
        )
    choice = choose(Candidates(list(trajectory), trajectory.planned_epochs, plane, trajectory.unit), rule=rule)
    with files.locked(trajectory.path):
        made_with = plane.settings if plane is not None else None
        files.write_json(trajectory.path / "selection.json", {**asdict(choice), "made_with": made_with})
    for warning in choice.warnings:
        log.warning("%s", warning)
    return choice


def evaluate(
    *addresses: str,
    data: str | None = None,
    split: SplitName = "selection",
    ensemble: str | None = None,
    average: Average = "probabilities",
    weights: list[float] | None = None,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure checkpoints, and the ensemble of them if there are several, on clean images.

    Under the holdout protocol the test images are for the last measurement; everything before it is for the selection
    images, which are the default.

    Example:

        checkpointkd evaluate runs/teacher@half runs/teacher@full

    Parameters
    ----------
    addresses
        One or more checkpoints: RUN@160, RUN@0.5, RUN@half, RUN@full, RUN@best.
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
    from .teacher import training_cost

    one_of("average", average, Average)
    teacher, loaded, images = _asked(
        addresses, data=data, split=split, ensemble=ensemble, device=device, progress=progress
    )
    shares = _weights(weights, len(teacher))
    return {
        "average": average,
        "weights": shares,
        "data": loaded.name,
        "protocol": loaded.identity["protocol"],
        "split": split,
        **teacher.measure(images, average=average, weights=shares),
        "training_cost": training_cost(teacher.members),
    }


def inspect(
    path: Path | str,
    /,
    *,
    model: str | None = None,
    data: str | None = None,
    protocol: Protocol | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    weights: str | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    device: Device = "auto",
    progress: Progress | None = None,
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
    protocol
        On which images they are measured and chosen: holdout, the default, a part of the training images, which they
        may have seen; paper, the test images.
    image_size
        The side of the squares that pictures in folders are brought to, by ImageNet's practice: the shorter side to
        256/224 of it, then the centre; pictures that are such squares already stay as they are.
    flip
        Whether their students learn from mirror images too, as for train.
    weights
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
    from .data import load_data, settings_like
    from .teacher import above_chance
    from .trajectory import GIVEN, adopt, adopt_again, describe, known, open_trajectory

    told = {"data": data, "weights": weights, "mean": mean, "std": std}
    told |= {"protocol": protocol, "image-size": image_size, "flip": flip}
    said = [f"--{name}" for name, value in told.items() if value is not None]
    there = open_trajectory(path) if model is None and known(path) else None
    if model is None and (there is None or not there.foreign or not said):
        require(not said, f"{' and '.join(said)} is about another trainer's checkpoints; say --model too")
        unmeasured = there is not None and there.foreign and not there.measured
        if there is not None and (there.news() or unmeasured):
            loaded = load_data(settings_like(there.run["data"], None), progress=progress)
            accuracy = _accuracy_on(loaded, _device(device))
            adopt_again(there, data=loaded, accuracy=accuracy, progress=progress)
        return describe(path)
    if there is not None:  # what is not said anew stays
        model, weights, path = there.run["model"], weights or there.run["weights"], there.source
        if mean is None and std is None and there.run["normalised_as"] == GIVEN:
            mean, std = there.run["mean"], there.run["std"]
        settings = settings_like(there.run["data"], data, protocol, image_size=image_size, flip=flip)
    else:
        if data is None:
            raise UserError("--model goes with --data, which says how many classes the network knows")
        settings = DataSettings(data=data, protocol=protocol or "holdout", image_size=image_size, flip=flip)
    assert model is not None
    loaded = load_data(settings, progress=progress)
    accuracy = _accuracy_on(loaded, _device(device))
    trajectory = adopt(
        path, model=model, data=loaded, where=weights, mean=mean, std=std, accuracy=accuracy, progress=progress
    )
    _say_if_seen(str(path), trajectory.run, loaded)
    found = describe(trajectory.path)
    chance, clearly = above_chance(loaded.selection.labels_N)
    if all(checkpoint["selection_accuracy"] < clearly for checkpoint in found["checkpoints"]):
        log.warning(
            "none of the checkpoints knows more than guessing does, which is right on %.1f %%: the order of the classes"
            " or the preprocessing (--mean, --std, --image-size) differs from what they were trained with",
            100 * chance,
        )
    return found


def correlate(
    *addresses: str,
    data: str | None = None,
    split: SplitName = "selection",
    tau: float = KDSettings.tau,
    order: ClassOrder = "auto",
    out: Path | str | None = None,
    device: Device = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Say how alike a checkpoint finds the classes (Eq. 8), and how that differs from another's.

    The similarity of two classes is the cosine of their mean logits, and of their mean softened predictions. Its mean
    over pairs, and its diversity, how widely pairs differ, come with 95 % intervals by bootstrap over the images.

    Example:

        checkpointkd correlate runs/teacher@half runs/teacher@full --out correlation.html

    Parameters
    ----------
    addresses
        One checkpoint or two: RUN@160, RUN@0.5, RUN@half, RUN@full, RUN@best.
    data
        A data set; by default the first run's own, with its protocol.
    split
        The images that are looked at: selection, or test.
    tau
        The temperature at which predictions are softened.
    order
        How the classes are ordered: by superclass (CIFAR-100's), so that similar ones are neighbours (similarity), as
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
    from .correlation import by_similarity, class_correlation, grouped
    from .data import superclasses
    from .loop import measure
    from .reports import write_correlation
    from .trajectory import provenance

    require(len(addresses) <= 2, f"correlate takes one checkpoint or two, not {len(addresses)}")
    settings = KDSettings(tau=tau)
    one_of("order", order, ClassOrder)
    teacher, loaded, images = _asked(addresses, data=data, split=split, device=device, progress=progress)
    groups = superclasses(loaded.classes)
    require(groups is not None or order != "superclass", f"no superclasses are known of the classes of {loaded.name!r}")
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
        "protocol": loaded.identity["protocol"],
        "split": split,
        "images": len(images),
        "tau": settings.tau,
        "order": order,
        "classes": [loaded.classes[number] for number in ordered],
        "groups": groups and [groups[number] for number in ordered],
        "checkpoints": [
            {"address": member.text, "epoch": member.checkpoint.epoch, "sha256": member.checkpoint.sha256, **accuracy}
            for member, accuracy in zip(teacher.members, measured, strict=True)
        ],
        "provenance": provenance(),
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
        The checkpoint: a run's folder, for its last epoch, or RUN@160, RUN@0.5, RUN@half, RUN@best.
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
    from .portable import push as to_hub
    from .portable import write_export

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
    from .reports import write_report

    return write_report(Path(folder), out=Path(out) if out is not None else Path(folder) / "report.html")


def _accuracy_on(data: Data, device: torch.device) -> Callable[[Network], float]:
    from .loop import measure, predict

    images = data.selection
    return lambda network: measure(predict(network.to(device).eval(), images), images.labels_N)["accuracy"]


def _recipe(name: str, epochs: int | None, batch_size: int | None, learning_rate: float | None) -> Recipe:
    chosen = recipe_of(name, epochs=epochs)
    changes = {"batch_size": batch_size, "learning_rate": learning_rate}
    return replace(chosen, **{key: value for key, value in changes.items() if value is not None})


def _weights(given: list[float] | None, teachers: int) -> tuple[float, ...] | None:
    """How much each of so many teachers counts."""
    if given is None:
        return None
    require(len(given) == teachers, f"--weights gives {len(given)} weights to {teachers} checkpoints")
    return TeachingSettings(weights=tuple(given)).weights


def _say_if_seen(who: str, run: dict[str, Any], data: Data) -> None:
    """Warn when a network may have learned from the images that are kept back here to choose with."""
    ours, theirs = data.identity, run["data"]
    if run["kind"] == "foreign":
        if ours["protocol"] == "holdout":
            log.warning(
                "%s was trained elsewhere, so it may have seen the selection images, which are part of the training "
                "set, and its accuracy on them may flatter it; `inspect --protocol paper` has the test images instead",
                who,
            )
        return
    if ours["protocol"] == "paper" and theirs["sha256"] == ours["sha256"]:
        return  # the test images, from which nothing of ours learns
    split = ("sha256", "protocol", "selection_fraction", "split_seed")
    if [theirs.get(key) for key in split] != [ours[key] for key in split]:
        log.warning(
            "%s was trained on another split (other data, other settings, or files that changed since), so it may "
            "have seen the selection images, and its accuracy on them may flatter it",
            who,
        )


def _say_if_any_has_seen(addresses: Sequence[Address], data: Data) -> None:
    for run in {id(address.checkpoint.run): address for address in addresses}.values():  # once for each run
        _say_if_seen(run.text.rpartition("@")[0] or run.text, run.checkpoint.run, data)


def _asked(
    addresses: Sequence[str],
    *,
    data: str | None,
    split: SplitName,
    ensemble: str | None = None,
    device: Device,
    progress: Progress | None,
) -> tuple[Teacher, Data, Images]:
    """The checkpoints at these addresses, the data that they are asked about, and the split's images."""
    from .data import load_data, load_test, settings_like
    from .teacher import Teacher
    from .trajectory import ensemble_of

    require(len(addresses) > 0, "name at least one checkpoint, such as runs/teacher@full")
    one_of("split", split, SplitName)
    found = ensemble_of(addresses, ensemble)
    settings = settings_like(found[0].checkpoint.run["data"], data)
    loaded = load_data(settings, progress=progress)
    teacher = Teacher(found, device=_device(device))
    require(
        teacher.classes == list(loaded.classes), f"{addresses[0]} knows other classes than the data {loaded.name!r}"
    )
    if split == "selection":
        _say_if_any_has_seen(found, loaded)
    return teacher, loaded, load_test(settings, progress=progress) if split == "test" else loaded.selection


def _same_classes(trajectory: Trajectory, data: Data) -> None:
    require(
        trajectory.run["classes"] == list(data.classes),
        f"the run in {trajectory.path} knows {len(trajectory.run['classes'])} classes, the data {data.name!r} has "
        f"{len(data.classes)}, or in another order",
    )


def _device(device: Device) -> torch.device:
    from .loop import pick_device

    one_of("device", device, Device)
    return pick_device(device)
