"""Estimate I(X;F) in closed form, by a linear decoder from a position's neighborhood in the map to its image patch.

One ridge regression serves all positions of a map. Generalized cross-validation (Golub, Heath and Wahba 1979) chooses
its strength. If patch and residual on unseen images are Gaussian, the map holds ½(log det Σ_patch − log det Σ_residual)
nats about the patch. The estimate is the mean over positions. With N images to fit on it is about Q·P / 2N too low, and
never too high on average.

Images of more than 32 pixels per side have large maps and large patches. Their channels are first reduced
to the leading principal components, and each principal component of a patch has its own strength. A component that
cannot be predicted then counts as 0 nats. With one strength for all components, the whole estimate could become 0.

Letters in names: A checkpoints, N images, D map channels, C image channels, h w map height and width, H W image height
and width, P predictors (channels of a neighborhood), Q values of a patch, L strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import EstimatorConfig
from ..data import Images, eval_batch_size
from ..errors import UserError
from ..training.loop import OnStep
from .features import is_large

PATCH = 4  # values per side and channel of a patch; larger patches are averaged down to this size
MAX_PREDICTORS = 4608  # a 3×3 neighborhood for up to 512 channels; for more channels the position alone
STRENGTHS = torch.logspace(-7, 1, 17, dtype=torch.float64)  # in units of the mean variance of a predictor
ROUNDING_VARIANCE = 1 / (12 * 255**2)  # of a pixel rounded to one of 256 gray levels
COMPONENTS = 64  # of a map's channels, for large images
ROWS_PER_PREDICTOR = 8  # at least so many rows per predictor; small maps keep fewer components
CHUNK = 125  # images whose neighborhoods are in memory at the same time


def ridge_information(
    fitted_on: Images,
    fitted_maps_ANhwD: Sequence[Tensor] | Tensor,
    measured_on: Images,
    measured_maps_ANhwD: Sequence[Tensor] | Tensor,
    *,
    settings: EstimatorConfig,
    on_step: OnStep | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Estimate the information of each checkpoint's map about an image patch, in nats.

    The arguments are those of `decoder.decoder_information`. The number of images is the only setting that matters.

    Returns:
        (A, 1, N): the mean over the N measured images is the estimate, the standard error of this mean is its error
        (each image's influence on the estimate). And for each checkpoint the `explained_variance`, a share, and the
        `strength` of the regression.

    Raises:
        UserError: If there are too few images to measure on.
    """
    information, explained, strengths = [], [], []
    fitted, measured = (
        _patches(images, maps[0].shape[1:3])
        for images, maps in ((fitted_on, fitted_maps_ANhwD), (measured_on, measured_maps_ANhwD))
    )
    values = fitted.shape[-1]
    if len(measured) <= 2 * values:
        raise UserError(
            f"{len(measured)} images are too few to measure on with the ridge estimator, which needs more than "
            f"{2 * values}: two per value of a patch. Use more images, or the decoder."
        )
    device, reduced = device or fitted_maps_ANhwD[0].device, is_large(fitted_on)
    fitted, measured = fitted.to(device), measured.to(device)
    basis_QQ = _principal_axes(fitted) if reduced else None
    if basis_QQ is not None:  # a rotation, so log det Σ does not change
        for chunk in (*fitted.split(CHUNK), *measured.split(CHUNK)):
            chunk.copy_(chunk @ basis_QQ)
    mean_hwQ = _mean(fitted)
    for fitted_maps, measured_maps in zip(fitted_maps_ANhwD, measured_maps_ANhwD, strict=True):
        prepare = _reduction(fitted_maps, device) if reduced else _on(device)
        residual, strength = _residuals(
            fitted_maps, fitted, measured_maps, measured, mean_hwQ, prepare=prepare, strength_per_value=reduced
        )
        nats_N, explained_variance = _nats(measured, residual, mean_hwQ=mean_hwQ)
        del residual  # before the next one
        information.append(nats_N)
        explained.append(explained_variance)
        strengths.append(strength)
        if on_step is not None:
            on_step(len(strengths), len(fitted_maps_ANhwD))
    return torch.stack(information)[:, None], {"explained_variance": explained, "strength": strengths}


