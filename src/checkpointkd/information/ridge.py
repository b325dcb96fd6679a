"""I(X;F) in closed form: a linear decoder from each position's neighborhood in the map to its patch of the image.

No schedule, no seeds, no steps: one ridge regression for all positions of a map, its strength chosen by generalised
cross-validation (Golub, Heath and Wahba 1979). What it leaves unexplained on unseen images gives the information in
nats by its Gaussian reading, ½(log det Σ_patch − log det Σ_residual), the mean over positions. Too few images to fit on
cost about Q·P / 2N of it and never add to it.

Letters in names: A checkpoints, N images, D map channels, C image channels, h w map height and width, H W image's, P
predictors (a neighborhood's channels), Q a patch's values, L strengths that are tried.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import EstimatorConfig
from ..data import Images
from ..errors import UserError
from ..training.loop import OnStep

PATCH = 4  # a patch has at most 4×4 values a channel; larger ones are averaged down to that
WIDEST = 4608  # predictors, at most: a 3×3 neighborhood up to 512 channels, beyond it the position alone
STRENGTHS = torch.logspace(-7, 1, 17, dtype=torch.float64)  # of the mean variance of a predictor
ROUNDING = 1 / (12 * 255**2)  # the variance of rounding to one of 256 gray levels
CHUNK = 250  # images whose neighborhoods are held at once


def ridge(
    fitted_on: Images,
    fitted_maps_ANhwD: Tensor,
    measured_on: Images,
    measured_maps_ANhwD: Tensor,
    *,
    settings: EstimatorConfig,
    on_step: OnStep | None = None,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Nats that each checkpoint's map tells of a patch: (A, 1, N), whose mean over the measured images is the estimate
    and whose spread gives its error (each image's influence on it); and the share of variance that is explained.

    Raises UserError for too few images.
    """
    information, explained, strengths = [], [], []
    fitted, measured = (
        _patches(images, maps.shape[2:4])
        for images, maps in ((fitted_on, fitted_maps_ANhwD), (measured_on, measured_maps_ANhwD))
    )
    values = fitted.shape[-1]
    if not len(measured) > 2 * values:
        raise UserError(
            f"{len(measured)} images are too few to measure with the ridge estimator: a patch has {values} values, and "
            "twice as many images are the least; the decoder can do with fewer"
        )
    fitted, measured = fitted.to(fitted_maps_ANhwD.device), measured.to(fitted_maps_ANhwD.device)
    for fitted_maps, measured_maps in zip(fitted_maps_ANhwD, measured_maps_ANhwD, strict=True):
        residual, strength = _residuals(fitted_maps, fitted, measured_maps, measured)
        centerd = measured.double() - fitted.double().mean(0)
        nats_N = _nats(centerd, residual)
        information.append(nats_N)
        explained.append(1 - residual.square().sum().item() / centerd.square().sum().item())
        strengths.append(strength)
        if on_step is not None:
            on_step(len(strengths), len(fitted_maps_ANhwD))
    return torch.stack(information)[:, None], {"explained_variance": explained, "strength": strengths}


def _nats(centerd_NhwQ: Tensor, residual_NhwQ: Tensor) -> Tensor:
    """Each image's ½(log det Σ_patch − log det Σ_residual) and its influence on that, (N,), the mean over positions.

    A position where the regression, which all share, tells less than the mean does, counts as nothing.
    """
    total_LN = 0
    for sign, values_NhwQ in ((1, centerd_NhwQ), (-1, residual_NhwQ)):
        values_LNQ = values_NhwQ.flatten(1, 2).transpose(0, 1)
        covariance = values_LNQ.mT @ values_LNQ / values_LNQ.shape[1]
        # Images are known to a gray level: rounding's own variance is no information.
        covariance = covariance + ROUNDING * torch.eye(
            covariance.shape[-1], dtype=torch.float64, device=covariance.device
        )
        factor = torch.linalg.cholesky(covariance)
        logdet_L = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        whitened_LNQ = torch.linalg.solve_triangular(factor, values_LNQ.mT, upper=False).mT
        influence_LN = whitened_LNQ.square().sum(-1) - values_LNQ.shape[-1]
        total_LN = total_LN + sign * 0.5 * (logdet_L[:, None] + influence_LN)
    assert isinstance(total_LN, Tensor)
    return torch.where(total_LN.mean(1, keepdim=True) > 0, total_LN, 0).mean(0)


