"""Train one network in several processes, which torchrun, `accelerate launch` or srun start.

Each process takes its share of each global batch. Batch statistics, losses that compare examples and the mean of the
loss are computed from the whole global batch. So the result does not depend on the number of processes, up to
the order of floating-point sums.

Letters in names: B examples of this process, G examples of the global batch.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from . import storage
from .errors import UserError, first_line

T = TypeVar("T")
ONE_PROCESS = "an error of one process among several"  # the note of an exception that only one process raised
VISIBLE_SECONDS = 60.0  # time in which a new file must become visible on all machines
TIMEOUT = timedelta(hours=2)  # longer than the main process ever works alone


class SharedError(UserError):
    """An error that another process reports. This process ends without printing it."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among the processes that train one network, and their communication."""

    rank: int = 0
    world_size: int = 1
    _draws: dict[str, Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )  # states of the main process's generators

    @property
    def is_main(self) -> bool:
        """Whether this process reads and writes the run directory."""
        return self.rank == 0

    def part(self, rows_G: Tensor) -> Tensor:
        """Return this process's share (B,) of a global batch (G,). It may be empty."""
        return rows_G if self.world_size == 1 else rows_G.tensor_split(self.world_size)[self.rank]

    def from_main(self, make: Callable[[], T]) -> T:
        """Call a function in the main process. All processes return its result, or raise its error."""
        if self.world_size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.is_main:
            try:
                made[0] = make()
            except UserError as error:
                dist.broadcast_object_list([None, str(error)])
                raise
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise SharedError(made[1])
        return made[0]

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """Let only the main process report an error that all processes raise."""
        try:
            yield
        except UserError as error:
            if self.is_main:
                raise
            raise SharedError(str(error)) from None

    def gather(self, rows_BX: Tensor) -> Tensor:
        """Return the rows of all processes, in order of rank, without gradient. Their numbers of rows may differ."""
        if self.world_size == 1:
            return rows_BX
        counts = [torch.zeros((), dtype=torch.long, device=rows_BX.device) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor(len(rows_BX), device=rows_BX.device))
        sizes = [int(count) for count in counts]
        padded = rows_BX.new_zeros(max(sizes), *rows_BX.shape[1:])
        padded[: len(rows_BX)] = rows_BX
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])

    def collect(self, own: list[T]) -> list[T]:
        """Return the entries of all processes, in order of rank."""
        if self.world_size == 1:
            return own
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, own)
        return [entry for entries in gathered for entry in entries]

    def together(self, rows_BX: Tensor) -> Tensor:
        """Return the rows of the global batch (G, …), with gradient."""
        return rows_BX if self.world_size == 1 else _Together.apply(rows_BX, self)

    def own(self, rows_GX: Tensor, count: int) -> Tensor:
        """Return this process's `count` rows of the global batch."""
        if self.world_size == 1:
            return rows_GX
        start = sum(map(len, torch.arange(len(rows_GX)).tensor_split(self.world_size)[: self.rank]))
        return rows_GX[start : start + count]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes, without gradient."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Return the maximum over processes."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def seed(self, seed: int, own_seed: int) -> None:
        """Seed PyTorch's generators: `seed` in the main process, `own_seed` in the others, so that dropout differs."""
        torch.manual_seed(seed)
        if not self.is_main:
            self._draws.update(_generator_states())
            torch.manual_seed(own_seed)

    @contextlib.contextmanager
    def same_draws(self) -> Iterator[None]:
        """Draw the same random numbers in every process.

        They equal the numbers of the main process, unless its network also draws random numbers, such as for dropout.
        """
        if self.is_main:
            yield
            return
        own = _generator_states()
        _set_generator_states(self._draws)
        try:
            yield
        finally:
            self._draws.update(_generator_states())
            _set_generator_states(own)

    def generators(self) -> list[dict[str, dict[str, Tensor]]]:
        """Return the states of the random generators of all processes, in order of rank."""
        return self.collect([{"own": _generator_states(), "draws": dict(self._draws)}])

    def restore_generators(self, stored: list[dict[str, dict[str, Tensor]]], *, own_seed: int) -> None:
        """Restore the states that `generators` returned. A process without a stored state is seeded with `own_seed`."""
        if self.rank < len(stored):
            _set_generator_states(stored[self.rank]["own"])
        else:
            torch.manual_seed(own_seed)
        if not self.is_main:
            last = stored[min(self.rank, len(stored) - 1)]
            self._draws.update(last["draws"] or last["own"])

    @contextlib.contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a folder in the main process. If the folder cannot be locked, all processes fail."""
        lock = storage.locked(folder) if self.is_main else contextlib.nullcontext()
        self.from_main(lock.__enter__)
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def check_sees(self, path: Path) -> None:
        """Raise UserError in all processes if one of them does not see a file of the main process."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while self.world_size > 1 and not path.exists() and time.monotonic() < deadline:
            time.sleep(1)  # a network file system may show new files late
        unseen = self.max(torch.tensor(float(not path.exists())))
        if self.world_size > 1 and unseen:
            with self.alike():
                raise UserError(f"Not all processes see {path.parent}. All machines must share this folder.")

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the main process's buffers to all processes, because the checkpoint has these buffers.

        They differ if each process uses its own batch statistics.
        """
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, learner: nn.Module, *, unused: bool) -> nn.Module:
        """Return a module that averages gradients over processes.

        Args:
            learner: The module that computes the loss. It holds all trained parameters.
            unused: Whether some parameters have no gradient in some steps.
        """
        if self.world_size == 1:
            return learner
        parallel: Any = nn.parallel.DistributedDataParallel
        new_name = "forward_sync_buffers"  # of broadcast_buffers, from PyTorch 2.13 on
        name = new_name if new_name in inspect.signature(parallel).parameters else "broadcast_buffers"
        return parallel(learner, find_unused_parameters=unused, **{name: False})


ALONE = Ranks()


def world_size() -> int:
    """Return the number of processes that train one network."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def is_secondary() -> bool:
    """Return whether this process is one of several, but not the main process."""
    return world_size() > 1 and os.environ["RANK"] != "0"