def _nats(measured_NhwQ: Tensor, residual_NhwQ: Tensor, *, mean_hwQ: Tensor) -> tuple[Tensor, float]:
    """Return ½(log det Σ_patch − log det Σ_residual) plus each image's influence on it, (N,), the mean over positions.

    All positions share the regression. A position where it explains less than the mean patch does counts as 0 nats.
    Positions are computed one by one, to save memory. The second value is the share of the variance that is explained.
    """
    total_N = torch.zeros(len(measured_NhwQ), dtype=torch.float64, device=measured_NhwQ.device)
    residual_squares = squares = 0.0
    positions = [(y, x) for y in range(mean_hwQ.shape[0]) for x in range(mean_hwQ.shape[1])]
    for y, x in positions:
        # rounded like the residual, so that a regression that explains nothing has exactly 0 nats
        patch_NQ = (measured_NhwQ[:, y, x].double() - mean_hwQ[y, x]).to(residual_NhwQ.dtype).double()
        rest_NQ = residual_NhwQ[:, y, x].double()
        nats_N = _half_log_det(patch_NQ) - _half_log_det(rest_NQ)
        if nats_N.mean() > 0:
            total_N += nats_N
        squares += patch_NQ.square().sum().item()
        residual_squares += rest_NQ.square().sum().item()
    return total_N / len(positions), 1 - residual_squares / squares


def _half_log_det(values_NQ: Tensor) -> Tensor:
    """Return ½ log det of the covariance plus each image's influence on it, (N,)."""
    covariance = values_NQ.T @ values_NQ / len(values_NQ)
    # A pixel is known to a gray level only, so the variance of rounding is no information.
    identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    factor = torch.linalg.cholesky(covariance + ROUNDING_VARIANCE * identity)
    log_det = 2 * factor.diagonal().log().sum()
    whitened_QN = torch.linalg.solve_triangular(factor, values_NQ.T, upper=False)
    return 0.5 * (log_det + whitened_QN.square().sum(0) - len(covariance))


def _principal_axes(values_NhwQ: Tensor) -> Tensor:
    """Return the principal axes of patches, (Q, Q), the largest first. Each position has its own mean."""
    mean_hwQ = _mean(values_NhwQ).float()
    gram_QQ = 0.0
    for chunk in values_NhwQ.split(CHUNK):
        centered = (chunk - mean_hwQ).flatten(0, 2)
        gram_QQ = gram_QQ + centered.T @ centered
    assert isinstance(gram_QQ, Tensor)
    return torch.linalg.eigh(gram_QQ.double())[1].flip(1).float()


def _mean(values_NhwQ: Tensor) -> Tensor:
    """Return the mean over images, float64, without a float64 copy of all values."""
    sums = [chunk.double().sum(0) for chunk in values_NhwQ.split(CHUNK)]
    return torch.stack(sums).sum(0) / len(values_NhwQ)