def _residuals(fitted_maps: Tensor, fitted: Tensor, measured_maps: Tensor, measured: Tensor) -> tuple[Tensor, float]:
    """What the regression leaves unexplained on the measured images, (N, h, w, Q) in float64, and its strength."""
    height, width, channels = fitted_maps.shape[1:]
    reach = 1 if 9 * channels <= WIDEST and height * width > 1 else 0
    mean_hwP = _neighborhoods(fitted_maps.double().mean(0, keepdim=True), reach)[0]
    mean_hwQ = fitted.double().mean(0)
    gram_PP = cross_PQ = 0
    for maps, patches in zip(fitted_maps.split(CHUNK), fitted.split(CHUNK), strict=True):
        x = (_neighborhoods(maps, reach) - mean_hwP.float()).flatten(0, 2)
        y = (patches - mean_hwQ.float()).flatten(0, 2)
        gram_PP = gram_PP + _gram(x).double()
        cross_PQ = cross_PQ + (x.T @ y).double()
    assert isinstance(gram_PP, Tensor)
    assert isinstance(cross_PQ, Tensor)
    total = (fitted.double() - mean_hwQ).square().sum()
    count = fitted[..., 0].numel()
    root_P, vectors_PP = torch.linalg.eigh(gram_PP)
    root_P = root_P.clamp_min(0)
    power_P = (vectors_PP.T @ cross_PQ).square().sum(1)
    strength_L = STRENGTHS.to(root_P.device) * root_P.mean()
    shrunk_LP = 1 / (root_P + strength_L[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    rss_L = total - 2 * (shrunk_LP @ power_P) + (root_P * shrunk_LP**2) @ power_P
    freedom_L = (root_P * shrunk_LP).sum(1) + height * width
    # Positions of one image are no independent samples; images are, so the freedom is held against all positions.
    gcv_L = rss_L / (1 - freedom_L / count).clamp_min(1e-3) ** 2
    best = int(gcv_L.argmin())
    weights_PQ = (vectors_PP * shrunk_LP[best]) @ (vectors_PP.T @ cross_PQ)
    residuals = [
        patches - mean_hwQ - ((_neighborhoods(maps, reach) - mean_hwP.float()) @ weights_PQ.float()).double()
        for maps, patches in zip(measured_maps.split(CHUNK), measured.double().split(CHUNK), strict=True)
    ]
    return torch.cat(residuals), STRENGTHS[best].item()


def _gram(x_NP: Tensor) -> Tensor:
    """x.T @ x, of which only the blocks on and above the diagonal are computed."""
    blocks = x_NP.chunk(4, 1)
    rows = [[a.T @ b for b in blocks[number:]] for number, a in enumerate(blocks)]
    return torch.cat(
        [
            torch.cat([*(rows[above][number - above].T for above in range(number)), *rows[number]], 1)
            for number in range(len(blocks))
        ]
    )


def _neighborhoods(maps_NhwD: Tensor, reach: int) -> Tensor:
    """Each position's own channels and those around it, (N, h, w, P), zero beyond the border."""
    height, width = maps_NhwD.shape[1:3]
    padded = F.pad(maps_NhwD, (0, 0, reach, reach, reach, reach))
    shifts = range(2 * reach + 1)
    return torch.cat([padded[:, y : y + height, x : x + width] for y in shifts for x in shifts], -1)


def _patches(images: Images, size: tuple[int, ...]) -> Tensor:
    """Each position's patch of the image, (N, h, w, Q)."""
    height, width = size
    patches = []
    for chunk in images.iter_batches(CHUNK):
        side = min(PATCH, max(1, chunk.shape[2] // height)), min(PATCH, max(1, chunk.shape[3] // width))
        small = F.adaptive_avg_pool2d(chunk, (height * side[0], width * side[1]))
        cut = small.unflatten(3, (width, side[1])).unflatten(2, (height, side[0]))  # N C h y w x
        patches.append(cut.permute(0, 2, 4, 1, 3, 5).flatten(3))
    return torch.cat(patches)
