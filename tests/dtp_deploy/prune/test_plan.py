import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dtp_deploy.errors import InputError
from dtp_deploy.graph import ChannelGroup, TensorSlice
from dtp_deploy.prune import BlockChoice, GroupChoice, PruningPlan, make_plan
from dtp_deploy.prune.plan import SCHEMA_VERSION, fingerprint_of
from dtp_deploy.testing.zoo import ZOO

from .proven import proven

FIRST = ChannelGroup(
    "first",
    3,
    1,
    (
        TensorSlice("first.weight", 0, (0, 1, 2), "writer"),
        TensorSlice("last.weight", 1, (-1, 0, 0, 1, 1, 2, 2), "reader"),
    ),
)
SECOND = ChannelGroup(
    "second",
    2,
    2,
    (
        TensorSlice("second.weight", 0, (0, 1, 0, 1), "writer"),
        TensorSlice("last.weight", 1, (0, -1, -1, -1, -1, -1, -1), "reader"),
    ),
)
FROZEN = ChannelGroup("last", 5, 1, (), frozen_because="its channels are an output of the model")

indices = st.lists(st.integers(0, 10**6), min_size=1, max_size=5).map(tuple)
plans = st.builds(
    PruningPlan,
    groups=st.lists(
        st.builds(GroupChoice, st.text(), st.integers(1, 9999), st.integers(1, 9999), indices, st.none() | st.text()),
        max_size=4,
    ).map(tuple),
    tensors=st.dictionaries(st.text(), st.dictionaries(st.integers(0, 5), indices, min_size=1), max_size=4),
    fingerprint=st.text(),
    blocks=st.lists(
        st.builds(BlockChoice, st.text(), st.lists(st.text(min_size=1)).map(tuple), st.booleans(), st.text()),
        max_size=3,
    ).map(tuple),
)


@given(plans)
def test_json_and_back_is_the_same_plan(plan):
    assert PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", ["residual", "grouped", "split", "attention"])
def test_json_and_back_is_the_same_plan_of_a_real_model(name):
    entry = ZOO[name]
    model, groups = proven(entry)
    kept = {group.name: range(0, group.units, 2) for group in groups.prunable}
    plan = make_plan(groups, kept, fingerprint_of(model))
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    again.check(model)
    assert again.widths() == {g.name: g.width if g.frozen_because else g.width // 2 for g in groups}
    assert {c.name: c.frozen_because for c in again.groups} == {g.name: g.frozen_because for g in groups}


def test_kept_units_become_kept_indices_of_every_tensor():
    plan = make_plan([FIRST, SECOND, FROZEN], {"first": [2, 0], "second": [1]}, "f")
    assert plan.groups == (
        GroupChoice("first", 3, 2, (0, 2)),
        GroupChoice("second", 4, 2, (1,)),
        GroupChoice("last", 5, 5, (0, 1, 2, 3, 4), "its channels are an output of the model"),
    )
    assert plan.tensors == {
        "first.weight": {0: (0, 2)},
        "second.weight": {0: (1, 3)},
        "last.weight": {1: (1, 2, 5, 6)},  # both groups take their share
    }


def test_a_group_that_is_not_named_keeps_all():
    plan = make_plan([FIRST, SECOND], {"second": [0, 1]}, "f")
    assert plan.tensors == {}
    assert plan.widths() == {"first": 3, "second": 4}


@pytest.mark.parametrize("kept", [{"first": []}, {"first": [-1]}, {"first": [3]}, {"last": [0]}])
def test_what_no_caller_may_ask_for(kept):
    with pytest.raises(AssertionError):
        make_plan([FIRST, FROZEN], kept, "f")


def test_the_fingerprint_is_of_names_and_shapes_only():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert fingerprint_of(model) == fingerprint_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).half())
    for other in (
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)),
        nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.BatchNorm1d(3)}),
    ):
        assert fingerprint_of(model) != fingerprint_of(other)


def test_a_newer_schema_is_not_guessed_at():
    newer = {**json.loads(make_plan([FIRST], {}, "f").to_json()), "schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(InputError) as caught:
        PruningPlan.from_json(json.dumps(newer))
    assert str(caught.value) == (
        "The pruning plan has schema version 3; this dtp-deploy reads up to 2. Install a newer dtp-deploy."
    )


REST = "Give the pruning_plan.json that `dtp-deploy compress` wrote."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("{", "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "TypeError: list indices must be integers or slices, not str"),
        ("{}", "KeyError: 'schema_version'"),
        ('{"schema_version": "x"}', "ValueError: schema_version is 'x', and no whole number"),
        ('{"schema_version": true}', "ValueError: schema_version is True, and no whole number"),
        ('{"schema_version": 1, "groups": [], "tensors": {}}', "KeyError: 'fingerprint'"),
        ('{"schema_version": 1, "groups": [], "tensors": [], "fingerprint": ""}', None),
        ('{"schema_version": 1, "groups": [{"name": "a"}], "tensors": {}, "fingerprint": ""}', None),
        ('{"schema_version": 1, "groups": [], "tensors": {"a": {"x": [1]}}, "fingerprint": ""}', None),
    ],
)
def test_text_that_is_no_plan(text, problem):
    with pytest.raises(InputError) as caught:
        PruningPlan.from_json(text)
    message = str(caught.value)
    if problem is not None:
        assert message == f"This is not a pruning plan ({problem}). {REST}"
    assert message.startswith("This is not a pruning plan (")
    assert message.endswith(REST)


@given(st.data())
def test_a_plan_cut_short_is_refused(data):
    text = make_plan([FIRST, SECOND, FROZEN], {"first": [0]}, "f").to_json()
    with pytest.raises(InputError, match=r"^This is not a pruning plan \("):
        PruningPlan.from_json(text[: data.draw(st.integers(0, len(text) - 1))])
