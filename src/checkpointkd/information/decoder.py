"""Estimate I(X;F) as the paper does: by the loss of a decoder that reconstructs the image from its features.

§4.2 follows InfoPro (Wang et al., arXiv 2101.10832): a small decoder reconstructs the image from the last
convolutional map. With reconstruction loss R on unseen images, I(X;F) ≥ H(X) − R: a smaller R means a larger bound.

The decoders of all checkpoints and seeds train as one network. They share the pass over the images, but no weights
and no gradients, so each ends as if it were trained alone.

Letters in names: A checkpoints, S seeds, G = A·S decoders, N images, B batch, C image channels, D map channels,
O output channels, h w map height and width, H W image height and width, y x kernel height and width.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import EstimatorConfig, Recipe
from ..data import Batch, EpochLoader, Images
from ..seeding import generator
from ..training.loop import OnStep, fit, start
from .features import feature_batch_size, is_large, rows_of

HIDDEN = 12  # channels between the decoder's two convolutions, as in InfoPro
LARGE = 96  # pixels per side; larger images use InfoPro's decoder for ImageNet
SMALL_SIDE = 32  # pixels; images between this size and LARGE are averaged down to it, which takes a quarter of the time


class Decoders(nn.Module):
    """Decoders for small images: bilinear upsampling, conv3×3 D→12, batch norm, ReLU, conv3×3 12→C.

    There is one decoder for each checkpoint and seed. From a 128-channel map to 3 channels it has 14,187 parameters.
    The sigmoid is part of the loss. All decoders of one seed start from the same weights, so that the comparison of
    checkpoints is paired.

    >>> decoders = Decoders(checkpoints=1, seeds=[0], channels=128, image_channels=3, size=(32, 32))
    >>> sum(parameter.numel() for parameter in decoders.parameters())
    14187
    """

    def __init__(
        self, *, checkpoints: int, seeds: list[int], channels: int, image_channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        groups = checkpoints * len(seeds)
        self.size = size
        first = torch.cat([_initial_weights(HIDDEN, channels, 3, seed) for seed in seeds])
        second = torch.cat([_initial_weights(image_channels, HIDDEN, 3, seed) for seed in seeds])
        self.weight1 = nn.Parameter(first.repeat(checkpoints, 1, 1, 1))  # (G·12, D, 3, 3)
        self.bias1 = nn.Parameter(torch.zeros(groups * HIDDEN))
        self.bn = nn.BatchNorm2d(groups * HIDDEN)
        self.conv2 = nn.Conv2d(groups * HIDDEN, groups * image_channels, 3, padding=1, groups=groups)
        with torch.no_grad():
            self.conv2.weight.copy_(second.repeat(checkpoints, 1, 1, 1))
            assert self.conv2.bias is not None
            self.conv2.bias.zero_()

    def forward(self, maps_ABhwD: Tensor) -> Tensor:
        """Return the reconstructions before the sigmoid, (B, A·S, C, H, W), from each checkpoint's maps."""
        weight_AODyx = self.weight1.unflatten(0, (len(maps_ABhwD), -1))
        hidden = upsampled_convolution(maps_ABhwD, weight_AODyx, self.size) + self.bias1[:, None, None]
        return self.conv2(F.relu(self.bn(hidden))).unflatten(1, (self.conv2.groups, -1))


