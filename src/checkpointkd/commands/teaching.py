"""The verbs that train: `train`, `distill`, `search`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import (
    BatchNormMode,
    CheckpointDtype,
    DataConfig,
    Device,
    DistillConfig,
    EnsembleAverage,
    KDConfig,
    OnProgress,
    PrecisionChoice,
    SamplerName,
    SelectOn,
    TeacherSchedule,
    check_choice,
)
from ..errors import UserError, unknown_name
from ..records import plain
from .common import device_of, recipe_from, say_if_any_has_seen, say_if_found_otherwise, shares_of

if TYPE_CHECKING:
    from ..checkpoints import Trajectory


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
    select_on: SelectOn = "val",
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    label_smoothing: float = 0.0,
    precision: PrecisionChoice = "auto",
    compile: bool = False,
    best_of_last_ten: bool = False,
    checkpoint_dtype: CheckpointDtype = "float32",
    device: Device = "auto",
    on_progress: OnProgress | None = None,
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
    select_on
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
        code does, which flatters; with --select-on test only.
    checkpoint_dtype
        Round checkpoints to 16 bits when they are saved: half the disk, and all that comes after sees the same weights.
    device
        Where to compute.

    Raises
    ------
    UserError
        When the folder holds another run or anything else, and when the loss stops being a number.
    """
    from ..data import load_data
    from ..training.run import RunSpec, from_labels, run_training

    method = from_labels(label_smoothing)
    settings = DataConfig(data=data, select_on=select_on, train_images=train_images, image_size=image_size, flip=flip)
    loaded = load_data(settings, on_progress=on_progress)
    spec = RunSpec(
        model=model,
        out=Path(out),
        recipe=recipe_from(recipe or loaded.recipe, epochs, batch_size, learning_rate),
        device=device_of(device),
        save_every=save_every,
        seed=seed,
        precision=precision,
        compile=compile,
        best_of_last_ten=best_of_last_ten,
        checkpoint_dtype=checkpoint_dtype,
    )
    return run_training(spec, loaded, method, on_progress=on_progress)


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
    tau_squared: bool = KDConfig.tau_squared,
    method_weight: float | None = None,
    average: EnsembleAverage = KDConfig.average,
    teacher_weights: list[float] | None = None,
    teacher_schedule: TeacherSchedule = "joint",
    teacher_batch_norm: BatchNormMode = "eval",
    teacher_features: list[str] | None = None,
    student_features: list[str] | None = None,
    channel_adapter: bool = False,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    save_every: int | None = None,
    seed: int = 0,
    select_on: SelectOn | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    precision: PrecisionChoice = "auto",
    compile: bool = False,
    allow_weak_teacher: bool = False,
    logit_cache_gb: float = 20.0,
    best_of_last_ten: bool = False,
    checkpoint_dtype: CheckpointDtype = "float32",
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """Distill a student from one checkpoint, or from an ensemble of several; the same command again continues.

    Each teacher's accuracy is measured and said first.

    Example:

        checkpointkd distill wrn_10_1 --teachers runs/teacher@midpoint runs/teacher@last --out runs/student

    Parameters
    ----------
    student
        The student's network, as for train.
    teachers
        One or more addresses: RUN@160 (an epoch), RUN@0.5 (a share of the training), RUN@midpoint, RUN@last, RUN@best; RUN
        alone is its last epoch.
    out
        The student's run folder.
    data
        A data set; by default the first teacher's, with its protocol and its images.
    ensemble
        Which checkpoints of the runs in --teachers teach together: snapshot:K, one run's end and K − 1 equally spaced
        before it; full:K, the ends of K runs; mixed, half-way of the first and the end of the second; all of one run.
    method
        How the teachers' knowledge is passed on. By their predictions: kd, lskd (standardized logits), dkd, dist. By
        what they compute inside: fitnets, at, sp, cc, vid, rkd, fsp, pkt, crd.
    alpha
        The weight of the labels, in [0, 1]. With kd the teachers' predictions have the rest (Eq. 1), 0.5 by default.
        Other methods add a term of their own: with those that look inside, predictions have the rest, nothing by
        default (1); with the others nothing has it (0.1 for lskd, 1 for dkd and dist).
    tau
        The temperature at which predictions are softened; by default the method's own, 5 for kd.
    tau_squared
        Multiply the teachers' term by the temperature squared, as the field does and the paper's formula does not.
    method_weight
        What multiplies the method's term; by default as its paper or the field's benchmark has it.
    average
        Several teachers: the mean of their probabilities (Eq. 2), or of their logits, as the authors' code has it.
    teacher_weights
        How much each of several teachers counts, in their order; the weights sum to 1. By default all count alike.
    teacher_schedule
        When several teachers teach: together; or one after the other in their order, each for an equal part of the
        training (rco), also with a temperature that falls to 1 (progressive). Goes with --ensemble snapshot:K or all.
    teacher_batch_norm
        Whether teachers normalize with what they learned (eval), or with each batch's own statistics (batch), as the
        authors' code does for most of training.
    teacher_features
        For methods that look inside: modules of the teacher, by their paths in the model.
    student_features
        The student's modules that meet them, in the same order.
    channel_adapter
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
    select_on
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
    allow_weak_teacher
        Take a teacher even if it knows no more than guessing does.
    logit_cache_gb
        How many gigabytes the tables of teachers' answers may take up in all; those not used for longest make room.
        With 0 the teachers are asked at every step, which gives the same student more slowly.
    best_of_last_ten
        Measure the test images after each of the last ten epochs and report the best beside the last, as the authors'
        code does, which flatters; with --select-on test only.
    checkpoint_dtype
        Round checkpoints to 16 bits when they are saved: half the disk, and all that comes after sees the same weights.
    device
        Where to compute.

    Raises
    ------
    UserError
        For a teacher that knows no more than guessing does, for teachers of other classes, and as `train`
        does.
    """
    from ..checkpoints import resolve_ensemble
    from ..data import config_like, load_data
    from ..losses import METHODS, defaults, takes_features
    from ..training.distillation import DistillSpec, run_distillation
    from ..training.run import RunSpec

    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    own_alpha, own_tau = defaults(method)
    if not (tau is None or not takes_features(method) or (alpha is not None and alpha < 1)):
        raise UserError(f"--tau means nothing to {method} while alpha is 1: predictions have no weight")
    settings = KDConfig(
        alpha=own_alpha if alpha is None else alpha,
        tau=own_tau if tau is None else tau,
        tau_squared=tau_squared,
        average=average,
    )
    if not len(teachers) > 0:
        raise UserError("distilling needs --teachers; to train without one, use `checkpointkd train`")
    addresses = resolve_ensemble(teachers, ensemble)
    say_if_found_otherwise(teachers, student, settings if method == "kd" else None)
    distill_config = _teaching(
        method_weight,
        teacher_weights,
        teacher_schedule,
        teacher_batch_norm,
        teacher_features,
        student_features,
        channel_adapter,
        members=len(addresses),
    )
    taught_on = addresses[0].checkpoint.run.data
    loaded = load_data(config_like(taught_on, data, select_on, train_images, image_size, flip), on_progress=on_progress)
    say_if_any_has_seen(addresses, loaded)
    spec = DistillSpec(
        refs=tuple(addresses),
        method=method,
        kd=settings,
        config=distill_config,
        logit_cache_gb=logit_cache_gb,
        allow_weak_teacher=allow_weak_teacher,
    )
    run = RunSpec(
        model=student,
        out=Path(out),
        recipe=recipe_from(recipe or loaded.recipe, epochs, batch_size, learning_rate),
        device=device_of(device),
        save_every=save_every,
        seed=seed,
        precision=precision,
        compile=compile,
        best_of_last_ten=best_of_last_ten,
        checkpoint_dtype=checkpoint_dtype,
    )
    return run_distillation(run, spec, loaded, on_progress=on_progress)


