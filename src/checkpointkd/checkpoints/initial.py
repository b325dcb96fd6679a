"""Weights that a network starts from: timm's pretrained ones, a checkpoint reference, or a file of any trainer."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..errors import UserError, check_exists
from ..models import Network
from ..storage import content_hash
from .refs import resolve
from .weights import differing_shapes, opened_tensors, weights

log = logging.getLogger("checkpointkd")

PRETRAINED = "pretrained"
Build = Callable[[int, bool], Network]  # receives the number of classes, and whether to start from timm's weights


def initial_network(init: str | None, build: Build, *, classes: int, model: str) -> tuple[Network, str | None]:
    """Return the network before its training, and the identity of the weights that it starts from.

    Args:
        init: `pretrained`, a checkpoint reference, or a file or folder of weights. None: random weights.
        build: Builds the network for a number of classes.
        classes: The number of classes of the data.
        model: The network's name, for messages.

    Raises:
        UserError: If there are no such weights, or if they differ in more than the classifier.
    """
    if init is None:
        return build(classes, False), None
    if init == PRETRAINED:
        network = build(classes, True)
        return network, content_hash(network.body.state_dict())
    network = build(classes, False)
    wanted = network.body.state_dict()

    @functools.cache
    def classifier() -> list[str]:
        """Return the names of the tensors whose size depends on the number of classes."""
        other = build(classes + 1, False).body.state_dict()
        return [name for name in wanted if other[name].shape != wanted[name].shape]

    tensors = _tensors(init, network, build, classifier, classes, model)
    fresh = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    if fresh:
        fresh = [name for name in classifier() if name in fresh]
    kept = {name: tensor for name, tensor in tensors.items() if name not in fresh}
    differing = differing_shapes({name: wanted[name] for name in wanted if name not in fresh}, kept)
    if differing:
        raise UserError(f"{init} does not fit {model}: {differing}")
    network.body.load_state_dict({**wanted, **kept})
    if fresh:
        log.info("%s starts from %s with a fresh classifier (%s)", model, init, ", ".join(fresh))
    return network, content_hash(kept)


def _tensors(
    init: str, network: Network, build: Build, classifier: Callable[[], list[str]], classes: int, model: str
) -> dict[str, Tensor]:
    """Return the tensors of a network like this one, whose classifier may have another number of classes."""
    path = Path(init)
    if not os.path.exists(init) or (path / "run.json").exists():
        if "@" not in init and not path.exists():
            check_exists(path, "file of weights")
        checkpoint = resolve(init).checkpoint
        return dict(checkpoint.network().body.state_dict())
    try:
        return weights(path, network.body, key=None, model=model).tensors
    except UserError as error:
        errors = [error]
    with opened_tensors(path) as flat:
        sizes = {plan.shape[0] for name, plan in flat.items() if name.endswith(tuple(classifier())) and plan.shape}
    for size in () if classes in sizes else sorted(sizes):
        try:
            return weights(path, build(size, False).body, key=None, model=model).tensors
        except UserError as error:
            errors.append(error)
    raise errors[1] if len(errors) > 1 else errors[0]  # the file's own number of classes says more
