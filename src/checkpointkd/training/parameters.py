"""How a network's parameters are grouped for the optimizer, and how their moving average is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..config import Recipe
from ..errors import UserError


def parameter_groups(model: nn.Module, objective: nn.Module, recipe: Recipe) -> list[Any]:
    """Return the parameters of a network and its objective as an optimizer takes them.

    A group's learning rate is the schedule's times its `lr_scale`.

    Raises:
        UserError: If the recipe has a layer decay, and timm does not know the network's layers.
    """
    parameters = [*model.parameters(), *objective.parameters()]
    if recipe.layer_decay is not None:
        return [*_groups_by_layer(model, recipe, recipe.layer_decay), {"params": list(objective.parameters())}]
    if recipe.decay_all:
        return parameters
    exempt = _exempt_from_decay(model)
    decayed = [parameter for parameter in parameters if parameter.dim() > 1 and id(parameter) not in exempt]
    others = [parameter for parameter in parameters if parameter.dim() <= 1 or id(parameter) in exempt]
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def _groups_by_layer(model: nn.Module, recipe: Recipe, layer_decay: float) -> list[dict[str, Any]]:
    body: Any = getattr(model, "body", model)
    if not callable(getattr(body, "group_matcher", None)):
        raise UserError(
            f"--layer-decay {layer_decay:g} needs a network of timm, which knows the order of its layers. Leave it out."
        )
    from timm.optim._param_groups import param_groups_layer_decay

    exempt = body.no_weight_decay() if callable(getattr(body, "no_weight_decay", None)) else ()
    return param_groups_layer_decay(
        body, weight_decay=recipe.weight_decay, no_weight_decay_list=tuple(exempt), layer_decay=layer_decay
    )


def _exempt_from_decay(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that a network of timm exempts, such as class tokens."""
    body: Any = getattr(model, "body", model)
    names = body.no_weight_decay() if callable(getattr(body, "no_weight_decay", None)) else ()
    return {id(parameter) for name, parameter in body.named_parameters() if name in names}


def decay_after(steps: int, decay: float) -> float:
    """Return the decay of the moving average after this many steps. It grows, so that the first weights are forgotten.

    >>> decay_after(0, 0.999), decay_after(10**6, 0.999)
    (0.1, 0.999)
    """
    return min(decay, (1 + steps) / (10 + steps))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average of weights and statistics toward the model's: average = decay · average + (1 − decay) · model."""
    old, new = average.state_dict(), model.state_dict()
    each = set({tensor.data_ptr(): name for name, tensor in old.items()}.values())  # tied weights move once
    moving = [name for name in new if name in each and new[name].is_floating_point()]
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name in moving:
        targets, values = by_type.setdefault(new[name].dtype, ([], []))
        targets.append(old[name])
        values.append(new[name])
    for targets, values in by_type.values():
        get_ema_multi_avg_fn(decay)(targets, values, 0)
    for name in each - set(moving):
        old[name].copy_(new[name])
