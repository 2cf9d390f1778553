"""What the proof must freeze, and why: models in which removing is not masking."""

import re
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError, InputError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import proof, prove, remove_channels
from dtp_deploy.prune.proof import perturbed, relative_difference
from dtp_deploy.testing.zoo import ZOO, randomise

IMAGE = torch.zeros(1, 3, 8, 8)


class Tail(nn.Module):
    """conv 3 -> 8, something in between, conv 8 -> 8, ReLU, conv 8 -> 4; only the first group meets the something."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(self.between(self.first(x)))))


class TwoOutputs(Tail):
    def __init__(self) -> None:
        super().__init__(lambda y: y)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return y, self.third(torch.relu(self.second(y)))


def reasons(model, **options):
    groups = prove(model, find_groups(model, IMAGE), **options)
    return {group.name: group.frozen_because for group in groups}


DIFFERENT = r"masking and removing its channels gave different outputs \(by \d.*e?.* relative\)"
CRASH = r"the model does not run without some of its channels \(RuntimeError: .*\)"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda y: y.view(1, 8, 6, 6), CRASH),
        (lambda y: y * torch.linspace(1, 2, 8).view(1, 8, 1, 1), CRASH),
        (lambda y: y / y.norm(dim=1, keepdim=True), DIFFERENT),
        (lambda y: y.softmax(dim=1), DIFFERENT),
        (lambda y: y - y.mean(dim=1, keepdim=True), DIFFERENT),
        (lambda y: y * 0, "no effect of its channels on the outputs was seen, so nothing can be proven"),
        (nn.GroupNorm(4, 8), "GroupNorm 'between' normalises across its channels"),
        (nn.LocalResponseNorm(3), r"LocalResponseNorm 'between' normalises across its channels|" + DIFFERENT),
    ],
    ids=["view", "constant", "norm", "softmax", "mean", "no effect", "GroupNorm", "LocalResponseNorm"],
)
def test_a_group_that_cannot_be_proven_is_frozen_and_the_others_are_not(between, reason):
    found = reasons(randomise(Tail(between), 0))
    assert re.fullmatch(reason, found["first"])
    assert found["second"] is None


def test_the_same_model_with_nothing_harmful_in_between_is_pruned():
    assert reasons(randomise(Tail(lambda y: y.sigmoid() * 2), 0))["first"] is None


def test_channels_that_are_an_output_as_well_are_frozen():
    found = reasons(randomise(TwoOutputs(), 0))
    assert found["first"] == "its channels are an output of the model"
    assert found["second"] is None


@pytest.mark.parametrize("seed", range(5))
def test_a_few_dead_units_do_not_freeze_a_group(seed):
    model = randomise(Tail(lambda y: y), 0)
    with torch.no_grad():
        model.second.bias[:6] = -6.0  # behind a ReLU: 6 of 8 units never pass anything on
    assert reasons(model, seed=seed)["second"] is None


def test_proof_sees_through_weights_that_hide_a_mistake():
    # All weights of the reader are zero: any removal would look right, and none would have an effect.
    model = randomise(Tail(lambda y: y.softmax(dim=1)), 0)
    nn.init.zeros_(model.second.weight)
    assert reasons(model)["first"].startswith("masking and removing its channels gave different outputs")


def test_a_model_with_a_precision_written_into_it_is_proven_in_float32():
    model = randomise(Tail(lambda y: y.to(torch.float32)), 0)
    assert reasons(model) == {
        "first": None,
        "second": None,
        "third": "no layer with weights reads its channels, as with an output of the model",
    }


class TwoInputs(nn.Module):
    """An image, and the number of a class whose embedding is added to every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classes, self.exit = nn.Conv2d(3, 8, 1), nn.Embedding(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return self.exit(torch.relu(self.conv(x) + self.classes(number)[:, :, None, None]))


def test_a_model_of_two_inputs_whose_indices_stay_as_they_are_given():
    model = randomise(TwoInputs(), 0)
    (group, _) = prove(model, find_groups(model, (IMAGE, torch.tensor([3]))))
    assert group.frozen_because is None
    assert {piece.tensor for piece in group.slices} == {"conv.weight", "conv.bias", "classes.weight", "exit.weight"}


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced = 0

    def task(self, name, total=None, *, passing=False):
        self.total = total
        return nullcontext(self._advance)

    def _advance(self) -> None:
        self.advanced += 1

    def note(self, message) -> None:
        self.notes.append(message)


def test_every_frozen_group_is_told_of():
    listener = Notes()
    reasons(randomise(Tail(nn.GroupNorm(4, 8)), 0), progress=listener)
    assert listener.notes == [
        "first keeps its 8 channels: GroupNorm 'between' normalises across its channels.",
        "third keeps its 4 channels: no layer with weights reads its channels, as with an output of the model.",
    ]
    assert listener.advanced == listener.total == 3


def test_a_model_with_nothing_to_prune_says_why():
    entry = ZOO["group_norm"]
    model = entry.model()
    with pytest.raises(GraphError) as caught:
        prove(model, find_groups(model, entry.inputs()))
    assert str(caught.value) == (
        "_Classifier has nothing to prune: all 3 channel groups are frozen (features.0: GroupNorm 'features.1' "
        "normalises across its channels; features.3: GroupNorm 'features.4' normalises across its channels; head: no "
        "layer with weights reads its channels, as with an output of the model). Give a model in which a layer with "
        "weights reads another layer's channels."
    )


# ---- many groups at once -------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Twelve convolutions one after the other; behind those at `places` stands something harmful."""

    def __init__(self, places, between) -> None:
        super().__init__()
        widths = [3, *[8] * 12]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.places, self.between = places, between

    def forward(self, x: Tensor) -> Tensor:
        for number, conv in enumerate(self.convs):
            x = torch.tanh(conv(x))
            if number in self.places:
                x = self.between(x)
        return x


def count_trials(monkeypatch):
    tried = []

    def remove(model, plan):
        tried.append(len(plan.groups))
        return remove_channels(model, plan)

    monkeypatch.setattr(proof, "remove_channels", remove)
    return tried


def test_groups_that_hold_are_proven_at_once(monkeypatch):
    tried = count_trials(monkeypatch)
    assert list(reasons(randomise(Chain((), None), 0)).values())[:-1] == [None] * 11
    assert tried == [11]


@pytest.mark.parametrize("places", [(0,), (4,), (10,), (2, 7)])
def test_halves_find_the_group_that_does_not_hold(places, monkeypatch):
    tried = count_trials(monkeypatch)
    found = reasons(randomise(Chain(places, lambda y: y - y.mean(dim=1, keepdim=True)), 0))
    for number in range(11):
        if number in places:
            assert re.fullmatch(DIFFERENT, found[f"convs.{number}"])
        else:
            assert found[f"convs.{number}"] is None
    assert len(tried) <= 16


def test_a_group_without_a_say_among_the_others_is_tried_alone(monkeypatch):
    tried = count_trials(monkeypatch)
    model = randomise(Chain((6,), lambda y: y * 1e-7), 0)
    for conv in model.convs:
        nn.init.zeros_(conv.bias)
    assert reasons(model)["convs.6"] is None
    assert tried[0] == 11
    assert tried.count(1) > 0


def test_a_step_without_a_slope_leaves_the_groups_before_it_to_be_tried_alone(monkeypatch):
    tried = count_trials(monkeypatch)
    assert list(reasons(randomise(Chain((5,), lambda y: (8 * y).round()), 0)).values())[:-1] == [None] * 11
    assert tried == [11, *[1] * 5]


@pytest.mark.parametrize("places", [(1,), (8,)])
def test_an_error_far_smaller_than_the_effect_is_seen_among_others(places):
    def hardly(y):
        return y - 1e-5 * y.mean(dim=1, keepdim=True)

    found = reasons(randomise(Chain(places, hardly), 0))
    for number in range(11):
        assert (found[f"convs.{number}"] is None) == (number not in places)


class Keeps(Chain):
    """Keeps its features and the largest of them, as recorders of activations do."""

    def __init__(self) -> None:
        super().__init__((), None)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.features = super().forward(x)
        self.largest.copy_(self.features.max())
        return self.features


def test_a_model_that_keeps_what_it_computes_is_proven_at_once(monkeypatch):
    tried = count_trials(monkeypatch)
    assert list(reasons(randomise(Keeps(), 0)).values())[:-1] == [None] * 11
    assert tried == [11]


def test_gradients_that_take_too_much_memory_are_not_taken(monkeypatch):
    tried = count_trials(monkeypatch)
    monkeypatch.setattr(proof, "_MEMORY_BYTES", 8 * 8 * 64 * 10)
    assert list(reasons(randomise(Chain((), None), 0)).values())[:-1] == [None] * 11
    assert tried == [*[1] * 11, 11]


@pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO)
def test_at_once_and_one_by_one_agree(entry, monkeypatch):
    model = entry.model()
    groups = find_groups(model, entry.inputs())

    def found():
        try:
            return [group.frozen_because is None for group in prove(model, groups)]
        except GraphError:
            return "nothing to prune"

    at_once = found()
    monkeypatch.setattr(proof, "_FEW", 10**6)
    assert at_once == found()


def test_the_trial_runs_on_a_perturbed_copy():
    model = ZOO["residual"].model().train()
    copied = perturbed(model, torch.Generator().manual_seed(0))
    assert not copied.training
    before, after = model.state_dict(), copied.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == [name for name in before if not name.endswith("num_batches_tracked")]
    assert all((after[name] > 0).all() for name in after if name.endswith("running_var"))


def test_relative_difference_is_relative_to_each_output():
    large, small = torch.tensor([1000.0]), torch.tensor([0.001])
    assert relative_difference([large, small], [large + 1, small]) == pytest.approx(1e-3)
    assert relative_difference([large, small], [large, 2 * small]) == pytest.approx(1)
    assert relative_difference([large], [torch.tensor([float("nan")])]) == float("inf")
    assert relative_difference([torch.empty(0)], [torch.empty(0)]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_prove_nothing_and_are_named(value: float) -> None:
    model = Tail(nn.ReLU())
    groups = find_groups(model, IMAGE)
    with torch.no_grad():
        model.second.weight[0, 0] = value
    with pytest.raises(InputError, match=r"weights of Tail hold NaN or infinity, in 'second\.weight'"):
        prove(model, groups)
