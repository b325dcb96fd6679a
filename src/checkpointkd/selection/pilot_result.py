"""The result of a pilot search: the verdict in words, the candidates, and the command that trains the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..analysis.statistics import Z
from ..errors import pluralize
from ..records.runs import DistillRecord, read_run
from ..records.selection import CandidateRecord, PilotResult, PilotRunRecord
from ..teachers.ensemble import chance_level
from .candidates import Candidate
from .pilot_plan import Decision, PilotOutcome, failed_candidates, lowest_score
from .pilot_store import PILOT_RUNS, PilotSearch


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
        decision: The decision of the search.
        candidates: All candidates, tried or not.
        outcomes: The pilot runs, in order. Diverged runs count against the budget like completed runs.
        default: The candidate that gains are relative to.
        student: The student's model name.
        tau: The temperature of `kd`.
        pilot_epochs: Epochs of one pilot run.
        student_epochs: Epochs of one full distillation.
        unit: The unit of checkpoints, "epoch" or "step".
    """
    chosen, gains = decision.candidate, decision.gains
    failed = failed_candidates(outcomes)
    sd_C = np.sqrt(np.maximum(np.diag(gains.covariance_CC), 0.0))
    scores = {outcome.candidate: outcome for outcome in outcomes}
    order = sorted(range(len(candidates)), key=lambda index: (candidates[index] in failed, -gains.mean_C[index]))
    return PilotResult(
        student=student,
        epochs=tuple(map(int, chosen.teachers)) if all(map(str.isdecimal, chosen.teachers)) else (),
        teachers=chosen.teachers,
        method=chosen.method if chosen.teachers else None,
        alpha=chosen.alpha,
        tau=None if chosen.alpha is None else tau,
        reason=_verdict(decision, candidates, default, default in failed, unit),
        gain=decision.gain,
        low=decision.low,
        high=decision.high,
        chance=float(decision.chance_C[candidates.index(chosen)]),
        safe=decision.safe.describe(unit),
        candidates=tuple(
            CandidateRecord(
                candidate=candidates[index].describe(unit),
                gain=float(gains.mean_C[index]),
                low=float(gains.mean_C[index] - Z * sd_C[index]),
                high=float(gains.mean_C[index] + Z * sd_C[index]),
                chance=float(decision.chance_C[index]),
                accuracy=_accuracy(scores.get(candidates[index])),
                failed=candidates[index] in failed,
                below=_is_below(scores.get(candidates[index]), lowest_score(outcomes, default)),
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
        warnings=tuple(_failure(outcome, unit) for outcome in outcomes if outcome.candidate in failed),
    )


def _failure(outcome: PilotOutcome, unit: str) -> str:
    name = outcome.candidate.describe(unit)
    if outcome.diverged:
        return f"The pilot run of {name} failed"
    return (
        f"The student of the pilot run of {name} stayed at chance level ({outcome.accuracy:.1%}), so {name} is not "
        "chosen. It may learn with --warmup 1 --clip-norm 2, or with a smaller --learning-rate"
    )


def _is_below(outcome: PilotOutcome | None, floor: float) -> bool:
    return outcome is not None and not outcome.diverged and outcome.score < floor


def _accuracy(outcome: PilotOutcome | None) -> float | None:
    return None if outcome is None or outcome.diverged else outcome.accuracy


def _verdict(
    decision: Decision, candidates: Sequence[Candidate], default: Candidate, default_failed: bool, unit: str
) -> str:
    """Return the choice, its expected gain with an interval, its chance to be the best, and the safe choice."""
    chosen, standard = decision.candidate.describe(unit), default.describe(unit)
    chance = 100 * decision.chance_C[candidates.index(decision.candidate)]
    best = f"The chance that it is the best of {pluralize(len(candidates), 'candidate')} is {chance:.0f}%"
    if default_failed:
        return f"Use {chosen}. The pilot run of {standard} failed, so no gain over it is known. {best}"
    if decision.candidate == default:
        return f"Use {chosen}: no candidate that was tried is expected to be better. {best}"
    gain = (
        f"Expected gain over {standard}: {decision.gain:+.1f} points of accuracy (95% interval: {decision.low:+.1f} to "
        f"{decision.high:+.1f})"
    )
    if decision.low > 0 or decision.safe == decision.candidate:
        return f"Use {chosen}. {gain}. {best}"
    return f"Use {chosen}. {gain}. {best}. The gain is uncertain. The safe choice is {decision.safe.describe(unit)}"


def _is_weak(search: PilotSearch, teachers: Sequence[str]) -> bool:
    """Return whether one of these teachers was not clearly better than chance level in the pilot runs."""
    _, threshold = chance_level(search.data.val.labels_N)
    for path in (search.out / PILOT_RUNS).glob("*/run.json"):
        run = read_run(path)
        if isinstance(run, DistillRecord) and tuple(t.name for t in run.teachers) == tuple(teachers):
            return any(member.accuracy < threshold for member in run.teachers_measured.members)
    return False


def training_call(search: PilotSearch, candidate: Candidate) -> tuple[str, dict[str, Any]]:
    """Return the command that trains the student with a candidate, `train` or `distill`, and its options."""
    given = {**search.command_options, "precision": search.precision}
    if candidate.teachers:
        teachers = [f"{search.trajectory.source}@{name}" for name in candidate.teachers]
        tau = None if candidate.alpha is None else search.settings.tau
        options = {"method": candidate.method, "alpha": candidate.alpha, "tau": tau}
        options["allow_weak_teacher"] = _is_weak(search, candidate.teachers)
        return "distill", {"teachers": teachers, **given, **options}
    data = search.data.record
    options = {
        "data": search.command_options.get("data") or data.spec,
        "select_on": None if data.select_on == "val" else data.select_on,
        "train_images": data.train_images,
        "image_size": data.image_size,
        "flip": data.flip,
        "resize": "squash" if data.eval_transform.resize == "squash" else None,
    }
    given = {name: value for name, value in given.items() if value is not None and name != "logit_cache_gb"}
    return "train", {**options, **given}
