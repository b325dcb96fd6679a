"""`checkpointkd select`: choose the checkpoint that teaches, by a rule or by pilot runs of a student."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..config import EstimatorConfig, check_estimator
from ..distill_config import PilotConfig
from ..errors import UserError
from ..executors.base import ExecutorConfig, WorkerDied
from ..records.selection import teachers_in_words
from ..user_code import name_of
from .checks import check_same_classes, warn_if_saw_validation_images
from .executor_options import ExecutorOptions
from .log_options import LogOptions
from .options import (
    CommonOptions,
    DataOptions,
    LogitCacheOptions,
    Model,
    RunOptions,
)
from .recipe_options import RECIPE_OPTIONS, LearningRateOptions
from .signature import command

if TYPE_CHECKING:
    from ..checkpoints import Trajectory
    from ..information import Plane
    from ..records.selection import PilotResult, PlaneSettings
    from ..selection import Choice
    from ..selection.candidates import Candidate
    from ..selection.pilot_store import PilotSearch

log = logging.getLogger("checkpointkd")

AUTO = "auto"
DEFAULT_RULE = "algorithm1"
DEFAULT_LOGIT_RULE = "lowest-nll"


@dataclass(frozen=True, kw_only=True)
class PilotOptions(LearningRateOptions, DataOptions, RunOptions, LogitCacheOptions, ExecutorOptions, LogOptions):
    """With --student: compare candidates by pilot runs."""

    student: Model | None = None
    """The student's network, as for `train`. This option starts a pilot search. The options below apply to it only."""

    out: Path | str | None = None
    """The directory of the pilot runs. Required. Repeat the command to continue an interrupted search."""

    budget: str | float = PilotConfig.budget
    """The cost of all pilot runs. With a decimal point it is a share of one full distillation, such as 1.0. Without, it
    is a number of epochs, such as 60."""

    methods: list[str] | None = None
    """Methods to compare. Default: kd, dkd, dist, lskd, wttm, mlkd-ls; without dkd with --mixup or --cutmix."""

    teachers_from: list[str] | None = None
    """Teachers to compare, written like the part of a reference after the @. Join the teachers of an ensemble by +.
    Default: last, 0.7, midpoint+last, mean:0.7-1.0."""

    alpha: list[float] | None = None
    """Weights of the labels to compare for kd. Default: 0.5 and 0.1. Other methods use their own default. The search
    always compares no teacher, and kd from the last checkpoint with alpha 0.5."""

    tau: float | None = None
    """Softmax temperature of kd. Default: 5."""

    then_distill: Path | str | None = None
    """Train the student with the chosen candidate afterwards, in this directory, with seed 0."""

    def pilot_config(self) -> PilotConfig:
        """Return the settings of the search. Raises UserError for values out of range."""
        return PilotConfig(
            budget=self.budget,
            alphas=PilotConfig.alphas if self.alpha is None else tuple(self.alpha),
            tau=PilotConfig.tau if self.tau is None else self.tau,
            methods=PilotConfig.methods if self.methods is None else tuple(dict.fromkeys(self.methods)),
            teachers=PilotConfig.teachers if self.teachers_from is None else tuple(self.teachers_from),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class SelectOptions(PilotOptions, CommonOptions):
    """Options of `select`."""

    rule: str | Callable[..., Any] | None = None
    """The rule: algorithm1; midpoint, last, random, best-accuracy; transition, the steepest rise of accuracy;
    lowest-nll, lowest-brier, lowest-calibration-error; mcmi, the largest conditional mutual information;
    wrong-class-variance; nuclear-norm, which needs no labels; or your own, as package.module:function.
    Default: pilot runs with --student, lowest-nll with --logits, otherwise algorithm1."""

    estimator: str | Callable[..., Any] = EstimatorConfig.estimator
    """The estimator of I(X;F) whose scores the rule uses: decoder, ridge, or your own as package.module:function."""

    logits: Path | str | None = None
    """In place of RUN: a folder with an array of labels (N,) named labels, and one array of logits (N, K) for each
    checkpoint, named by its epoch, as npy, npz or safetensors. All rules but algorithm1 apply. selection.json and
    report.html are written into the folder."""

    @property
    def rule_name(self) -> str | None:
        """The rule's name; None for the default."""
        return None if self.rule in (None, AUTO) else name_of(self.rule)

    def pilot_runs(self) -> tuple[str, Path] | None:
        """Return the student and the directory of its pilot runs, or None if a rule chooses.

        Raises:
            UserError: If options of a rule and of pilot runs are combined, or if `out` is not given.
        """
        if self.student is None:
            for field in dataclasses.fields(PilotOptions):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name.replace('_', '-')} needs --student, which starts pilot runs")
            return None
        if self.rule_name is not None:
            raise UserError(f"--rule {self.rule_name} cannot be combined with --student, which compares pilot runs")
        if self.estimator != EstimatorConfig.estimator:
            raise UserError("--estimator cannot be combined with --student, which compares pilot runs")
        if self.out is None:
            raise UserError("--student needs --out, a directory for the pilot runs")
        if "kd" not in (self.methods or ("kd",)):
            for name in ("alpha", "tau"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} applies to kd, which is not among --methods")
        student = name_of(self.student)
        if self.then_distill is not None:
            _check_free(Path(self.then_distill), student)
        return student, Path(self.out)


