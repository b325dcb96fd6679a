"""Views of small images: crops of the zero-padded image, possibly flipped; a finite set, each with a number.

The number of a view is (dy · (2·pad + 1) + dx) · 2 + flip with flips, and dy · (2·pad + 1) + dx without. dy and dx are
the offsets of the crop in the padded image; at dy = dx = pad it is the image itself. Padding is black before
normalization, and the crop precedes the flip, as in torchvision's RandomCrop and RandomHorizontalFlip.
Letters in names: N images, B batch, C channels, H W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeding import hashed_uniform


def turn(index_B: Tensor, count: int, *, seed: int, epoch: int) -> Tensor:
    """Return which of `count` fixed views each image has in this epoch. In `count` epochs, each has its turn once.

    >>> [int(turn(torch.tensor([7]), 3, seed=0, epoch=epoch)) for epoch in range(4)]
    [0, 1, 2, 0]
    """
    return (hashed_uniform(index_B, count, "turn", seed) + epoch) % count


@dataclass(frozen=True)
class Views:
    """The finite set of views of a data set.

    >>> len(Views(pad=4, flip=True)), len(Views(pad=1, flip=False))
    (162, 9)
    """

    pad: int
    flip: bool

    def __len__(self) -> int:
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def clean_view(self) -> int:
        """The number of the view that is the image itself."""
        return (self.pad * (2 * self.pad + 1) + self.pad) * (2 if self.flip else 1)

    def offsets(self, view_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dy, dx and flip (0 or 1) of these views."""
        side, flips = 2 * self.pad + 1, 2 if self.flip else 1
        return view_B // flips // side, view_B // flips % side, view_B % flips

    def draw(self, index_B: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Return the view of each image in this epoch, a function of (seed, epoch, index) alone."""
        return hashed_uniform(index_B, len(self), "view", seed, epoch)  # the key decides all results: keep it

    def fixed(self, index_N: Tensor, count: int) -> Tensor:
        """Return the numbers of `count` different views of each image (N, count). Fewer are the first of more.

        >>> views = Views(pad=4, flip=True)
        >>> torch.equal(views.fixed(torch.arange(3), 8)[:, :2], views.fixed(torch.arange(3), 2))
        True
        """
        order = [hashed_uniform(index_N, 1 << 30, "order of views", view) for view in range(len(self))]
        return torch.stack(order, 1).argsort(dim=1, stable=True)[:, :count]

    def padded(self, pixels_NCHW: Tensor) -> Tensor:
        """Return the zero-padded images, channels last (N, H + 2·pad, W + 2·pad, C), as `cut` takes them."""
        return torch.nn.functional.pad(pixels_NCHW, (self.pad,) * 4).permute(0, 2, 3, 1).contiguous()

    def cut(self, padded_NHWC: Tensor, row_B: Tensor, view_B: Tensor) -> Tensor:
        """Return these views of these rows, in one indexing, as (B, C, H, W) in channels-last memory."""
        height, width = (side - 2 * self.pad for side in padded_NHWC.shape[1:3])
        dy_B, dx_B, flip_B = self.offsets(view_B)
        y_BH = dy_B[:, None] + torch.arange(height, device=view_B.device)
        x_W = torch.arange(width, device=view_B.device)
        x_BW = dx_B[:, None] + torch.where(flip_B[:, None] == 1, width - 1 - x_W, x_W)
        return padded_NHWC[row_B[:, None, None], y_BH[:, :, None], x_BW[:, None, :]].permute(0, 3, 1, 2)
