"""The same tests for every network; a new network is one line in NETWORKS."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from checkpointkd.errors import UserError
from checkpointkd.models import (
    MODELS,
    Network,
    as_map,
    build_network,
    capture_activations,
    check_trainable,
    last_map_path,
    stage_paths,
    vector_path,
)

NETWORKS = [
    "wrn_10_1",
    "wrn_16_2",
    "resnet_8",
    "resnet_20",
    "mobilenetv2_0.75",
    "mobilenetv2_1.4",
    "timm:resnet18",
    "timm:mobilenetv2_100",
    "tests.models.test_models:small_net",
    "tests.models.test_models:no_pooling",
]


def small_net(*, num_classes: int, in_channels: int) -> nn.Module:
    """A user's network, unmodified."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


class FunctionalPooling(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.activation = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.activation(self.conv(x)).mean((2, 3)))


class TenGrayClasses(nn.Module):
    """A network whose class takes no sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1))


def only_classes(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def any_options(**options: int) -> nn.Module:
    return small_net(**options)


def no_pooling(*, num_classes: int, in_channels: int) -> nn.Module:
    """A user's network that pools without a module."""
    return FunctionalPooling(num_classes, in_channels)


def _build(name: str, classes: int = 10, channels: int = 3, seed: int = 0) -> Network:
    half = [0.5] * channels
    return build_network(name, num_classes=classes, in_channels=channels, mean=half, std=half, seed=seed)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("classes", "channels", "side"), [(10, 1, 8), (100, 3, 32), (2, 4, 16), (200, 3, 64)])
