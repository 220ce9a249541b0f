import pytest
import torch

from multas_ray.config import ModelConfig, OptimConfig
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.train.optim import Ema, build_optimizer, learning_rate, load_optimizer

TINY = ModelConfig(backbone="efficientnet_lite0", pretrained=False, width=16, tasks=["seg"])


def network() -> MultiTaskNet:
    torch.manual_seed(0)
    return MultiTaskNet(TINY, {"det": [], "seg": ["background", "cat"]})


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


def after_a_step(name: str) -> torch.optim.Optimizer:
    """An optimiser with a state."""
    model = network()
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_goes_on_with_its_own_settings(name):
    optimizer = build_optimizer(network(), OptimConfig(name=name, lr=0.2, weight_decay=0.3))
    state = after_a_step(name).state_dict()
    for group in state["param_groups"]:
        group.clear()
    load_optimizer(optimizer, state, "x")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    found = optimizer.state_dict()["state"]
    assert found.keys() == state["state"].keys()
    for place, values in state["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(found[place][key], value, rtol=0, atol=0)
    after = next(iter(optimizer.param_groups[0]["params"]))
    after.grad = torch.ones_like(after)
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: None, "holds no state of an optimiser"),
        (lambda state: {"param_groups": []}, "holds no state of an optimiser"),
        (lambda state: {"state": {"0": {}}}, "its optimiser is another one: see its parameter '0'"),
        (
            lambda state: {"state": {10**6: state["state"][0]}},
            "its optimiser is another one: see its parameter 1000000",
        ),
        (lambda state: after_a_step("sgd").state_dict(), "its optimiser is another one: see its parameter 0"),
        (lambda state: {"state": {0: state["state"][0] | {"step": None}}}, "'step' of parameter 0 is no tensor"),
        (lambda state: {"state": {0: state["state"][20]}}, r"'exp_avg' of parameter 0 is \(.*, the network's \("),
        (
            lambda state: {"state": {0: state["state"][0] | {"exp_avg": state["state"][0]["exp_avg"] * float("inf")}}},
            "'exp_avg' of parameter 0 has values that are not finite",
        ),
    ],
)
def test_a_state_that_is_no_optimiser_s_is_refused(change, words):
    optimizer = after_a_step("adamw")
    with pytest.raises(UserError, match=f"^run/state.pt: .*{words}"):
        load_optimizer(optimizer, change(optimizer.state_dict()), "run/state.pt")