@overload
def select(run: Path | str, /, *, student: Model, out: Path | str, **options: Any) -> PilotResult: ...
@overload
def select(run: Path | str | Plane | None = None, /, *, student: None = None, **options: Any) -> Choice: ...
@command(SelectOptions)
def select(  # pyright: ignore[reportInconsistentOverload] - the options are those of SelectOptions
    run: Path | str | None = None, /, *, options: SelectOptions
) -> Choice | PilotResult:
    """Choose the checkpoint that teaches. Afterwards RUN@best refers to it.

    Without --student, a rule chooses from the teacher's run alone: Algorithm 1 or another rule. With --student, short
    pilot runs of that student compare methods and teachers: single checkpoints, ensembles of two, weight averages, and
    no teacher.

    Example:

        checkpointkd select runs/teacher

        checkpointkd select runs/teacher --student wrn_10_1 --out runs/pilot

        checkpointkd select --logits FOLDER --rule lowest-nll

    Args:
        run: The run directory. In Python also what `checkpointkd.plane` returned; then nothing is stored.

    Raises:
        UserError: If the rule needs scores and the checkpoints have none, or if the budget is too small for pilot runs.
    """
    from ..checkpoints import open_trajectory, warn_if_new_files
    from ..information import Plane
    from ..selection import fall_of_accuracy, get_rule

    rule, estimator = options.rule_name, name_of(options.estimator)
    if rule is not None:
        get_rule(rule)  # raises UserError for an unknown rule
    check_estimator(estimator)
    if options.logits is not None or isinstance(run, Plane):
        if options.logits is not None and run is not None:
            raise UserError(f"--logits takes the place of {run}. Leave one of them out.")
        if options.student is not None:
            raise UserError("--student needs a run directory with checkpoints, which can teach")
        options.pilot_runs()  # raises UserError for options of pilot runs
        return _without_run(run, options.logits, rule)
    if run is None:
        raise UserError("select needs a run directory, or --logits FOLDER")
    trajectory = open_trajectory(run)
    warn_if_new_files(trajectory)
    pilot_runs = options.pilot_runs()
    if pilot_runs is not None:
        search, choice = _by_pilot_runs(trajectory, *pilot_runs, options)
        try:
            _store(run, trajectory, choice, made_with=None)
        except UserError as error:  # the pilot runs are saved in --out
            log.warning("%s. RUN@best is unchanged; run the same command again to set it.", error)
        if options.then_distill is not None:
            log.info("For %s: %s.", search.student, choice.reason)
            _train_student(search, choice, Path(options.then_distill))
    else:
        choice, plane = _by_rule(trajectory, rule or DEFAULT_RULE, estimator)
        _store(run, trajectory, choice, made_with=None if plane is None else plane.settings)
        if plane is not None and (fall := fall_of_accuracy(plane, trajectory.unit)) is not None:
            log.warning("%s", fall)
        elif choice.epoch != max(trajectory):
            log.info(
                "The safe choice is the last checkpoint, %s@%d: no rule was clearly better in our experiments. "
                "`select --student` measures which teachers and which method suit your student.",
                run,
                max(trajectory),
            )
    for warning in choice.warnings:
        log.warning("%s", warning)
    return choice


