"""Find preprocessing, or an order of classes, that would clearly raise a network's accuracy.

Checkpoints often do not state their preprocessing or order of classes. A wrong guess lowers the accuracy silently.
Letters in names: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..config import ChannelOrder
from ..data import Data
from ..metrics import predict
from ..models import Network

IMAGES = 2000
GAIN = 0.05  # of accuracy; smaller gains may be chance
STANDARD_ERRORS = 5


def doubts(network: Network, data: Data) -> list[str]:
    """Return a sentence for each change that would clearly raise the accuracy, with the option to give.

    The order of classes is fitted on one half of the images and measured on the other.

    Args:
        network: The network as it was registered; it is not changed.
        data: The data set. At most 2,000 validation images are used.
    """
    images = data.val.subset(torch.linspace(0, len(data.val) - 1, min(IMAGES, len(data.val))).long())
    labels_N, count = images.labels_N, len(images)
    logits_NK = predict(network, images)
    accuracy = _accuracy(logits_NK, labels_N)
    needed = accuracy + max(GAIN, STANDARD_ERRORS * (max(accuracy * (1 - accuracy), 0.05) / count) ** 0.5)
    found = []
    for options, other in _other_readings(network):
        measured = _accuracy(predict(other, images), labels_N)
        if measured > needed:
            found.append((measured, f"With {options}, the accuracy would be {measured:.1%} instead of {accuracy:.1%}."))
    best_first = [text for _, text in sorted(found, reverse=True)]
    order_K, measured = _best_order(logits_NK, labels_N)
    if measured > needed:
        wrong = [
            name for name, number in zip(data.classes, order_K.tolist(), strict=True) if data.classes[number] != name
        ]
        which = f"{wrong[0]!r} and {wrong[1]!r} were swapped" if len(wrong) == 2 else "the classes had another order"
        best_first.append(
            f"If {which}, the accuracy would be {measured:.1%} instead of {accuracy:.1%}. Give --class-order FILE."
        )
    return best_first


def _other_readings(network: Network) -> Iterator[tuple[str, Network]]:
    """Yield options, and a copy of the network with the normalization or channel order that they choose."""
    channels = network.mean.numel()
    for mean, std in ((0.0, 1.0), (0.5, 0.5)):
        other = deepcopy(network)
        other.mean.fill_(mean)
        other.std.fill_(std)
        yield f"--mean{f' {mean:g}' * channels} --std{f' {std:g}' * channels}", other
    if channels == 3:
        order: ChannelOrder = "rgb" if network.channel_order == "bgr" else "bgr"
        mean, std = (tensor.flatten().tolist() for tensor in (network.mean, network.std))
        other = Network(network.body, mean=mean, std=std, channel_order=order)
        yield f"--channel-order {order}", other.to(network.mean.device).eval()


def _best_order(logits_NK: Tensor, labels_N: Tensor) -> tuple[Tensor, float]:
    """Return the best logit for each class, fitted on half of the images, and the accuracy on the other half."""
    classes = logits_NK.shape[1]
    first_N = torch.arange(len(labels_N)) % 2 == 0
    predicted_N = logits_NK.argmax(1)
    confusion_KK = torch.zeros(classes, classes)
    confusion_KK.index_put_((labels_N[first_N], predicted_N[first_N]), torch.ones(int(first_N.sum())), accumulate=True)
    order_K = torch.from_numpy(linear_sum_assignment(confusion_KK.numpy(), maximize=True)[1])
    return order_K, (order_K[labels_N[~first_N]] == predicted_N[~first_N]).double().mean().item()


def _accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    return (logits_NK.argmax(1) == labels_N).double().mean().item()
