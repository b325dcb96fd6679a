"""Run functions on a Ray cluster. Needs the extra `ray`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..errors import UserError, first_line
from .base import ExecutorConfig, WorkerDied

CONNECT_SECONDS = 10.0


class RayExecutor:
    """Runs functions as Ray tasks, each with one CPU core and a share of a GPU.

    RAY_ADDRESS names the cluster. Without it, Ray starts on this machine. Ray sets CUDA_VISIBLE_DEVICES for each task.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError:
            raise UserError("--executor ray needs Ray: pip install 'checkpointkd[ray]'") from None
        self._ray = ray
        self.jobs = config.jobs
        self._began_here = not ray.is_initialized()
        if self._began_here:
            _connect(ray)
        gpus = ray.cluster_resources().get("GPU", 0)
        share = config.gpus_per_run if config.gpus_per_run is not None else min(1, gpus)
        if share > gpus:
            raise UserError(f"The Ray cluster has no GPU for --gpus-per-run {share:g}. Leave out --gpus-per-run.")
        # a task that dies is submitted again by the caller, as with every executor
        self._remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(_call)
        self._folder = os.getcwd()
        self._running: dict[Future[Any], Any] = {}

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        reference = self._remote.remote(self._folder, function, *arguments)
        self._running[future] = reference
        reference.future().add_done_callback(lambda inner: self._finish(future, inner))
        return future

    def close(self) -> None:
        for reference in list(self._running.values()):
            self._ray.cancel(reference, force=True)
        if self._began_here:
            self._ray.shutdown()

    def _finish(self, future: Future[Any], inner: Future[Any]) -> None:
        from ray.exceptions import RayError, RayTaskError

        self._running.pop(future, None)
        error = inner.exception()
        if error is None:
            future.set_result(inner.result())
        elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
            future.set_exception(WorkerDied(f"Ray lost its process ({type(error).__name__}: {first_line(error)})"))
        else:
            future.set_exception(getattr(error, "cause", None) or error)


def _connect(ray: Any) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address:
            _check_answers(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:  # Ray raises many kinds
        where = f"RAY_ADDRESS={address}" if address else "this machine"
        raise UserError(
            f"Ray could not be reached at {where}: {first_line(error)}. Start it with `ray start --head`, or unset "
            "RAY_ADDRESS to run on this machine."
        ) from None


def _check_answers(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT. Ray itself would retry for many minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _call(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a Ray worker, in the folder where the command was started, because paths may be relative."""
    import torch

    torch.set_num_threads(1)
    if os.path.isdir(folder):
        os.chdir(folder)
    return function(*arguments)
