"""Run each command in its own process, and check how the command ends."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import traceback
from pathlib import Path

LONGEST, LARGEST = 60.0, 2000  # seconds, and megabytes of resident memory
MAPPED = 16 << 30  # bytes of address space: a command that asks for more gets an error
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["tests.conftest", "checkpointkd.cli", "checkpointkd.teachers.cached_batches", "checkpointkd.experiments.demo"]
)


def _run(words: list[str], folder: str) -> None:
    import torch

    from checkpointkd.cli import main

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MAPPED, MAPPED))
    os.environ["CHECKPOINTKD_HOME"] = os.path.join(folder, "home")
    os.makedirs(os.path.join(folder, "here"), exist_ok=True)
    os.chdir(os.path.join(folder, "here"))
    sys.stdout = sys.stderr = open(os.path.join(folder, "output"), "w", encoding="utf-8")  # noqa: SIM115
    try:
        code = main(words)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    Path(folder, "memory").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
    os._exit(code)


def complaints(words: list[str], folder: Path) -> list[str]:
    """Run a command, and list the faults in how it ends; none if it succeeds or prints an error in one line.

    In `folder`, the command's current folder is `here`, its cache is `home`, and its output is stored in `output`.
    """
    process = processes.Process(target=_run, args=(words, str(folder)))
    began = time.monotonic()
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
        return [f"still running after {time.monotonic() - began:.0f} s"]
    output = (folder / "output").read_text(encoding="utf-8", errors="surrogateescape")
    found = []
    if process.exitcode not in (0, 2):
        found.append(f"exit code {process.exitcode}")
    if "Traceback" in output:
        found.append("a traceback")
    if (folder / "memory").exists() and int((folder / "memory").read_text()) > LARGEST:
        found.append(f"{(folder / 'memory').read_text()} MB")
    if any(not character.isprintable() and character not in "\n\t" for character in output):
        found.append("a control character on the terminal")
    return [f"{' and '.join(found)}: {output[-400:]}"] if found else []
