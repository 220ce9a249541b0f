import pytest
import torch

from multas_ray.config import ModelConfig, OptimConfig
from multas_ray.model.network import MultiTaskNet
from multas_ray.train.optim import Ema, build_optimizer, learning_rate

TINY = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, tasks=["seg"])


def network() -> MultiTaskNet:
    torch.manual_seed(0)
    return MultiTaskNet(TINY, [], ["background", "cat"])


def test_no_warm_up_starts_at_the_full_rate():
    assert learning_rate(0, 0.5, 0, 10) == 0.5
    assert learning_rate(10, 0.5, 0, 10) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_and_norms_are_not_decayed(name):
    model = network()
    decayed, spared = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_moving_average_follows_weights_and_buffers():
    model = network()
    ema = Ema(model, OptimConfig(ema_decay=0.5, ema_warmup=1e-9))
    before = {key: value.clone() for key, value in ema.model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(2)
    ema.update(model, 1)
    for key, value in ema.model.state_dict().items():
        expected = before[key] + (1 if value.is_floating_point() else 2)
        torch.testing.assert_close(value, expected)
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