def _on(device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda maps: maps.to(device)


def _reduction(fitted_maps: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from maps to the leading principal components of the fitted maps, float32, on the device."""
    count, height, width, channels = fitted_maps.shape
    mean_D = sum(chunk.to(device).float().mean((1, 2)).sum(0) for chunk in fitted_maps.split(CHUNK)) / count
    gram_DD = torch.zeros(channels, channels, device=device)
    for chunk in fitted_maps.split(CHUNK):
        centered = (chunk.to(device).float() - mean_D).flatten(0, 2)
        gram_DD += centered.T @ centered
    reach = 9 if height * width > 1 else 1
    most = max(1, min(COMPONENTS, count * height * width // (ROWS_PER_PREDICTOR * reach)))
    axes_DR = torch.linalg.eigh(gram_DD.double())[1].flip(1)[:, :most].float()
    return lambda maps: (maps.to(device).float() - mean_D) @ axes_DR


def _residuals(
    fitted_maps: Tensor,
    fitted: Tensor,
    measured_maps: Tensor,
    measured: Tensor,
    mean_hwQ: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    strength_per_value: bool,
) -> tuple[Tensor, float]:
    """Return the residuals of the regression on the measured images, (N, h, w, Q), and its strength.

    `prepare` is applied to chunks of the maps. With a strength for each value of a patch, strengths may be infinite,
    and the mean strength is returned.
    """
    sums = [prepare(maps).double().sum(0) for maps in fitted_maps.split(CHUNK)]
    mean_1hwD = torch.stack(sums).sum(0, keepdim=True) / len(fitted_maps)
    height, width, channels = mean_1hwD.shape[1:]
    reach = 1 if 9 * channels <= MAX_PREDICTORS and height * width > 1 else 0
    mean_hwP = _neighborhoods(mean_1hwD, reach)[0]
    predictors, values = mean_hwP.shape[-1], fitted.shape[-1]
    gram_PP = torch.zeros(predictors, predictors, dtype=torch.float64, device=fitted.device)
    cross_PQ = torch.zeros(predictors, values, dtype=torch.float64, device=fitted.device)
    total_Q = torch.zeros(values, dtype=torch.float64, device=fitted.device)
    for maps, patches in zip(fitted_maps.split(CHUNK), fitted.split(CHUNK), strict=True):
        x = (_neighborhoods(prepare(maps), reach) - mean_hwP.float()).flatten(0, 2)
        y = (patches - mean_hwQ.float()).flatten(0, 2)
        gram_PP = gram_PP + _gram(x).double()
        cross_PQ = cross_PQ + (x.T @ y).double()
        total_Q += (patches.double() - mean_hwQ).square().sum((0, 1, 2))
    count = fitted[..., 0].numel()
    root_P, vectors_PP = torch.linalg.eigh(gram_PP)
    root_P = root_P.clamp_min(0)
    cross_PQ = vectors_PP.T @ cross_PQ
    power_PQ = cross_PQ.square()
    if not strength_per_value:
        power_PQ, total_Q = power_PQ.sum(1, keepdim=True), total_Q.sum(0, keepdim=True)
    strengths = torch.cat([STRENGTHS, torch.tensor([torch.inf])]) if strength_per_value else STRENGTHS
    strength_L = strengths.to(root_P.device) * root_P.mean()
    shrunk_LP = 1 / (root_P + strength_L[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    rss_LQ = total_Q - 2 * (shrunk_LP @ power_PQ) + (root_P * shrunk_LP**2) @ power_PQ
    freedom_L = (root_P * shrunk_LP).sum(1) + height * width
    # Degrees of freedom are compared with all positions, though positions of one image are not independent.
    gcv_LQ = rss_LQ / (1 - freedom_L / count).clamp_min(1e-3)[:, None] ** 2
    best_Q = gcv_LQ.argmin(0)
    weights_PQ = vectors_PP @ (shrunk_LP[best_Q].T * cross_PQ)
    residuals = torch.empty_like(measured)
    chunks = zip(measured_maps.split(CHUNK), measured.split(CHUNK), residuals.split(CHUNK), strict=True)
    for maps, patches, kept in chunks:
        predicted = (_neighborhoods(prepare(maps), reach) - mean_hwP.float()) @ weights_PQ.float()
        kept.copy_(patches.double() - mean_hwQ - predicted.double())
    return residuals, strengths[best_Q].clamp_max(STRENGTHS[-1]).mean().item()


def _gram(x_NP: Tensor) -> Tensor:
    """Return x.T @ x, computing only the blocks on and above the diagonal."""
    blocks = x_NP.chunk(4, 1)
    rows = [[a.T @ b for b in blocks[number:]] for number, a in enumerate(blocks)]
    return torch.cat(
        [
            torch.cat([*(rows[above][number - above].T for above in range(number)), *rows[number]], 1)
            for number in range(len(blocks))
        ]
    )


def _neighborhoods(maps_NhwD: Tensor, reach: int) -> Tensor:
    """Return the channels of each position and of those around it, (N, h, w, P), zero beyond the border."""
    height, width = maps_NhwD.shape[1:3]
    padded = F.pad(maps_NhwD, (0, 0, reach, reach, reach, reach))
    shifts = range(2 * reach + 1)
    return torch.cat([padded[:, y : y + height, x : x + width] for y in shifts for x in shifts], -1)


def _patches(images: Images, size: tuple[int, ...]) -> Tensor:
    """Return each position's patch of the image, (N, h, w, Q)."""
    height, width = size
    patches_NhwQ, start = torch.empty(0), 0
    for chunk in images.iter_batches(min(CHUNK, eval_batch_size(images))):
        side = min(PATCH, max(1, chunk.shape[2] // height)), min(PATCH, max(1, chunk.shape[3] // width))
        small = F.adaptive_avg_pool2d(chunk, (height * side[0], width * side[1]))
        cut = small.unflatten(3, (width, side[1])).unflatten(2, (height, side[0]))  # N C h y w x
        values = cut.permute(0, 2, 4, 1, 3, 5).flatten(3)
        if start == 0:  # many small tensors between large temporary ones would fragment the memory
            patches_NhwQ = torch.empty((len(images), *values.shape[1:]))
        patches_NhwQ[start : start + len(values)] = values
        start += len(values)
    return patches_NhwQ
