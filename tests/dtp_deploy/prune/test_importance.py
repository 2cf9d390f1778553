import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dtp_deploy.budget import Budget
from dtp_deploy.errors import TrainingError, UsageError
from dtp_deploy.graph import ChannelGroup, find_groups, tensor_by_name
from dtp_deploy.graph.groups import index_tensor
from dtp_deploy.prune import ChannelMasks, MaskSettings, importance
from dtp_deploy.prune.importance import Taylor, batchnorm_scale, initial_scores, l2, log_shares
from dtp_deploy.testing.zoo import ZOO

from .proven import proven
from .tiny import batch, groups_of, network, train

STARTS = ["l2", "bn", "taylor", "uniform"]


def chain():
    """Linear 2 -> 4 -> 1 with known weights."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0], [0, 1], [0, 0], [1, 1]]))
        model[0].bias.copy_(torch.tensor([0.0, 2, 0, 1]))
        model[2].weight.copy_(torch.tensor([[4.0, 2, 0, 1]]))
    return model, find_groups(model, torch.zeros(1, 2))


def test_the_norm_of_a_unit_holds_its_writers_bias_and_readers():
    model, groups = chain()
    assert l2(model, groups.prunable)[0].tolist() == [5, 3, 0, 2]


def test_scores_start_with_the_share_of_the_norms_that_are_not_smaller_or_equal():
    model, groups = chain()
    (scores,) = initial_scores(model, groups.prunable)
    # Squared norms of 25, 9, 0 and 4; what is below a tenth of the largest norm counts as that.
    lamp = torch.tensor([1, 9 / 34, 0.25 / 38.25, 4 / 38], dtype=torch.float64)
    torch.testing.assert_close(scores, torch.log(4 * lamp), atol=1.1e-4, rtol=0)
    (equal,) = initial_scores(model, groups.prunable, "uniform")
    assert equal.abs().max() <= 1e-4


def test_dead_units_come_last_and_leave_the_scale_of_the_others_alone():
    entry = ZOO["plain"]
    model = entry.model()
    groups = find_groups(model, entry.inputs()).prunable
    alive = torch.cat(initial_scores(model, groups))
    dead = []
    for group in groups:
        number = group.units // 3
        dead.append(torch.arange(group.units) >= group.units - number)
        with torch.no_grad():
            for piece in group.slices:
                if piece.tensor in dict(model.named_parameters()):
                    units = index_tensor(piece)
                    tensor_by_name(model, piece.tensor).transpose(0, piece.dim)[units >= group.units - number] = 0
    scores, gone = torch.cat(initial_scores(model, groups)), torch.cat(dead)
    assert scores[gone].max() < scores[~gone].min()
    assert float(scores[~gone].std()) == pytest.approx(float(alive.std()), rel=0.3)


def test_a_layer_whose_norms_lie_in_few_units_keeps_fewer_of_them(monkeypatch):
    groups = [ChannelGroup("even", 100, 1, ()), ChannelGroup("uneven", 60, 1, ())]
    norms = [torch.linspace(1, 1.1, 100), torch.cat([torch.full((6,), 10.0), torch.linspace(2, 2.2, 54)])]
    monkeypatch.setattr(importance, "l2", lambda model, groups: norms)
    scores = initial_scores(nn.Identity(), groups)
    threshold = torch.cat(scores).median()
    kept = [int((one > threshold).sum()) / len(one) for one in scores]
    assert kept[1] < kept[0] / 2


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.sampled_from([1e-30, 1e-6, 1e9]))
def test_the_scale_of_what_matters_does_not_count(values, scale):
    torch.testing.assert_close(
        log_shares(torch.tensor(values).double() * scale, 0.1), log_shares(torch.tensor(values).double(), 0.1)
    )


def test_a_dead_layer_comes_after_all_others():
    dead, alive = (log_shares(values, 0.1) for values in (torch.zeros(50), torch.linspace(0.1, 1, 50)))
    assert dead.max() < alive.median()
    assert dead.argsort(descending=True).tolist() == list(range(50))


def test_rounding_does_not_decide_between_equal_units():
    equal = torch.full((8,), 0.3, dtype=torch.float64)
    other = equal.clone()
    other[-1] += 1e-12
    torch.testing.assert_close(log_shares(other, 0.1), log_shares(equal, 0.1))
    assert log_shares(other, 0.1).argsort(descending=True).tolist() == list(range(8))


def sum_of_weights(model):
    """A loss whose gradients are equal for equal weights: one batch of it."""
    yield torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", ["residual", "grouped", "detector", "attention"])
def test_no_two_scores_are_equal_even_if_all_weights_are(name, start):
    entry = ZOO[name]
    model, groups = proven(entry)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    scores = initial_scores(model, groups.prunable, start, sum_of_weights)
    together = torch.cat(scores)
    assert len(together.unique()) == len(together)
    # Among equals every layer keeps the same share, its first units.
    best = together > together.median()
    for score, kept in zip(scores, best.split([len(score) for score in scores]), strict=True):
        assert abs(int(kept.sum()) - len(score) / 2) <= 1
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        assert score.dtype == torch.float64


@pytest.mark.parametrize("factor", [8.0, 1e-6])
def test_the_scale_of_a_layer_does_not_count(factor):
    entry = ZOO["plain"]
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    before = initial_scores(model, groups.prunable)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    for old, new in zip(before, initial_scores(model, groups.prunable), strict=True):
        torch.testing.assert_close(old, new)


def test_an_unknown_start():
    model, groups = chain()
    with pytest.raises(UsageError, match=r"^Initial scores 'l1' are unknown. Give one of l2, bn, taylor, uniform\.$"):
        initial_scores(model, groups.prunable, "l1")


def test_scores_of_batch_norm_are_its_scales_and_norms_where_there_is_none():
    model = network()
    groups = groups_of(model).prunable
    found = batchnorm_scale(model, groups)
    torch.testing.assert_close(found[0], model[1].weight.detach().abs().double())
    torch.testing.assert_close(found[1], model[4].weight.detach().abs().double())
    assert torch.equal(found[2], l2(model, groups)[2])  # nothing normalises the third group


def test_a_unit_that_several_batch_norms_scale_has_the_mean_of_their_scales():
    model, groups = proven(ZOO["residual"])
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    scales = {group.name: [one.tensor for one in group.slices if one.tensor in norms] for group in groups.prunable}
    stream = max(groups.prunable, key=lambda group: len(scales[group.name]))
    assert len(scales[stream.name]) > 1
    expected = torch.stack([model.get_parameter(name).detach().abs().double() for name in scales[stream.name]]).mean(0)
    torch.testing.assert_close(batchnorm_scale(model, [stream])[0], expected)


def losses_of(model, batches=2):
    for seed in range(batches):
        images, labels = batch(seed)
        yield nn.functional.cross_entropy(model(images), labels)


def test_taylor_scores_are_the_change_of_the_loss_to_first_order():
    """Against the loss's own difference when all parameters of a unit shrink a little, one unit after the other."""
    model = network().eval()
    groups = groups_of(model).prunable
    model.double()
    images, labels = batch()

    def loss():
        return nn.functional.cross_entropy(model(images.double()), labels)

    (found,) = Taylor(lambda _: [loss()])(model, groups[2:])
    step = 1e-6
    for unit in (0, 7, 19):
        values = []
        for factor in (1 + step, 1 - step):
            pieces = (model[6].weight[unit], model[6].bias[unit], model[9].weight[:, 4 * unit : 4 * unit + 4])
            with torch.no_grad():
                for piece in pieces:
                    piece.mul_(factor)
                values.append(float(loss()))
                for piece in pieces:
                    piece.div_(factor)
        assert float(found[unit]) == pytest.approx(abs(values[0] - values[1]) / (2 * step), rel=1e-4)


