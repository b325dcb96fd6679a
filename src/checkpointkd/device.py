"""The device that a command computes on."""

from __future__ import annotations

import torch

from .config import Device, check_choice
from .errors import UserError


def pick_device(device: Device) -> torch.device:
    """Return the device of this name; `auto` is the first of cuda, mps and cpu that this machine has.

    Raises:
        UserError: For an unknown name, and if this machine does not have the device.
    """
    check_choice("device", device, Device)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[device]:
        raise UserError(f"PyTorch finds no {device} device on this machine. Use --device cpu.")
    return torch.device(device)