def local_rank() -> int:
    """Return the rank of this process among the processes on this machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def refuse_several_processes(command: str) -> None:
    """Raise UserError if this process is one of several that were started to train one network."""
    if world_size() > 1:
        raise UserError(
            f"`{command}` does not run under torchrun: it has nothing to split between {world_size()} processes. Start "
            "it without torchrun. To train several runs at once, use --jobs and --executor."
        )


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the process group. This process stays in the group until it ends."""
    if world_size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if not dist.is_initialized():
            _join_group(device)
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except SharedError:
        raise
    except UserError as error:
        atexit.unregister(dist.destroy_process_group)  # it could wait for other processes
        error.add_note(ONE_PROCESS)
        raise
    except RuntimeError as error:
        atexit.unregister(dist.destroy_process_group)
        if re.search("[Cc]onnection (closed|reset)|remote process|ncclRemoteError", str(error)):
            raise SharedError("another process ended") from None
        if re.search("gloo|NCCL", str(error)):
            own = UserError(f"The processes could not communicate: {first_line(error)}")
            own.add_note(ONE_PROCESS)
            raise own from None
        raise


def _join_group(device: torch.device) -> None:
    # torchrun may use one store for all attempts: without a prefix, a process would find those of the last attempt
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generator_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def reports(error: UserError) -> bool:
    """Return whether this process prints an error, so that each error is printed once."""
    if isinstance(error, SharedError):
        return False
    if ONE_PROCESS in getattr(error, "__notes__", ()):
        return True
    return not is_secondary() or (not dist.is_initialized() and local_rank() == 0)  # once per machine


class _Together(torch.autograd.Function):
    """Gather the rows of all processes. The gradient of a row is the sum over processes, because all use this row."""

    @staticmethod
    def forward(ctx: Any, rows_BX: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.count = ranks, len(rows_BX)
        return ranks.gather(rows_BX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed_GX = ctx.ranks.sum(gradients[0].clone(memory_format=torch.contiguous_format))
        return ctx.ranks.own(summed_GX, ctx.count), None


class _Sum(torch.autograd.Function):
    """Sum over processes. The gradient is also summed over processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def synchronize_batch_norm(network: nn.Module, *, device: torch.device) -> None:
    """Let a network's batch normalization use the statistics of the global batch. Parameter names do not change.

    On CUDA, layers become PyTorch's or timm's synchronized batch normalization. timm's conversion comes first, because
    PyTorch's conversion drops the activation of timm's BatchNormAct2d. SyncBatchNorm does not support CPUs, so this
    module has its own version for CPUs.

    Raises:
        UserError: For a subclass of batch normalization that neither PyTorch nor timm can synchronize.
    """
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        is_timm = type(module).__module__.startswith("timm.") and type(module).__name__ == "BatchNormAct2d"
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and not is_timm:
            raise UserError(
                f"The layer {name} is a {type(module).__name__}, whose statistics cannot be synchronized between "
                "processes. Use --local-batch-norm: each process then uses its own statistics."
            )
        if device.type != "cuda":
            _synchronize_on_cpu(module, is_timm)
    if device.type == "cuda":
        with contextlib.suppress(ImportError):
            from timm.layers.norm_act import convert_sync_batchnorm

            convert_sync_batchnorm(network)
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _synchronize_on_cpu(module: _BatchNorm, is_timm: bool) -> None:
    """Give a module a class with the same name and another `forward`.

    A `forward` set on the instance would stay bound to the original in a deep copy.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        x = _batch_norm(self, x)
        return self.act(self.drop(x)) if is_timm else x

    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _batch_norm(module: _BatchNorm, x: Tensor) -> Tensor:
    """Normalize by the statistics of the global batch, and update the running statistics as PyTorch does."""
    if not module.training and module.running_mean is not None:
        return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # 16 bits cannot hold counts and sums
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = _Sum.apply(x.new_tensor(x.numel() / x.shape[1]))
    mean_C = _Sum.apply(x.sum(axes)) / count
    centered = x - mean_C.reshape(shape)
    var_C = _Sum.apply(centered.square().sum(axes)) / count
    if module.training and module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        with torch.no_grad():
            module.num_batches_tracked.add_(1)
            momentum = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            unbiased_C = var_C * count / (count - 1).clamp_min(1)
            module.running_mean.lerp_(mean_C.to(module.running_mean.dtype), momentum)
            module.running_var.lerp_(unbiased_C.to(module.running_var.dtype), momentum)
    normalized = centered * (var_C + module.eps).rsqrt().reshape(shape)
    if module.weight is not None:
        normalized = normalized * module.weight.reshape(shape) + module.bias.reshape(shape)
    return normalized.to(dtype)