def test_taylor_scores_are_averaged_over_batches_and_touch_neither_statistics_nor_gradients_nor_modes():
    model = network()
    model.train()
    model[4].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = groups_of(model).prunable
    generator = torch.get_rng_state()
    both = Taylor(losses_of)(model, groups)
    single = [Taylor(lambda m, seed=seed: list(losses_of(m, seed + 1))[seed:])(model, groups) for seed in range(2)]
    for mean, first, second in zip(both, *single, strict=True):
        torch.testing.assert_close(mean, (first + second) / 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model] == [index != 4 for index in range(10)]
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("start", STARTS)
def test_masks_in_a_loop_of_ones_own_start_from_any_scores(start):
    model = network()
    groups = groups_of(model)
    settings = MaskSettings(scores=start)
    masks = ChannelMasks(
        model, groups, Budget("macs", 0.4, relative=True), steps=6, settings=settings, losses=losses_of
    )
    expected = torch.cat(initial_scores(network(), groups.prunable, start, losses_of))
    torch.testing.assert_close(masks.scores.detach(), expected)
    train(model, masks, 6)
    assert masks.undecided < 0.1
    assert masks.cost_of_plan(masks.harden()) <= masks.limit


def test_the_scores_differ_from_each_other():
    model = network()
    groups = groups_of(model).prunable
    scores = [torch.cat(initial_scores(model, groups, start, losses_of)) for start in STARTS]
    for number, one in enumerate(scores):
        for other in scores[number + 1 :]:
            assert float((one - other).abs().max()) > 0.1


def test_taylor_without_losses_or_with_unusable_ones_says_what_to_do():
    model = network()
    groups = groups_of(model)
    with pytest.raises(UsageError, match=r"need the loss on some batches, and none is given\. Give ChannelMasks"):
        ChannelMasks(model, groups, Budget("macs", 0.5, relative=True), steps=3, settings=MaskSettings(scores="taylor"))
    with pytest.raises(UsageError, match=r"hold no batch\. Let the function yield at least one\.$"):
        initial_scores(model, groups.prunable, "taylor", lambda _: [])
    with pytest.raises(TrainingError, match=r"hold NaN or infinity\. Check the data and the loss"):
        initial_scores(model, groups.prunable, "taylor", lambda m: [loss * float("nan") for loss in losses_of(m)])


def test_frozen_layers_are_worth_as_much_and_stay_frozen():
    model = network()
    groups = groups_of(model).prunable
    images, labels = batch()

    def losses(model):
        yield nn.functional.cross_entropy(model(images), labels)

    wanted = Taylor(losses)(model, groups)
    model[:9].requires_grad_(False)
    found = Taylor(losses)(model, groups)
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert [parameter.requires_grad for parameter in model.parameters()][-3:] == [False, True, True]
