from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import InputError
from dtp_deploy.loading.checkpoint import Checkpoint, load_weights

REMEDY = "Give the factory of the network that was trained, built with the same settings (number of classes, say)."


def net(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def weights(model: nn.Module | None = None) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (model or net()).state_dict().items()}


def checkpoint(state_dict: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("w.pt"), state_dict, None, "")


def assert_refused(model: nn.Module, state_dict: dict[str, Tensor], message: str) -> None:
    before = weights(model)
    with pytest.raises(InputError) as caught:
        load_weights(model, checkpoint(state_dict))
    assert str(caught.value) == f"Checkpoint w.pt {message}"
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "a refused checkpoint changed the model"


def assert_loaded(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, state_dict[name]) for name, value in model.state_dict().items())


def test_loads_every_tensor() -> None:
    given, model = weights(), net()
    load_weights(model, checkpoint(given))
    assert_loaded(model, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_to_the_data_type_of_the_model(dtype: torch.dtype) -> None:
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights().items()}
    model = net()
    load_weights(model, checkpoint(given))
    assert model[0].weight.dtype == torch.float32
    assert_loaded(model, {name: value.float() for name, value in given.items()})


def test_names_all_that_does_not_fit_in_one_message() -> None:
    given = weights()
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean"):
        del given[name]
    given |= {"head.weight": torch.ones(2), "3.weight": torch.ones(10, 4), "3.bias": torch.ones(())}
    given["0.weight"] = torch.ones(4, 1, 3, 3, dtype=torch.int8)
    assert_refused(
        net(),
        given,
        "does not fit the model: missing: 0.bias, 1.weight, 1.bias and 1 more; unexpected: head.weight; "
        "wrong shapes: 3.weight 10x4 where the model has 5x4, 3.bias scalar where the model has 5; "
        f"wrong data types: 0.weight int8 where the model has float32. {REMEDY}",
    )


def test_points_at_a_common_prefix() -> None:
    given = {f"backbone.{name}": value for name, value in weights().items()}
    assert_refused(
        net(),
        given,
        "does not fit the model: missing: 0.weight, 0.bias, 1.weight and 5 more; "
        "unexpected: backbone.0.weight, backbone.0.bias, backbone.1.weight and 6 more. "
        "The names would match without 'backbone.' before each: save the state_dict with such names.",
    )


def test_points_at_a_prefix_that_only_the_model_has() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2)})
    assert_refused(
        model,
        weights(nn.Linear(2, 2)),
        "does not fit the model: missing: body.weight, body.bias; unexpected: weight, bias. "
        "The names would match with 'body.' before each: save the state_dict with such names.",
    )


def test_a_model_under_the_prefix_of_a_wrapper_matches() -> None:
    given, model = weights(), nn.ModuleDict({"module": net()})
    load_weights(model, checkpoint(given))
    assert_loaded(model["module"], given)


def test_old_checkpoints_lack_the_count_of_batches() -> None:
    given, model = weights(), net()
    del given["1.num_batches_tracked"]
    load_weights(model, checkpoint(given))
    assert torch.equal(model[0].weight, given["0.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_weights_that_are_not_finite(value: float) -> None:
    given = weights()
    given["0.weight"][0, 0, 0, 0] = value
    given["1.running_var"][1] = value
    assert_refused(
        net(),
        given,
        "holds NaN or infinite weights: 0.weight, 1.running_var. Give a checkpoint from before the training diverged.",
    )


def test_refuses_weights_that_overflow_when_cast() -> None:
    given = weights()
    given["3.bias"] = torch.full((5,), 1e300, dtype=torch.float64)
    assert_refused(
        net(),
        given,
        "holds NaN or infinite weights: 3.bias. Give a checkpoint from before the training diverged.",
    )


def test_an_infinity_that_the_model_holds_by_design_is_allowed() -> None:
    def masked() -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        return model

    load_weights(masked(), checkpoint(weights(masked())))


@pytest.mark.parametrize(("count", "kept"), [(12.0, 12), (float("inf"), 65504)])
def test_a_state_dict_that_was_made_half_precision_whole(count: float, kept: int) -> None:
    given = {name: value.half() for name, value in weights().items()}
    given["1.num_batches_tracked"].fill_(count)
    model = net()
    load_weights(model, checkpoint(given))
    assert torch.equal(model[0].weight, given["0.weight"].float())
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert model[1].num_batches_tracked == kept


def test_refuses_sparse_weights() -> None:
    given = weights()
    given["3.bias"] = given["3.bias"].to_sparse()
    assert_refused(
        net(),
        given,
        "does not fit the model: wrong data types: 3.bias float32 (sparse_coo) where the model has float32. " + REMEDY,
    )
