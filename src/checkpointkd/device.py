"""The device that a command computes on."""

from __future__ import annotations

import re

import torch

from .config import Device, Precision
from .errors import UserError, first_line, pluralize, unknown_name
from .ranks import local_rank, world_size

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(device: Device) -> torch.device:
    """Return the device of this name; `auto` is the first of cuda, mps and cpu that this machine has.

    `cuda:N` is GPU number N, counted from 0.

    Raises:
        UserError: For an unknown name, and if this machine does not have the device.
    """
    kind, _, number = device.partition(":") if re.fullmatch(r"cuda:\d+", device) else (device, "", "")
    if kind not in DEVICES:
        raise unknown_name("device", device, (*DEVICES, "cuda:N"))
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if world_size() > 1 and kind != "cpu":
        return _device_of_rank(device)
    if kind == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[kind]:
        raise UserError(f"PyTorch finds no {kind} device on this machine. Use --device cpu.")
    if number and int(number) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(
            f"This machine has {pluralize(count, 'GPU')}, so there is no {device}. Use --device cuda:{count - 1}."
        )
    return torch.device(device)


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """Return the context in which networks compute in this precision."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, half, enabled=precision != "fp32")


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device that a user's own loop names. Raises UserError if PyTorch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise UserError(f"The device {str(device)!r} cannot be used: {first_line(error)}") from None


def _device_of_rank(device: Device) -> torch.device:
    """Return the GPU of one of several processes that train one network; the CPU if there is no GPU.

    Raises:
        UserError: If the processes cannot use the device together, or if the GPUs are too few.
    """
    if device not in ("auto", "cuda"):
        raise UserError(f"--device {device} cannot be shared by {world_size()} processes. Use cuda, cpu or auto.")
    count = torch.cuda.device_count()
    if count == 0 and device == "cuda":
        raise UserError("PyTorch finds no cuda device on this machine. Use --device cpu.")
    if count == 0:
        return torch.device("cpu")
    number = 0 if count == 1 else local_rank()  # SLURM may show each process its own GPU only
    if number >= count:
        raise UserError(
            f"Process {local_rank()} of this machine has no GPU: the machine has {pluralize(count, 'GPU')}. Start "
            f"{count} processes per machine."
        )
    return torch.device("cuda", number)
