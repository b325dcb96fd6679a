"""The result of a pilot search: the verdict in words, the table of candidates, and the call that trains the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..analysis.statistics import Z
from ..errors import pluralize
from ..records.runs import DistillRecord, read_run
from ..records.selection import CandidateRecord, PilotResult, PilotRunRecord
from ..teachers.ensemble import chance_level
from .candidates import AVERAGE, Candidate
from .pilot_plan import Decision, PilotOutcome
from .pilot_store import PILOT_RUNS, PilotSearch

SURE = 0.95  # the chance from which a gain over the default is called sure


def summarize(
    decision: Decision,
    candidates: Sequence[Candidate],
    outcomes: Sequence[PilotOutcome],
    *,
    default: Candidate,
    student: str,
    tau: float,
    pilot_epochs: int,
    student_epochs: int,
    unit: str,
) -> PilotResult:
    """Return the result of a pilot search.

    Args:
        decision: What is chosen.
        candidates: All candidates, tried or not.
        outcomes: The pilot runs, in order. Those that diverged count against the budget as if completed.
        default: What gains are relative to.
        student: The student's model name.
        tau: The temperature of `kd`.
        pilot_epochs: Epochs of one pilot run.
        student_epochs: Epochs of one whole distillation.
        unit: The unit of checkpoints, "epoch" or "step".
    """
    chosen, gains = decision.candidate, decision.gains
    chance_C = gains.chance_best()
    sd_C = np.sqrt(np.maximum(np.diag(gains.covariance_CC), 0.0))
    scores = {outcome.candidate: outcome for outcome in outcomes}
    order = sorted(range(len(candidates)), key=lambda index: -gains.mean_C[index])
    return PilotResult(
        student=student,
        epochs=() if chosen.kind == AVERAGE else tuple(int(name) for name in chosen.teachers),
        teachers=chosen.teachers,
        method=chosen.method if chosen.teachers else None,
        alpha=chosen.alpha,
        tau=None if chosen.alpha is None else tau,
        reason=_verdict(decision, len(candidates), default, unit),
        gain=decision.gain,
        low=decision.low,
        high=decision.high,
        chance=decision.chance,
        safe=decision.safe.describe(unit),
        candidates=tuple(
            CandidateRecord(
                candidate=candidates[index].describe(unit),
                gain=float(gains.mean_C[index]),
                low=float(gains.mean_C[index] - Z * sd_C[index]),
                high=float(gains.mean_C[index] + Z * sd_C[index]),
                chance=float(chance_C[index]),
                accuracy=_accuracy(scores.get(candidates[index])),
                chosen=candidates[index] == chosen,
            )
            for index in order
        ),
        pilot_runs=tuple(
            PilotRunRecord(
                candidate=outcome.candidate.describe(unit),
                teachers=outcome.candidate.teachers,
                method=outcome.candidate.method if outcome.candidate.teachers else None,
                alpha=outcome.candidate.alpha,
                information=outcome.information,
                accuracy=outcome.accuracy,
            )
            for outcome in outcomes
            if not outcome.diverged
        ),
        pilot_epochs=pilot_epochs,
        spent_epochs=pilot_epochs * len(outcomes),
        student_epochs=student_epochs,
        unit="step" if unit == "step" else "epoch",
        warnings=tuple(
            f"The pilot run of {outcome.candidate.describe(unit)} diverged" for outcome in outcomes if outcome.diverged
        ),
    )


def _accuracy(outcome: PilotOutcome | None) -> float | None:
    return None if outcome is None or outcome.diverged else outcome.accuracy


def _verdict(decision: Decision, count: int, default: Candidate, unit: str) -> str:
    """Return what to use, what it is expected to gain, how sure that is, and the safe choice."""
    chosen = decision.candidate.describe(unit)
    standard = default.describe(unit)
    if decision.candidate == default:
        return (
            f"Use {chosen}: no other candidate is expected to be better. The chance that it is the best of "
            f"{pluralize(count, 'candidate')} is {100 * decision.chance:.0f}%"
        )
    sure = "" if decision.low > 0 else f" The gain is not sure. The safe choice is {decision.safe.describe(unit)}."
    return (
        f"Use {chosen}. Expected gain over {standard}: {decision.gain:+.1f} points of accuracy (95% interval: "
        f"{decision.low:+.1f} to {decision.high:+.1f}). The chance that it is the best of "
        f"{pluralize(count, 'candidate')} is {100 * decision.chance:.0f}%.{sure}"
    ).removesuffix(".")


def _is_weak(search: PilotSearch, teachers: Sequence[str]) -> bool:
    """Return whether one of these teachers is not clearly better than chance, as the pilot runs measured it."""
    _, threshold = chance_level(search.data.val.labels_N)
    for path in (search.out / PILOT_RUNS).glob("*/run.json"):
        run = read_run(path)
        if isinstance(run, DistillRecord) and tuple(t.name for t in run.teachers) == tuple(teachers):
            return any(member.accuracy < threshold for member in run.teachers_measured.members)
    return False


def training_call(search: PilotSearch, result: PilotResult) -> tuple[str, dict[str, Any]]:
    """Return the command that trains the student in the chosen way, `train` or `distill`, and its options."""
    given = {**search.command_options, "precision": search.precision}
    if result.teachers:
        teachers = [f"{search.trajectory.source}@{name}" for name in result.teachers]
        options = {"method": result.method, "alpha": result.alpha, "tau": result.tau}
        options["allow_weak_teacher"] = _is_weak(search, result.teachers)
        return "distill", {"teachers": teachers, **given, **options}
    data = search.data.record
    options = {
        "data": search.command_options.get("data") or data.spec,
        "logit_cache_gb": None,
        "select_on": None if data.select_on == "val" else data.select_on,
        "train_images": data.train_images,
        "image_size": data.image_size,
        "flip": data.flip,
    }
    return "train", {**given, **options}
