"""Pick the device to compute on."""

from __future__ import annotations

import torch

from .config import Device
from .errors import UserError


def pick_device(device: Device) -> torch.device:
    """The device of this name, `auto` being the best that is there; raises UserError where there is none such."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[device]:
        raise UserError(f"this machine has no {device} device that PyTorch can use; try --device cpu")
    return torch.device(device)