def tune(
    student: str,
    /,
    *,
    teachers: list[str],
    out: Path | str,
    data: str | None = None,
    ensemble: str | None = None,
    method: str = "kd",
    tau_squared: bool = KDConfig.tau_squared,
    average: EnsembleAverage = KDConfig.average,
    teacher_weights: list[float] | None = None,
    teacher_schedule: TeacherSchedule = "joint",
    teacher_batch_norm: BatchNormMode = "eval",
    teacher_features: list[str] | None = None,
    student_features: list[str] | None = None,
    channel_adapter: bool = False,
    alpha: list[float] | None = None,
    tau: list[float] | None = None,
    method_weight: list[float] | None = None,
    learning_rate: list[float] | None = None,
    sampler: SamplerName = "grid",
    trials: int | None = None,
    prune: bool = True,
    seeds: int = 1,
    storage: str | None = None,
    study_name: str = "checkpointkd",
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    select_on: SelectOn | None = None,
    train_images: int | None = None,
    precision: PrecisionChoice = "auto",
    allow_weak_teacher: bool = False,
    logit_cache_gb: float = 20.0,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Search the α and τ with which teachers teach a student best, on the selection images; the same command continues.

    With the teachers' table every trial costs a student alone. Bad trials are stopped early.

    Example:

        checkpointkd tune wrn_10_1 --teachers runs/teacher@midpoint --out runs/search

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
    teacher_weights
        How much each of several teachers counts, as for distill.
    teacher_schedule
        When several teachers teach, as for distill.
    teacher_batch_norm
        How teachers normalize, as for distill.
    teacher_features
        For methods that look inside: modules of the teacher, as for distill.
    student_features
        The student's modules that meet them.
    channel_adapter
        A trained convolution where fsp needs one, as for distill.
    alpha
        Weights of the labels to try: 0.1 0.3 0.5 0.7 0.9 for kd; for other methods their own.
    tau
        Temperatures to try: 1 2 4 8 16; for methods that look inside their own.
    method_weight
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
    study_name
        The study's name there.
    recipe
        Named settings of the training, as for distill.
    epochs
        How many epochs, in place of the recipe's.
    batch_size
        Images a step, in place of the recipe's.
    seed
        Fixes first weights, order and augmentation of the first student of each trial; the next has the next.
    select_on
        holdout or paper, see train; by default the first teacher's.
    train_images
        Train on this many images only; by default as the first teacher.
    precision
        fp32, bf16, or auto, as for train.
    allow_weak_teacher
        Take a teacher even if it knows no more than guessing does.
    logit_cache_gb
        How many gigabytes the tables of teachers' answers may take up in all, as for distill.
    device
        Where to compute.

    Raises
    ------
    UserError
        As distill does; when the study is another search's, and when its storage can't be used.
    """
    from ..checkpoints import resolve_ensemble
    from ..data import config_like, load_data
    from ..losses import METHODS, defaults, takes_features
    from ..selection import tuning
    from ..training.distillation import DistillSpec
    from ..training.run import RunSpec

    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    check_choice("average", average, EnsembleAverage)
    own_alpha, own_tau = defaults(method)
    given = {"alpha": alpha, "tau": tau, "method_weight": method_weight, "learning_rate": learning_rate}
    space = tuning.default_space(method) | {name: tuple(v) for name, v in given.items() if v is not None}
    if not (tau is None or not takes_features(method) or min(space.get("alpha", (1.0,))) < 1):
        raise UserError(f"--tau means nothing to {method} while alpha is 1: predictions have no weight")
    settings = tuning.TuneConfig(space=space, sampler=sampler, trials=trials, prune=prune, seeds=seeds)
    if not len(teachers) > 0:
        raise UserError("a search needs --teachers")
    addresses = resolve_ensemble(teachers, ensemble)
    taught_on = addresses[0].checkpoint.run.data
    loaded = load_data(config_like(taught_on, data, select_on, train_images), on_progress=on_progress)
    say_if_any_has_seen(addresses, loaded)
    task = tuning.TuneTask(
        run=RunSpec(
            model=student,
            out=Path(out),
            recipe=recipe_from(recipe or loaded.recipe, epochs, batch_size, None),
            device=device_of(device),
            seed=seed,
            precision=precision,
            evaluate_test=False,
        ),
        spec=DistillSpec(
            refs=tuple(addresses),
            method=method,
            kd=KDConfig(alpha=own_alpha, tau=own_tau, tau_squared=tau_squared, average=average),
            config=_teaching(
                None,
                teacher_weights,
                teacher_schedule,
                teacher_batch_norm,
                teacher_features,
                student_features,
                channel_adapter,
                members=len(addresses),
            ),
            logit_cache_gb=logit_cache_gb,
            allow_weak_teacher=allow_weak_teacher,
        ),
        data=loaded,
    )
    found = tuning.run_tuning(
        task, settings=settings, out=Path(out), storage_url=storage, study_name=study_name, on_progress=on_progress
    )
    given = {
        "tau_squared": tau_squared,
        "teacher_weights": teacher_weights,
        "teacher_schedule": teacher_schedule,
        "teacher_batch_norm": None if teacher_batch_norm == "eval" else teacher_batch_norm,
        "teacher_features": teacher_features,
        "student_features": student_features,
        "channel_adapter": channel_adapter,
        "data": data,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "select_on": select_on,
        "train_images": train_images,
        "precision": found.precision,
        "seed": seed,
        "allow_weak_teacher": allow_weak_teacher,
    }
    return plain(found) | {"command": tuning.distill_command(found, options=given)}


def _teaching(
    method_weight: float | None,
    teacher_weights: list[float] | None,
    teacher_schedule: TeacherSchedule,
    batch_norm: BatchNormMode,
    teacher_features: list[str] | None,
    student_features: list[str] | None,
    channel_adapter: bool,
    *,
    members: int,
) -> DistillConfig:
    """How so many teachers are asked, as the options say."""
    return DistillConfig(
        method_weight=method_weight,
        teacher_weights=shares_of(teacher_weights, members),
        teacher_schedule=teacher_schedule,
        batch_norm=batch_norm,
        teacher_features=None if teacher_features is None else tuple(teacher_features),
        student_features=None if student_features is None else tuple(student_features),
        channel_adapter=channel_adapter,
    )