def _check_free(folder: Path, student: str) -> None:
    """Raise UserError if the student cannot be trained in this folder. The check comes before the pilot runs."""
    from ..records import read_run

    for parent in folder.absolute().parents:
        if (parent / "run.json").exists():
            raise UserError(f"--then-distill {folder} lies in the run directory {parent}. Name another folder.")
    if (folder / "run.json").exists():
        model = read_run(folder / "run.json").model
        if model != student:
            raise UserError(f"--then-distill {folder} already holds a run of {model}. Name another folder.")
    elif folder.is_dir() and (names := sorted(path.name for path in folder.iterdir())):
        raise UserError(f"--then-distill {folder} already holds {', '.join(names[:3])}. Name another folder.")


def _train_student(search: PilotSearch, choice: PilotResult, out: Path) -> None:
    """Train the student in the chosen way, and log its accuracy."""
    from ..selection.pilot import chosen_candidate
    from ..selection.pilot_result import training_call
    from . import distill, train

    name, options = training_call(search, chosen_candidate(choice))
    options = {option: value for option, value in options.items() if value is not None}
    student = (distill if name == "distill" else train)(
        search.student, out=out, on_progress=search.on_progress, log=search.tracking, **options
    )
    log.info("%s: test accuracy %.1f%% after epoch %d", out, 100 * student.test_accuracy, student.planned_epochs)


def _store(
    run: Path | str, trajectory: Trajectory, choice: Choice | PilotResult, *, made_with: PlaneSettings | None
) -> None:
    """Write selection.json, and log what RUN@best was before if it has changed."""
    from ..selection.selected import write_selection
    from ..storage import locked

    with locked(trajectory.path):
        before = _describe_best(trajectory)
        write_selection(trajectory, choice, made_with=made_with)
    now = _describe_best(trajectory)
    if before not in (None, now):
        log.info("%s@best is now %s; it was %s", run, now, before)


def _describe_best(trajectory: Trajectory) -> str | None:
    """Say what RUN@best refers to; None if nothing was selected or if the selection is damaged."""
    try:
        selection = trajectory.selection()
    except UserError:
        return None
    if selection is None:
        return None
    teachers = teachers_in_words(selection.names, trajectory.unit)
    return f"{teachers}, for {selection.student}" if selection.student else f"{teachers}, by rule {selection.rule}"


def _without_run(plane: Any, logits: Path | str | None, rule: str | None) -> Choice:
    """Choose from a plane in memory, or from a folder of logits, into which the choice and a report are written."""
    from ..reports.build import write_choice
    from ..selection import Candidates, choose
    from ..selection.logit_files import candidates_of_logits
    from ..selection.selected import selection_record
    from ..storage import write_json

    if logits is None:
        choice = choose(Candidates(plane.epochs, max(plane.epochs), plane), rule=rule or DEFAULT_RULE)
    else:
        folder = Path(logits)
        candidates = candidates_of_logits(folder)
        choice = choose(candidates, rule=rule or DEFAULT_LOGIT_RULE)
        root = folder if folder.is_dir() else folder.parent
        write_json(root / "selection.json", selection_record(choice))
        log.info("Report: %s", write_choice(choice, candidates, out=root / "report.html"))
    for warning in choice.warnings:
        log.warning("%s", warning)
    return choice


