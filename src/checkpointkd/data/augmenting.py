"""Changes of an image after its crop and flip: RandAugment, TrivialAugment and random erasing, by torchvision.

They run in worker processes. The result is a function of the keys, whatever the worker or the batch.
Letters in names: C channels, H W height and width.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..config import Augmentation
from ..errors import UserError
from ..seeding import seeded

GRAY = 127  # of erased pixels


def augmented(pixels_HWC: np.ndarray, augmentation: Augmentation, *keys: int | str) -> np.ndarray:
    """Return an image of 8 bits per channel after auto-augment and random erasing.

    Args:
        pixels_HWC: The image, uint8.
        augmentation: What is done. RandAugment does 2 operations of magnitude 9, as in its paper.
        keys: What the draws follow from, such as the seed, the epoch and the number of the image.

    Raises:
        UserError: If torchvision is absent.
    """
    with seeded("augment", *keys):
        for transform in _transforms(augmentation.auto_augment, augmentation.erasing):
            pixels_HWC = transform(pixels_HWC)
    return pixels_HWC


def transforms_v2(options: str) -> Any:
    """Return torchvision's transforms. Raises UserError, which names the options that need them, if they are absent."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError, AttributeError) as error:  # another version's operators raise all kinds
        raise UserError(
            f"{options} use torchvision, which cannot be imported ({error}). Install checkpointkd[timm], with a "
            "torchvision that fits PyTorch."
        ) from None
    return v2


@functools.cache
def _transforms(auto_augment: str, erasing: float) -> tuple[Any, ...]:
    """Return functions of an image (H, W, C), uint8."""
    import torch
    from PIL import Image

    v2 = transforms_v2("--auto-augment and --erasing")
    transforms = []
    if auto_augment != "none":
        policy = v2.RandAugment() if auto_augment == "randaugment" else v2.TrivialAugmentWide()

        def by_policy(pixels_HWC: np.ndarray) -> np.ndarray:
            is_gray = pixels_HWC.shape[2] == 1
            image = policy(Image.fromarray(pixels_HWC[..., 0] if is_gray else pixels_HWC))
            return np.array(image)[..., None] if is_gray else np.array(image)

        transforms.append(by_policy)
    if erasing > 0:
        erase = v2.RandomErasing(p=erasing, value=GRAY)

        def by_erasing(pixels_HWC: np.ndarray) -> np.ndarray:
            return erase(torch.from_numpy(pixels_HWC).permute(2, 0, 1)).permute(1, 2, 0).contiguous().numpy()

        transforms.append(by_erasing)
    return tuple(transforms)
