"""Which layer has the features: the last map or token grid that the logits depend on, by gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from checkpointkd.errors import UserError
from checkpointkd.models import as_map, build_network, capture_activations, last_map_path, stage_paths, vector_path
from checkpointkd.models.network import Network

CONVOLUTIONAL = {  # timm network: the layer before and after gradients decided, and its stages, at 64 pixels
    "resnet34": ("global_pool.pool:input", "layer1 layer2 layer3 layer4"),
    "resnet50": ("global_pool.pool:input", "layer1 layer2 layer3 layer4"),
    "mobilenetv2_100": ("global_pool.pool:input", "blocks.1 blocks.2 blocks.4 bn2"),
    "mobilenetv3_large_100": ("global_pool.pool:input", "blocks.1 blocks.2 blocks.4 blocks.6"),
    "efficientnet_b0": ("global_pool.pool:input", "blocks.1 blocks.2 blocks.4 bn2"),
    "convnext_atto": ("head.global_pool.pool:input", "stages.0 stages.1 stages.2 norm_pre"),
    "densenet121": (
        "global_pool.pool:input",
        "features.denseblock1 features.denseblock2 features.denseblock3 features.norm5",
    ),
    "regnety_004": ("head.global_pool.pool:input", "s1 s2 s3 final_conv"),
    "repvgg_a0": ("head.global_pool.pool:input", "stages.0 stages.1 stages.2 final_conv"),
    "ghostnet_100": ("global_pool.pool:input", "blocks.2 blocks.4 blocks.6 blocks.9"),
    "hrnet_w18_small": (
        "global_pool.pool:input",
        "incre_modules.0 downsamp_modules.0.2 downsamp_modules.1.2 final_layer",
    ),
    "dla34": ("global_pool.pool:input", "level2 level3 level4 level5"),
    "resnetv2_50": ("head.global_pool.pool:input", "stages.0 stages.1 stages.2 norm"),
    "repvit_m0_9": ("stages", "stages.0 stages.1 stages.2 stages.3"),
}
SMALL = "img_size=64&patch_size=16&embed_dim=48&depth=3&num_heads=3"
TRANSFORMERS = {  # network: the layer, and a later one whose patch tokens the logits do not depend on
    f"timm:vit_tiny_patch16_224?{SMALL}": ("blocks.1", "norm"),
    f"timm:vit_tiny_patch16_224?{SMALL}&reg_tokens=4": ("blocks.1", "norm"),
    f"timm:deit_tiny_distilled_patch16_224?{SMALL}": ("blocks.1", "blocks.2"),
    f"timm:vit_tiny_patch16_224?{SMALL}&init_values=1e-6": ("blocks.1", "norm"),
    f"timm:vit_tiny_patch16_224?{SMALL}&global_pool=avg": ("norm", None),
    f"timm:vit_tiny_patch16_224?{SMALL}&global_pool=avg&class_token=false": ("norm", None),
    f"timm:vit_base_patch16_siglip_224?{SMALL}": ("attn_pool.kv", None),
    f"timm:vit_tiny_patch16_224?{SMALL}&weight_init=jax": ("blocks.1", "norm"),  # its head starts at zero
    "timm:cait_xxs24_224?img_size=64&depth=3&embed_dim=48&num_heads=3": ("blocks", None),
    "timm:mixer_s16_224?img_size=64": ("norm", None),
    "timm:pit_ti_224?img_size=64": ("transformers.2.blocks.2", "transformers.2.blocks.3"),
    "timm:levit_128s?img_size=64": ("stages.1", None),
    "timm:swin_tiny_patch4_window7_224?img_size=64&window_size=4&embed_dim=24": ("head.global_pool.pool:input", None),
    "timm:convit_tiny?img_size=64": ("blocks.10", "blocks.11"),
    "ViT": ("vit.layers.1", "vit.layernorm"),
    "DeiT": ("deit.layers.1", "deit.layernorm"),
    "Dinov2": ("dinov2.layernorm", None),
    "Beit": ("beit.layernorm", None),
}


def _body(name: str) -> nn.Module:
    if name.startswith("timm:"):
        return build_network(name, num_classes=5, in_channels=3, mean=[0.5] * 3, std=[0.5] * 3).body
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_labels=5,
    )
    return getattr(transformers, f"{name}ForImageClassification")(config)


def _gradient(body: nn.Module, images: Tensor, path: str) -> Tensor:
    """Return the gradient of random combinations of the logits at the positions of a layer, (B, h, w)."""
    for parameter in body.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    network = Network(body.eval(), mean=[0.0] * 3, std=[1.0] * 3)
    values = []
    name, _, side = path.partition(":")
    module = body.get_submodule(name)
    if side:
        handle = module.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0]))
    else:
        handle = module.register_forward_hook(
            lambda _, __, output: values.append(output[0] if isinstance(output, tuple) else output)
        )
    logits = network(images.clone().requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), values[-1])
    gradient_BhwD = as_map(gradient, (images.shape[2], images.shape[3]))
    assert gradient_BhwD is not None
    return gradient_BhwD.abs().sum(-1)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_keep_their_layers(name: str):
    path, stages = CONVOLUTIONAL[name]
    body, images = _body(f"timm:{name}"), torch.rand(2, 3, 64, 64)
    assert last_map_path(body, images) == path
    assert stage_paths(body, images) == stages.split()


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_logits_depend_on_every_position_of_the_layer_and_on_none_after_it(name: str):
    path, later = TRANSFORMERS[name]
    body, images = _body(name), torch.rand(2, 3, 64, 64)
    assert last_map_path(body, images) == path
    assert (_gradient(body, images, path) > 0).all()
    assert later is None or _gradient(body, images, later).max() == 0
    if ":" not in path:
        assert path.startswith(stage_paths(body, images)[-1])


def test_the_choice_changes_no_weight_no_gradient_and_no_mode():
    body = _body(f"timm:vit_tiny_patch16_224?{SMALL}")
    body.train()
    body.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert last_map_path(body, torch.rand(2, 3, 64, 64, generator=torch.Generator())) == "blocks.1"
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in body.state_dict().items())
    assert body.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in body.parameters())


class FrozenBackbone(nn.Module):
    """A network that computes its features without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            vector = self.pool(self.conv(images)).flatten(1)
        return self.head(vector)