def _by_rule(trajectory: Trajectory, rule: str, estimator: str) -> tuple[Choice, Plane | None]:
    """Return a rule's choice, and the scores that it used, if any.

    Raises:
        UserError: If the scores are absent, out of date, or of other images than the run's.
    """
    from ..information import load_plane, stale_epochs
    from ..selection import Candidates, choose, needs_scores

    plane = None if not needs_scores(rule) else load_plane(trajectory, estimator=estimator)
    again = f"Run `checkpointkd score {trajectory.source}` again"
    if plane is not None and (stale := stale_epochs(plane, trajectory)):
        epochs = ", ".join(map(str, stale))
        raise UserError(
            f"{trajectory.source} has checkpoints that are new, missing or changed since they were scored "
            f"({trajectory.unit}s {epochs}). {again}"
        )
    if plane is not None and trajectory.external:
        scored_on, data = plane.settings.data, trajectory.run.data
        if not all(getattr(scored_on, name) == getattr(data, name) for name in ("sha256", "select_on")):
            raise UserError(
                f"{trajectory.source} was scored on other images ({scored_on.name}, --select-on {scored_on.select_on}) "
                f"than it was inspected on ({data.name}, --select-on {data.select_on}). {again}"
            )
    return choose(Candidates(list(trajectory), trajectory.planned_epochs, plane, trajectory.unit), rule=rule), plane


def _by_pilot_runs(
    trajectory: Trajectory, student: str, out: Path, options: SelectOptions
) -> tuple[PilotSearch, PilotResult]:
    """Return a pilot search for this student, and its result."""
    from ..executors import JOBS_FOLDER, open_executor, run_all
    from ..selection.pilot import run_pilot_search

    search, config = _search(trajectory, student, out, options), options.executor_config()
    if config == ExecutorConfig():
        return search, run_pilot_search(search)
    options.refuse_objects(student, trajectory.run.model, search.data.record.name)
    alone = replace(options, jobs=1, executor="local", gpus_per_run=None, slurm=None, on_progress=None)
    executor = open_executor(config, options.device, out / JOBS_FOLDER)

    def train_together(search: PilotSearch, candidates: Sequence[Candidate]) -> None:
        epochs = list(search.trajectory)
        run_all(executor, _train_pilot_run, [(trajectory.source, epochs, alone, entry) for entry in candidates])

    try:
        return search, run_pilot_search(search, jobs=config.jobs, train_together=train_together)
    except WorkerDied as error:
        raise UserError(f"A process of this search failed several times: {error}. Repeat the command.") from None
    finally:
        executor.close()


def _train_pilot_run(source: Path, epochs: list[int], options: SelectOptions, candidate: Candidate) -> None:
    """Train one pilot run, in a process of an executor."""
    from ..checkpoints import open_trajectory
    from ..selection.pilot import train_pilot_run

    assert options.out is not None
    trajectory = open_trajectory(source).only(epochs)
    train_pilot_run(_search(trajectory, name_of(options.student), Path(options.out), options), candidate)


def _search(trajectory: Trajectory, student: str, out: Path, options: SelectOptions) -> PilotSearch:
    """Return the pilot search of these options."""
    from ..data import load_data
    from ..losses import check_mixing, get_method, suits_mixing
    from ..selection.pilot_store import PilotSearch

    settings = options.pilot_config()
    for method in settings.methods:
        get_method(method)  # raises UserError for an unknown method
    data_config = options.config_like(trajectory.run.data, options.train_images)
    data = load_data(data_config, on_progress=options.on_progress)
    check_same_classes(trajectory, data)
    warn_if_saw_validation_images(str(trajectory.source), trajectory.run, data)
    recipe = options.recipe_for(student, data, options.learning_rate)
    if recipe.mixes:
        if options.methods is None:
            settings = replace(settings, methods=tuple(filter(suits_mixing, settings.methods)))
        for method in settings.methods:
            check_mixing(method)  # raises UserError
    repeated = ("data", "recipe", "epochs", "learning_rate", "train_images", *RECIPE_OPTIONS)
    repeated += ("select_on", "val", "train_labels", "image_size", "resize", "class_order", "flip")
    repeated += ("logit_cache_gb", "device")
    return PilotSearch(
        student=student,
        trajectory=trajectory,
        data=data,
        recipe=recipe,
        settings=settings,
        out=out,
        precision=options.precision,
        logit_cache_gb=options.logit_cache_gb,
        device=options.torch_device,
        command_options={name: getattr(options, name) for name in repeated},
        on_progress=options.on_progress,
        tracking=options.tracking(out),
    )