def test_shapes_and_gradients_reach_every_parameter(name: str, classes: int, channels: int, side: int):
    network = _build(name, classes, channels)
    logits = network(torch.rand(4, channels, side, side))
    assert logits.shape == (4, classes)
    logits.square().sum().backward()
    without_gradient = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without_gradient == []


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_depend_on_the_seed_only_and_leave_the_global_generator_alone(name: str):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    seed3, seed3_again, seed4 = (_build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(seed3[key], seed3_again[key]) for key in seed3)
    assert any(not torch.equal(seed3[key], seed4[key]) for key in seed3)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_and_state_dict_round_trip(name: str):
    network, copy = _build(name).eval(), _build(name, seed=1).eval()
    images = torch.rand(4, 3, 16, 16)
    expected = network(images)
    copy.load_state_dict(network.state_dict())
    copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(copy(images.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_map_is_what_the_classifier_pools(name: str):
    network = _build(name).eval()
    images = torch.rand(2, 3, 64, 64)
    path = last_map_path(network.body, images)
    with capture_activations(network.body, [path]) as activations:
        logits = network(images)
    assert activations[path].dim() == 4
    assert activations[path].min() >= 0, "the map must follow the activation"
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(head(activations[path].mean((2, 3))), logits)
    assert network.body.training is False


def test_the_exam_covers_every_family():
    assert {name.partition("_")[0] for name in MODELS} == {"wrn", "resnet", "mobilenetv2"}
    for family in MODELS:
        assert any(name.startswith(family.partition("_")[0] + "_") for name in NETWORKS), family


COUNTS = {
    "wrn_40_2": 2_255_156,
    "wrn_40_1": 569_780,
    "resnet_110": 1_733_812,
    "resnet_32": 470_004,
    "mobilenetv2_0.75": 1_475_692,
}


def test_mobilenet_has_the_published_flops_at_32_pixels():
    """26.5 MFLOP, counting a multiplication and an addition as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _build("mobilenetv2_0.75", 100).eval()(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 1e6 == pytest.approx(26.5, abs=0.1)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts_are_the_papers(name: str, count: int):
    assert sum(parameter.numel() for parameter in _build(name, 100).parameters()) == count


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_parameter_counts_of_timm_networks_at_1000_classes(name: str, count: int):
    assert sum(parameter.numel() for parameter in _build(f"timm:{name}", 1000).parameters()) == count


def test_a_torchvision_of_another_build_gives_a_user_error():
    """In a process without the schemas that conftest.py declares; skipped where torchvision imports without them."""
    script = """
from checkpointkd.errors import UserError
from checkpointkd.models import build_network
try:
    build_network("timm:resnet18", num_classes=10, in_channels=3, mean=[0.5] * 3, std=[0.5] * 3)
except UserError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    if not process.stdout:
        pytest.skip("torchvision fits this PyTorch")
    assert "'timm:resnet18' needs timm and a torchvision of the same build (CPU or CUDA) as PyTorch" in process.stdout
    assert "pip install 'checkpointkd[timm]'" in process.stdout
    assert process.stdout.count("\n") == 1


def test_normalization_is_the_networks_first_step():
    network = build_network("wrn_10_1", num_classes=10, in_channels=1, mean=[0.25], std=[0.5]).eval()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(images), network.body((images - 0.25) / 0.5))
    assert {"mean", "std"} <= network.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn_16", r"(?i)unknown model 'wrn_16'.*did you mean 'wrn_D_K'\?"),
        ("resnet_33", r"Unknown model 'resnet_33'\. .* have 6n \+ 2 layers: did you mean resnet_32\?"),
        ("resnet_18", r"Unknown model 'resnet_18'\. .*: did you mean resnet_20 or timm:resnet18\?"),
        ("resnet_2", r"Unknown model 'resnet_2'\. .*: did you mean resnet_8\?"),
        ("mobilenetv2_0.01", r"Unknown model 'mobilenetv2_0.01'\. The width must be from 0.1 to 4"),
        ("timm:resnet19", r"(?i)unknown timm model 'resnet19'.*did you mean .*resnet18"),
        ("wrn_17_2", r"Unknown model 'wrn_17_2'\. .* 6n \+ 4 layers .*: did you mean wrn_16_2\?"),
        ("wrn_16_0", r"Unknown model 'wrn_16_0'\. .*: did you mean wrn_16_1\?"),
        ("nowhere.module:net", "cannot be imported: No module named 'nowhere'"),
        ("tests.models.test_models:nothing", "cannot be imported"),
        ("builtins:dict", "returned a dict, not a torch.nn.Module"),
        ("math:sqrt", "cannot be called with num_classes= and in_channels="),
    ],
)
def test_a_wrong_name_gives_a_user_error_with_the_way_out(name: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        _build(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["TenGrayClasses", "only_classes", "any_options"])
def test_a_factory_takes_the_sizes_that_it_has_parameters_for(name: str):
    assert _build(f"tests.models.test_models:{name}", channels=1)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_model_without_logits_cannot_be_trained():
    network = _build("wrn_10_1", classes=10)
    message = r"Model 'net' cannot be trained .*: the output has shape \(2, 10\), expected logits of shape \(2, 9\)"
    with pytest.raises(UserError, match=message):
        check_trainable(network, torch.rand(2, 3, 8, 8), classes=9, model="net")
    network.body = nn.LSTM(8, 8)
    with pytest.raises(UserError, match="Model 'net' cannot be trained"):
        check_trainable(network, torch.rand(2, 3, 8, 8), classes=9, model="net")


def test_an_unknown_module_path_lists_the_modules():
    network = _build("wrn_10_1")
    with (
        pytest.raises(UserError, match=r"no module 'stage9'\. Did you mean 'stage3'.*stage2"),
        capture_activations(network.body, ["stage9"]),
    ):
        pass


def test_a_model_without_a_map_names_the_option():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=r"has no map or grid .*\. Name a module .* with --feature-layer"):
        last_map_path(flat, torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match="with --student-features"):
        vector_path(nn.Flatten(), torch.rand(2, 1, 8, 8), option="--student-features")


