"""What is left to do of an experiment, and about what it takes on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import duration, pluralize
from .context import Context
from .tasks import CheckpointChoice, DistillTask, Task, TrainTask, ordered

OVERHEAD_SECONDS = 2.0  # per task, for reading data and teachers and for writing results


@dataclass(frozen=True)
class Estimate:
    """The tasks that are left, by kind, and their cost. `gigabytes` includes the logit cache."""

    tasks: int
    left: int
    teachers: int
    students: int
    searches: int
    measurements: int
    seconds: float
    gigabytes: float
    parts: dict[str, float] = field(default_factory=dict)  # seconds of each kind of work; empty for images in memory
    loading_epoch: float = 0.0  # seconds that the loader takes for one epoch of a student

    @property
    def text(self) -> str:
        """The estimate as a sentence or two.

        >>> Estimate(9, 3, 1, 2, 0, 0, 5400.0, 0.25).text
        '6 of 9 tasks are done. Left: 1 teacher, 2 students; about 1.5 hours with one job and 0.2 GB on this machine.'
        """
        if not self.left:
            return f"All {pluralize(self.tasks, 'task')} are done."
        searches = f"{self.searches:,} search{'es' if self.searches > 1 else ''}"
        counts = [
            (self.teachers, pluralize(self.teachers, "teacher")),
            (self.students, pluralize(self.students, "student")),
            (self.searches, searches),
            (self.measurements, pluralize(self.measurements, "measurement")),
        ]
        left = ", ".join(text for count, text in counts if count)
        parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in self.parts.items())
        return (
            f"{self.tasks - self.left} of {pluralize(self.tasks, 'task')} are done. Left: {left}; about "
            f"{duration(self.seconds)} with one job and {self.gigabytes:.1f} GB on this machine."
            + (f" Parts: {parts}. Loading alone takes {duration(self.loading_epoch)} per epoch." if parts else "")
        )


def estimate_of(context: Context, tasks: Sequence[Task], done: Callable[[Task], bool]) -> Estimate:
    """Return what is left of tasks and of all that they require."""
    required = ordered(tasks)
    left = [task for task in required if not done(task)]
    kinds = Counter(task.kind for task in left)
    students_of: Counter[CheckpointChoice] = Counter(
        choice for task in left if isinstance(task, DistillTask) for choice in dict.fromkeys(task.teachers)
    )
    seconds = sum(task.cost(context) for task in left) + OVERHEAD_SECONDS * len(left)
    seconds += sum(
        context.teacher_forward_seconds(choice.training.model, count) for choice, count in students_of.items()
    )
    evaluating = sum(
        context.evaluation_seconds(task.model, task.checkpoints(context) + 1)  # the last one on the test set, too
        for task in left
        if isinstance(task, TrainTask | DistillTask)
    )
    seconds += evaluating
    parts = _parts(context, left, evaluating) if context.streams else {}
    cache = min(context.logit_cache_gb, len(students_of) * context.logit_cache_gigabytes())
    return Estimate(
        tasks=len(required),
        left=len(left),
        teachers=kinds["teacher"],
        students=kinds["student"],
        searches=kinds["search"],
        measurements=kinds["measurement"],
        seconds=seconds,
        gigabytes=sum(task.megabytes(context) for task in left) / 1e3 + cache,
        parts=parts,
        loading_epoch=context.student_steps
        * max((speed.loading_seconds_per_step for speed in context.speeds.values()), default=0.0),
    )


def _parts(context: Context, left: Sequence[Task], evaluating: float) -> dict[str, float]:
    """Return the seconds of each kind of work on images that are loaded from files."""
    training = {"teachers": 0.0, "students": 0.0}
    live = 0.0
    for task in left:
        if isinstance(task, DistillTask):
            students = context.training_seconds(task.model, context.preset.student_epochs)
            training["students"] += students
            live += task.cost(context) - students
        elif isinstance(task, TrainTask):
            training["teachers" if task.role == "teacher" else "students"] += task.cost(context)
    return {
        "training of teachers": training["teachers"],
        "training of students": training["students"],
        "their teachers' forward passes": live,
        "evaluations": evaluating,
    }