class LargeDecoders(nn.Module):
    """Decoders for large images, as InfoPro uses for ImageNet: conv1×1 D→128, then three upsampling stages.

    The stages upsample to 1/4, 1/2 and all of the image size, each followed by conv3×3: 128→32→12→C. Batch norm and
    ReLU follow all convolutions but the last. From a 512-channel map to 3 channels a decoder has 106,699 parameters.
    The rest is as in `Decoders`.

    >>> decoders = LargeDecoders(checkpoints=1, seeds=[0], channels=512, image_channels=3, size=(224, 224))
    >>> sum(parameter.numel() for parameter in decoders.parameters())
    106699
    """

    def __init__(
        self, *, checkpoints: int, seeds: list[int], channels: int, image_channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.groups = groups = checkpoints * len(seeds)
        self.sizes = [(-(-size[0] // shrink), -(-size[1] // shrink)) for shrink in (4, 2, 1)]
        widths = [128, 32, 12, image_channels]
        initial = [
            [_initial_weights(*shape, seed) for seed in seeds]
            for shape in ((128, channels, 1), (32, 128, 3), (12, 32, 3), (image_channels, 12, 3))
        ]
        self.weights = nn.ParameterList([torch.cat(of_seed).repeat(checkpoints, 1, 1, 1) for of_seed in initial])
        self.biases = nn.ParameterList([torch.zeros(groups * width) for width in widths])
        self.bns = nn.ModuleList([nn.BatchNorm2d(groups * width) for width in widths[:-1]])

    def forward(self, maps_ABhwD: Tensor) -> Tensor:
        """Return the reconstructions before the sigmoid, (B, A·S, C, H, W), from each checkpoint's maps."""
        seeds = self.groups // len(maps_ABhwD)
        weights_GOD, *weights_GODyx = (weight.unflatten(0, (self.groups, -1)) for weight in self.weights)
        maps_GBhwD = maps_ABhwD.repeat_interleave(seeds, 0)
        hidden = torch.einsum("gbhwd,god->bgohw", maps_GBhwD, weights_GOD[..., 0, 0]).flatten(1, 2)
        for stage, size in enumerate(self.sizes):
            hidden = F.relu(self.bns[stage](hidden + self.biases[stage][:, None, None]))
            maps_GBhwD = hidden.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2)
            size = (max(size[0], hidden.shape[2]), max(size[1], hidden.shape[3]))  # never shrink a map
            hidden = upsampled_convolution(maps_GBhwD, weights_GODyx[stage], size)
        return (hidden + self.biases[-1][:, None, None]).unflatten(1, (self.groups, -1))


def upsampled_convolution(maps_ABhwD: Tensor, weight_AODyx: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample A maps bilinearly (`align_corners=True`, as InfoPro does) and convolve each with its own 3×3 weights.

    Both steps are linear, so their order can change. The channels are mixed first, on the small map. Then the nine
    results are spread over the image, along x and along y. This needs a tenth of the arithmetic for 8×8 maps of 32×32
    images, and gives the same values up to float order. Channels stay last throughout, which avoids copies.

    Returns:
        (B, A·O, H, W) in channels-last memory.
    """
    checkpoints, batch, height, width, channels = maps_ABhwD.shape
    outputs = weight_AODyx.shape[1]
    weights = weight_AODyx.permute(0, 2, 4, 3, 1).reshape(checkpoints, channels, 9 * outputs)  # x, y, O
    mixed = torch.bmm(maps_ABhwD.reshape(checkpoints, -1, channels), weights)
    mixed = mixed.view(checkpoints * batch * height, width * 3, 3 * outputs)
    along_x = _spread(width, size[1], maps_ABhwD.device) @ mixed
    along_x = along_x.view(checkpoints * batch, height, size[1], 3, outputs).transpose(2, 3)
    along_y = _spread(height, size[0], maps_ABhwD.device) @ along_x.reshape(-1, height * 3, size[1] * outputs)
    spread = along_y.view(checkpoints, batch, *size, outputs).permute(1, 0, 4, 2, 3)
    return spread.reshape(batch, -1, *size).contiguous(memory_format=torch.channels_last)


@functools.cache
def _spread(small: int, large: int, device: torch.device) -> Tensor:
    """Return (large, small·3): the weight of pixel q, through kernel tap k, in pixel p of the upsampled padded line."""
    line = F.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=True)[0]
    padded = F.pad(line, (1, 1))
    return torch.stack([padded[:, tap : tap + large] for tap in range(3)], 1).flatten(0, 1).T.contiguous().to(device)


def _initial_weights(out_channels: int, in_channels: int, side: int, seed: int) -> Tensor:
    """Draw weights from InfoPro's initialization, N(0, 2 / (k·k·out))."""
    normal = torch.randn(out_channels, in_channels, side, side, generator=generator("decoder", seed, out_channels))
    return normal * math.sqrt(2 / (side**2 * out_channels))


class Reconstruction(nn.Module):
    """Objective: each decoder reconstructs the images of the batch from its checkpoint's features."""

    def __init__(self, maps_ANhwD: Sequence[Tensor] | Tensor, row_of_index: Tensor) -> None:
        super().__init__()
        self.maps_ANhwD, self.row_of_index = maps_ANhwD, row_of_index

    def forward(self, model: nn.Module, batch: Batch, train_fraction: float) -> tuple[Tensor, None]:
        rows_B = self.row_of_index[batch.index_B.to(self.row_of_index.device)]
        maps_ABhwD = rows_of(self.maps_ANhwD, rows_B, batch.images_BCHW.device)
        loss_BG = reconstruction_loss(model(maps_ABhwD), decoded_images(batch.images_BCHW))
        return loss_BG.sum(1), None  # not the mean: a gradient must not depend on the number of decoders


def reconstruction_loss(reconstruction_BGCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Return the binary cross-entropy of each image under each decoder, (B, G), in nats per pixel and channel.

    Args:
        reconstruction_BGCHW: The decoders' output before the sigmoid.
        images_BCHW: The images, in [0, 1].

    >>> round(reconstruction_loss(torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item(), 3)  # log 2: p = 1/2
    0.693
    """
    target = images_BCHW[:, None].expand_as(reconstruction_BGCHW)
    return F.binary_cross_entropy_with_logits(reconstruction_BGCHW, target, reduction="none").mean((2, 3, 4))


def decoded_size(height: int, width: int) -> tuple[int, int]:
    """Return the size at which images are reconstructed.

    >>> decoded_size(32, 32), decoded_size(64, 64), decoded_size(64, 96), decoded_size(224, 224)
    ((32, 32), (32, 32), (21, 32), (224, 224))
    """
    shrink = 1 if max(height, width) > LARGE else max(1, max(height, width) // SMALL_SIDE)
    return height // shrink, width // shrink


def decoded_images(images_BCHW: Tensor) -> Tensor:
    """Return the images at the size at which they are reconstructed."""
    height, width = images_BCHW.shape[2:]
    size = decoded_size(height, width)
    return images_BCHW if size == (height, width) else F.adaptive_avg_pool2d(images_BCHW, size)


def pixel_entropy(images_NCHW: Tensor) -> Tensor:
    """Return the lowest reconstruction loss that any decoder can reach on each image, (N,), in nats per pixel.

    The binary cross-entropy of a pixel of value v is at least v's own entropy, −v·log v − (1−v)·log(1−v).

    >>> round(pixel_entropy(torch.full((1, 1, 2, 2), 0.5)).item(), 3)
    0.693
    """
    return -(torch.xlogy(images_NCHW, images_NCHW) + torch.xlogy(1 - images_NCHW, 1 - images_NCHW)).mean((1, 2, 3))


def decoder_information(
    fitted_on: Images,
    fitted_maps_ANhwD: Sequence[Tensor] | Tensor,
    measured_on: Images,
    measured_maps_ANhwD: Sequence[Tensor] | Tensor,
    *,
    settings: EstimatorConfig,
    on_step: OnStep | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Estimate I(X;F) by decoders (§4.2): fit them on clean images and measure their loss on other images.

    Args:
        fitted_on: Images that the decoders are fitted on.
        fitted_maps_ANhwD: The maps of these images, from A checkpoints.
        measured_on: Images that the loss is measured on.
        measured_maps_ANhwD: The maps of these images.
        settings: The decoders' number of seeds, steps, batch size and learning rate.
        on_step: Progress callback, (steps done, steps in all).
        device: Where to compute. Default: the device of the maps.

    Returns:
        The negative excess of the loss over its minimum, (A, S, N), and the mean `reconstruction_loss` of each
        checkpoint, both in nats per pixel and channel. For large images also the
        `gain` over the best constant image.
    """
    device = device or fitted_maps_ANhwD[0].device
    decoders = _fit_decoders(fitted_on, fitted_maps_ANhwD, settings, on_step, device)
    losses, start = [], 0
    with torch.no_grad():
        # A larger chunk would not fit a processor's cache.
        small = device.type == "cpu" or is_large(measured_on)
        chunk_size = min(settings.batch_size, len(fitted_on)) if small else 500
        for images_BCHW in measured_on.iter_batches(chunk_size):
            maps_ABhwD = rows_of(measured_maps_ANhwD, slice(start, start + len(images_BCHW)), device)
            losses.append(reconstruction_loss(decoders(maps_ABhwD), decoded_images(images_BCHW).to(device)))
            start += len(images_BCHW)
    loss_ASN = torch.cat(losses).T.unflatten(0, (len(fitted_maps_ANhwD), settings.seeds)).double().cpu()
    details = {"reconstruction_loss": loss_ASN.mean((1, 2)).tolist()}
    if is_large(measured_on):
        details["gain"] = (_blank_loss(fitted_on, measured_on) - loss_ASN.mean((1, 2))).tolist()
    return _minimal_loss(measured_on) - loss_ASN, details


def _fit_decoders(
    images: Images,
    maps_ANhwD: Sequence[Tensor] | Tensor,
    settings: EstimatorConfig,
    on_step: OnStep | None,
    device: torch.device,
) -> nn.Module:
    """Return decoders of all checkpoints and seeds, fitted on these images, in evaluation mode."""
    image_channels, *size = images.shape
    height, width = decoded_size(*size)
    kind = LargeDecoders if max(height, width) > LARGE else Decoders
    decoders = kind(
        checkpoints=len(maps_ANhwD),
        seeds=list(range(settings.seeds)),
        channels=maps_ANhwD[0].shape[-1],
        image_channels=image_channels,
        size=(height, width),
    )
    batch_size = min(settings.batch_size, len(images))
    batches = images.batches(batch_size=batch_size, seed=0, device=device, augmentation=None)
    row_of_index = torch.full((int(images.index_N.max()) + 1,), -1)
    row_of_index[images.index_N] = torch.arange(len(images))
    objective = Reconstruction(maps_ANhwD, row_of_index.to(maps_ANhwD[0].device))
    # One epoch of this recipe has `settings.steps` steps, whatever the number of images.
    recipe = Recipe(
        epochs=1,
        batch_size=batch_size,
        optimizer="adam",
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
    )
    state = start(decoders, objective, recipe, device=device)
    for _ in fit(state, Steps(batches, settings.steps), recipe=recipe, seed=0, on_step=on_step):
        pass
    return decoders.eval()


@functools.lru_cache(maxsize=1)
def _blank_loss(fitted_on: Images, measured_on: Images) -> float:
    """Return the mean loss of the best constant reconstruction, which is the mean of the images to fit on."""
    size = feature_batch_size(fitted_on) // 4 + 1
    sums = torch.stack([decoded_images(chunk).double().sum(0) for chunk in fitted_on.iter_batches(size)])
    mean_CHW = sums.sum(0) / len(fitted_on)
    logits_GCHW = torch.logit(mean_CHW, eps=1e-6).float()[None]
    losses = [
        reconstruction_loss(logits_GCHW.expand(len(chunk), -1, -1, -1, -1), decoded_images(chunk)).double().sum()
        for chunk in measured_on.iter_batches(size)
    ]
    return torch.stack(losses).sum().item() / len(measured_on)


@functools.lru_cache(maxsize=1)
def _minimal_loss(images: Images) -> Tensor:
    """Return the lowest possible reconstruction loss of each image, (N,), float64."""
    size = feature_batch_size(images) // 4 + 1 if is_large(images) else feature_batch_size(images)
    return torch.cat([pixel_entropy(decoded_images(chunk).double()) for chunk in images.iter_batches(size)])


@dataclass(frozen=True)
class Steps:
    """One epoch of `count` batches, which passes over the images as often as needed."""

    batches: EpochLoader
    count: int

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        passes = itertools.chain.from_iterable(map(self.batches.epoch, itertools.count()))
        return itertools.islice(passes, start, self.count)