class Unread(nn.Module):
    """A network with a convolution whose output the logits do not depend on, and softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        self.second(maps)
        return self.head(maps.mean((2, 3))).softmax(-1)


def test_networks_without_gradients_keep_the_order_of_their_layers():
    images = torch.rand(2, 3, 16, 16)
    assert last_map_path(FrozenBackbone(), images) == "pool:input"
    with torch.no_grad():
        assert last_map_path(Unread(), images) == "first"
    with torch.inference_mode():
        assert last_map_path(FrozenBackbone(), images) == "pool:input"


def test_tokens_lie_row_by_row_after_the_class_token():
    body, images = _body(f"timm:vit_tiny_patch16_224?{SMALL}"), torch.rand(2, 3, 64, 64)
    with capture_activations(body, ["blocks.1"]) as activations:
        body(images)
    map_BhwD = as_map(activations["blocks.1"], (64, 64))
    assert map_BhwD is not None
    assert map_BhwD.shape == (2, 4, 4, 48)
    assert torch.equal(map_BhwD[:, 3, 2], activations["blocks.1"][:, 1 + 4 * 3 + 2])


def test_tokens_of_images_that_are_not_square():
    body, images = _body(f"timm:vit_tiny_patch16_224?{SMALL}".replace("=64", "=[64,96]")), torch.rand(2, 3, 64, 96)
    path = last_map_path(body, images)
    assert path == "blocks.1"
    with capture_activations(body, [path]) as activations:
        body(images)
    map_BhwD = as_map(activations[path], (64, 96))
    assert map_BhwD is not None
    assert map_BhwD.shape == (2, 4, 6, 48)


def test_a_grid_of_patches_that_are_not_square_is_refused_not_misread():
    """98 = 14×7 tokens are not 8 prefix tokens and 9×10 patches."""
    body = _body(f"timm:vit_tiny_patch16_224?{SMALL}".replace("patch_size=16", "patch_size=[16,8]"))
    assert as_map(torch.zeros(2, 98, 4), (224, 224)) is None
    with pytest.raises(UserError, match=r"has no map or grid of square patches .* --feature-layer"):
        last_map_path(body, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_outputs_of_transformers_are_captured(name: str):
    body, images = _body(name), torch.rand(2, 3, 64, 64)
    path = name.lower()
    with capture_activations(body, [path, f"{path}.layernorm"]) as activations:
        body(images)
    assert torch.equal(activations[path], activations[f"{path}.layernorm"])
    assert vector_path(body, images) == "classifier:input"
