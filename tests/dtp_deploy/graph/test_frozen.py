"""Groups frozen by patterns of layer names."""

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import prove
from dtp_deploy.testing.zoo import randomise

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stages(nn.Module):
    """stem.0 - stages.0 (residual on the stem's stream) - stages.1.0 - stages.1.1 - head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1)),
                nn.Sequential(nn.Conv2d(8, 10, 3), nn.Conv2d(10, 12, 3)),
            ]
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.stages[0](x))
        scores: Tensor = self.head(self.stages[1](x).mean((2, 3)))
        return scores


def frozen(keep=(), only=()):
    model = randomise(Stages(), 0)
    groups = prove(model, find_groups(model, IMAGE, keep=keep, only=only))
    return {group.name: group.frozen_because for group in groups if group.name != "head"}


GROUPS = ("stem.0", "stages.0.0", "stages.1.0", "stages.1.1")


def test_without_patterns_all_four_groups_may_be_pruned():
    assert frozen() == dict.fromkeys(GROUPS)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (["stem*"], {"stem.0": "stem*"}),
        (["stem"], {"stem.0": "stem"}),  # what lies in a module goes by the module's name
        (["stem.1"], {"stem.0": "stem.1"}),  # the BatchNorm of a group
        (["stages.0.2"], {"stem.0": "stages.0.2", "stages.0.0": "stages.0.2"}),  # it reads one group, writes the other
        (["head"], {"stages.1.1": "head"}),
        (["*.1.?"], {"stem.0": "*.1.?", "stages.1.0": "*.1.?", "stages.1.1": "*.1.?"}),
        (["head", "stages.0.0"], {"stages.1.1": "head", "stages.0.0": "stages.0.0", "stem.0": "stages.0.0"}),
    ],
)
def test_keep_freezes_every_group_that_a_named_layer_meets(keep, kept):
    assert frozen(keep=keep) == {name: f"kept by --keep {kept[name]!r}" if name in kept else None for name in GROUPS}


@pytest.mark.parametrize(
    ("only", "left"),
    [
        (["stages.1.*"], {"stages.1.0", "stages.1.1"}),
        (["stages.1"], {"stages.1.0", "stages.1.1"}),
        (["stages.0.*"], {"stages.0.0"}),  # the stream is written by the stem, too
        (["stages.0.*", "stem"], {"stages.0.0", "stem.0"}),
        (["stages.1.0"], {"stages.1.0"}),  # whoever reads it
    ],
)
def test_only_leaves_the_groups_that_no_other_layer_writes(only, left):
    reason = f"not named by --only {', '.join(map(repr, only))}"
    found = frozen(only=only)
    assert {name for name, why in found.items() if why is None} == left
    assert all(why.startswith(reason) for why in found.values() if why is not None)


def test_a_group_that_is_named_in_part_says_what_else_writes_it():
    assert frozen(only=["stages.0.2", "stages.1.0"])["stem.0"] == (
        "not named by --only 'stages.0.2', 'stages.1.0', which leaves out 'stem.0'"
    )


def test_keep_wins_over_only():
    assert [name for name, reason in frozen(keep=["stages.1.1"], only=["stages.*"]).items() if reason is None] == [
        "stages.0.0"
    ]


def test_reasons_of_the_structure_stay():
    model = Stages()
    before = {group.name: group.frozen_because for group in find_groups(model, IMAGE)}
    after = {group.name: group.frozen_because for group in find_groups(model, IMAGE, keep=["*"])}
    assert before["head"] is not None
    assert after["head"] == before["head"]
    assert after["stem.0"] == "kept by --keep '*'"


@pytest.mark.parametrize(
    ("flag", "pattern", "message"),
    [
        ("keep", "stm*", "--keep 'stm*' matches no layer of Stages. Near it are 'stem'"),
        ("only", "stage.1.*", "--only 'stage.1.*' matches no layer of Stages. Near it are 'stages.1'"),
        ("keep", "", "--keep '' matches no layer of Stages. Its first are 'stem', 'stem.0', 'stem.1'"),
        ("keep", "Stem*", "--keep 'Stem*' matches no layer of Stages. Near it are"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_names_near_it(flag, pattern, message):
    with pytest.raises(UsageError) as error:
        find_groups(Stages(), IMAGE, **{flag: [pattern]})
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(". Give a name, or a pattern with *.")
    assert error.value.exit_code == 2


def test_where_patterns_leave_nothing_to_prune_the_error_names_them():
    with pytest.raises(GraphError) as error:
        frozen(keep=["stem", "stages"])
    assert "stem.0: kept by --keep 'stem'" in str(error.value)
    assert str(error.value).endswith("Leave --keep and --only out, or give patterns that leave some layers to prune.")
