"""How many runs side by side a machine carries best: small networks leave most of an accelerator idle."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError, counted
from ..recipes import recipe as recipe_of
from .crew import deaf_to_interrupts, end_with_parent
from .lab import Lab
from .quiet import quiet

log = logging.getLogger("checkpointkd")

MOST = 256  # as of --jobs
SECONDS = 5.0  # of each measurement
PATIENCE = 300.0  # seconds until all processes must have begun
WORTH = 1.05  # so many times more images a second must twice as many processes bring


def most_at_once(lab: Lab, model: str, until: float = math.inf) -> int:
    """With how many processes at once this network trains on most images a second; measured once on each machine.

    1, 2, 4 and so on are tried, as long as it pays and there are cores; at `until` (of `time.monotonic`) what is best
    so far is taken, and nothing noted.
    """
    path = lab.out / "at_once.json"
    known = _known(path)
    key = f"{_machine(lab)}, {model}, {lab.machine[model]['precision']}"
    if key not in known:
        log.info("measuring how many runs at once this machine carries best")
        best, before, count = 1, 0.0, 1
        while count <= min(MOST, os.cpu_count() or 1):
            speed = _images_a_second(lab, model, count, until)
            if time.monotonic() >= until:
                return best
            log.info("%d at once: %s", count, f"{speed:,.0f} images a second" if speed else "the machine can't")
            if speed < WORTH * before or speed == 0:
                break
            best, before, count = count, speed, 2 * count
        if before == 0:
            return best
        known = {**known, key: best}
        files.write_json(path, known)
    log.info("%s at once", counted(known[key], "run"))
    return known[key]


def _known(path: Path) -> dict[str, int]:
    """What was measured before; damaged, it is measured again."""
    try:
        found = files.read_json(path) if path.exists() else {}
    except UserError:
        return {}
    sound = isinstance(found, dict) and all(type(one) is int and 1 <= one <= MOST for one in found.values())
    return found if sound else {}


def _machine(lab: Lab) -> str:
    from ..verbs.common import device_of

    device = device_of(lab.device)
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.get_device_name(device)}, {os.cpu_count()} cores"
    return f"{device.type}, {os.cpu_count()} cores"


def _images_a_second(lab: Lab, model: str, count: int, until: float) -> float:
    """Of so many processes together; 0 where one of them failed, as when the memory is too small, or time ran out."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(count), context.Queue()
    threads = max(1, (os.cpu_count() or 1) // count)
    processes = [
        context.Process(target=_train, args=(lab, model, threads, barrier, told, SECONDS), daemon=True)
        for _ in range(count)
    ]
    with deaf_to_interrupts():
        for process in processes:
            process.start()
    speeds: list[float] = []
    try:
        left = set(processes)
        while left:
            if time.monotonic() >= until:
                return 0.0
            wait([process.sentinel for process in left], 0.2)
            while not told.empty():
                speeds.append(told.get())
            left = {process for process in left if process.is_alive()}
            if any(process.exitcode not in (0, None) for process in processes):
                return 0.0
        while not told.empty():
            speeds.append(told.get())
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return sum(speeds) if len(speeds) == count else 0.0


def _train(lab: Lab, model: str, threads: int, barrier: Any, told: Any, seconds: float) -> None:
    """What each process does: train for so long, when all are ready, and tell how many images a second."""
    end_with_parent()
    import torch

    from ..data import load_data
    from ..runs import steps_in
    from ..verbs.common import device_of

    torch.set_num_threads(threads)
    with quiet():
        data, recipe = load_data(lab.data_settings()), recipe_of(lab.scale.student_recipe)
        precision, device = lab.machine[model]["precision"], device_of(lab.device)
        try:
            steps = steps_in(seconds, model, data, recipe, precision=precision, device=device,
                             begin=lambda: barrier.wait(PATIENCE))  # fmt: skip
        except (RuntimeError, MemoryError):  # as many at once have no room
            sys.exit(1)
    told.put(steps * min(recipe.batch_size, len(data.train)))
    told.close()
    told.join_thread()
