"""The device that a command computes on."""

from __future__ import annotations

import re

import torch

from .config import Device
from .errors import UserError, pluralize, unknown_name
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
    if world_size() > 1 and not number and available["cuda"] and kind in ("auto", "cuda"):
        return torch.device("cuda", local_rank())
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
