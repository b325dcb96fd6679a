"""Pick the device to compute on."""

from __future__ import annotations

import torch

from .config import Device
from .errors import UserError


def pick_device(device: Device) -> torch.device:
    """Return the device of this name; `auto` is the best available. Raises UserError if there is none of this name."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[device]:
        raise UserError(f"This machine has no {device} device that PyTorch can use. Try --device cpu.")
    return torch.device(device)