def test_the_last_map_of_a_network_with_functional_pooling_and_relu():
    """As in pytorch-cifar's ResNet, an empty shortcut is a leaf module that receives an earlier map."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shortcut = nn.Conv2d(4, 4, 3, padding=1), nn.Sequential()

        def forward(self, x):
            return torch.relu(self.conv(x) + self.shortcut(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(Block(), Block())
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            self.pooled = self.blocks(self.stem(x))
            return self.head(nn.functional.avg_pool2d(self.pooled, 8).flatten(1))

    network, images = Net(), torch.rand(2, 1, 8, 8)
    path = last_map_path(network, images)
    with capture_activations(network, [path]) as activations:
        network(images)
    assert path == "blocks"
    assert torch.equal(activations[path], network.pooled)


def test_the_last_map_is_found_inside_a_submodule_that_pools():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 10)
    )
    assert last_map_path(network, torch.rand(2, 1, 8, 8)) == "0.1:input"


def test_attention_weights_and_complex_values_are_not_maps():
    assert as_map(torch.rand(2, 2, 101, 32), (160, 160)) is None
    assert as_map(torch.rand(2, 4, 8, 8).to(torch.complex64), (32, 32)) is None


def test_channels_last_maps_are_recognized_by_the_images_proportions():
    map_BDhw = torch.rand(2, 5, 3, 6)
    expected = map_BDhw.permute(0, 2, 3, 1)
    for features in (map_BDhw, expected):
        map_BhwD = as_map(features, (32, 64))
        assert map_BhwD is not None
        assert torch.equal(map_BhwD, expected)
    assert as_map(torch.rand(2, 7), (32, 32)) is None
    assert as_map(torch.rand(2, 2, 7), (32, 32)) is None


def test_a_module_whose_output_is_not_a_tensor_is_refused():
    class Named(nn.Module):
        def forward(self, images):
            return {"images": images}

    network = nn.Sequential(Named())
    with (
        pytest.raises(UserError, match="The value at '0' has type dict, not Tensor"),
        capture_activations(network, ["0"]),
    ):
        network(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("model", "size", "stages", "vector"),
    [
        ("wrn_16_2", 32, ["stage1", "stage2", "relu"], "classifier:input"),
        ("resnet_8", 32, ["stage1", "stage2", "stage3"], "classifier:input"),
        ("mobilenetv2_0.75", 32, ["blocks.2", "blocks.5", "blocks.12", "last"], "classifier:input"),
        ("timm:resnet18", 64, ["layer1", "layer2", "layer3", "layer4"], "fc:input"),
        ("timm:mobilenetv2_100", 96, ["blocks.1", "blocks.2", "blocks.4", "bn2"], "classifier:input"),
        ("timm:vit_tiny_patch16_224", 224, ["blocks.10"], "head:input"),
    ],
)
def test_stages_and_vector_of_common_classifiers(model: str, size: int, stages: list[str], vector: str):
    network = build_network(model, num_classes=7, in_channels=3, mean=[0.5] * 3, std=[0.5] * 3)
    images = torch.rand(2, 3, size, size)
    assert stage_paths(network.body, images) == stages
    assert vector_path(network.body, images) == vector


class _Wrapped(nn.Module):
    """A nested network with a module that every stage calls, an in-place layer and a list that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.stages = nn.ModuleList(nn.Conv2d(C, 4, 3, stride, 1) for C, stride in ((1, 1), (4, 2), (4, 2)))
        self.inner.act = nn.ReLU(inplace=True)
        self.inner.forward = self._stages
        self.head = nn.Conv2d(4, 3, 1)

    def _stages(self, maps: torch.Tensor) -> torch.Tensor:
        for stage in self.inner.stages:
            maps = self.inner.act(stage(maps))
        return maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(images).mean((2, 3), keepdim=True)).flatten(1)


def test_stages_of_a_network_without_stage_modules():
    """Without a linear classifier, the vector is the last map."""
    images = torch.rand(2, 1, 16, 16)
    assert stage_paths(_Wrapped(), images) == ["inner.stages.0", "inner.stages.1", "inner.act"]
    assert vector_path(_Wrapped(), images) == "inner"
    with pytest.raises(UserError, match=r"The model has no maps or grids .*\. Name modules"):
        stage_paths(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), images)


def test_a_network_with_one_channel_gets_images_in_gray():
    from torchvision.transforms import functional

    network = Network(nn.Identity(), mean=[0.4], std=[0.2])
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(network(images), (functional.rgb_to_grayscale(images) - 0.4) / 0.2, atol=2e-3)
    gray = torch.rand(2, 1, 4, 4)
    assert torch.allclose(network(gray.expand(2, 3, 4, 4)), network(gray), atol=1e-6)
