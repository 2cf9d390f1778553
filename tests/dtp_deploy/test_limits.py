"""The limits of a run: latency on targets whose times follow from a formula, and several budgets at once."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest
import torch
from torch import nn

from dtp_deploy.budget import Budget, parse_budget
from dtp_deploy.cost import ChannelCount, count_macs, count_parameters
from dtp_deploy.errors import BudgetError, UsageError
from dtp_deploy.export.delivery import deliver
from dtp_deploy.graph import Groups, find_blocks, find_groups
from dtp_deploy.latency import close_loop, explain_deviations, learn, structures, verdict
from dtp_deploy.limits import CountedLimit, LatencyLimit, Limits, StrictestCost, Workbench, make_limits, with_biases
from dtp_deploy.profile import LatencyReport
from dtp_deploy.prune import BlockChoice, ChannelMasks, Depth, PruningPlan, make_plan, prove
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.target import TargetSpec
from dtp_deploy.testing.blocks import BasicBlock, conv_bn
from dtp_deploy.testing.zoo import randomise


def workbench(model: nn.Module, x: torch.Tensor, groups: Groups, folder: Path) -> Workbench:
    batches = [{"input": x.numpy()}]
    dense: Any = SimpleNamespace(
        delivery=deliver(model, (x,), folder / "dense.onnx", batches, "dense"),
        macs=count_macs(model, x),
        params=count_parameters(model),
    )
    return Workbench(model, groups, dense, batches, folder, TargetSpec("formula_targets:Formula"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    model = nn.Sequential(
        conv_bn(3, 32), nn.ReLU(), conv_bn(32, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)
    )
    randomise(model, 0).eval()
    x = torch.randn(1, 3, 8, 8)
    return workbench(model, x, find_groups(model, x), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(autouse=True)
def formula(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The target is on the import path, and nothing of an earlier test is in the cache but of this module.

    Formulas have no noise: one process is as good as many.
    """
    monkeypatch.setattr(verdict, "PROCESSES", 1)
    monkeypatch.setattr(structures, "_PROCESSES", 1)
    monkeypatch.syspath_prepend(Path(__file__).parent / "latency")
    monkeypatch.setenv("DTP_DEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache of limits"))
    monkeypatch.setenv("FORMULA_LOG", str(tmp_path_factory.getbasetemp() / "formula.log"))


def uniform(bench: Workbench, units: int) -> PruningPlan:
    kept = {group.name: range(units) for group in bench.groups.prunable}
    return make_plan(bench.groups, kept, fingerprint_of(bench.model))


def test_an_impossible_latency_is_refused_with_what_can_be_reached(bench: Workbench) -> None:
    with pytest.raises(BudgetError) as refused:
        LatencyLimit(parse_budget("latency", "0.1%"), bench)
    assert str(refused.value).startswith(
        "--latency 0.1% is below what can be reached on formula_targets:Formula: one channel in every layer that may "
        "be pruned takes 0.0"
    )
    least = int(str(refused.value).split("Give ")[1].split("% or more.")[0])
    LatencyLimit(parse_budget("latency", f"{least}%"), bench)


def test_masks_with_a_latency_limit_choose_what_meets_it(bench: Workbench) -> None:
    limit = LatencyLimit(parse_budget("latency", "60%"), bench)
    masks = ChannelMasks(
        bench.model, bench.groups, limit.budget, steps=1, cost=limit.cost, limit=limit.limit, preferred=limit.preferred
    )
    plan = masks.choose()
    masks.detach()
    assert 0.85 <= limit.used(plan) <= 1.02
    assert limit.notes[0].startswith("Latency table: 2 kinds of layers measured; ")


def test_a_decision_spares_all_measuring(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = LatencyLimit(parse_budget("latency", "60%"), bench)
    log = bench.scratch / "log.txt"
    monkeypatch.setenv("FORMULA_LOG", str(log))
    again = make_limits([first.budget], bench, [first.decision()])
    assert not log.exists()
    assert again.limit == first.limit
    assert again.preferred == first.preferred
    assert again.notes == first.notes
    x = torch.tensor([10.0, 20.0], dtype=torch.float64)
    assert torch.equal(again.cost(x)[0], first.cost(x)[0])


def report(p50: float, slow: float) -> LatencyReport:
    return LatencyReport.from_samples([p50] * 60 + [slow] * 40)


@pytest.mark.parametrize(
    ("statistic", "met", "achieved"), [("p50", True, 1.0), ("p90", False, 9.0), ("p99", False, 9.0)]
)
def test_the_statistic_decides(statistic: Any, met: bool, achieved: float, bench: Workbench) -> None:
    budget = parse_budget("latency", "60%", statistic=statistic)
    limit = LatencyLimit.__new__(LatencyLimit)
    limit.budget = budget
    latencies = {"dense": report(2.0, 10.0), "pruned": report(1.0, 9.0)}
    entry = limit.entry(cast(Any, None), cast(Any, None), latencies)
    assert (entry["met"], entry["achieved"]) == (met, achieved)
    assert entry["requested"] == ("60%" if statistic == "p50" else f"60% ({statistic})")


def test_a_statistic_is_of_a_latency() -> None:
    with pytest.raises(UsageError, match=r"--statistic p90 is of a latency, and --macs 50% \(p90\) is none\."):
        Budget("macs", 0.5, relative=True, statistic="p90")
    with pytest.raises(UsageError, match=r"--statistic 'mean' is unknown\. Give one of p50, p90, p99\."):
        Budget("latency", 0.5, relative=True, statistic=cast(Any, "mean"))


def test_several_budgets_are_all_met(bench: Workbench) -> None:
    limits = make_limits([parse_budget("latency", "70%"), parse_budget("params", "50%")], bench)
    assert [one.budget.kind for one in limits.all] == ["params", "latency"]
    masks = ChannelMasks(
        bench.model,
        bench.groups,
        limits.all[0].budget,
        steps=1,
        cost=limits.cost,
        limit=limits.limit,
        preferred=limits.preferred,
    )
    plan = masks.choose()
    masks.detach()
    assert limits.used(plan) <= 1.02
    assert max(one.used(plan) for one in limits.all) == limits.used(plan)


def test_used_is_the_largest_share(bench: Workbench) -> None:
    params, macs = (CountedLimit(parse_budget(kind, "50%"), bench) for kind in ("params", "macs"))  # type: ignore[arg-type]
    limits = Limits([params, macs])
    plan = uniform(bench, 16)
    assert limits.used(plan) == pytest.approx(max(params.used(plan), macs.used(plan)))
    assert limits.used(uniform(bench, 32)) > 1


def test_strictest_cost_is_never_below_the_largest_share_and_has_its_gradient() -> None:
    costs = tuple(ChannelCount(torch.tensor(each, dtype=torch.float64)) for each in ([1.0, 3.0], [2.0, 1.0]))
    strictest = StrictestCost(costs, (40.0, 30.0))
    x = torch.tensor([9.0, 11.0], dtype=torch.float64)
    value, gradient = strictest(x)
    assert max(42 / 40, 29 / 30) <= float(value) <= 1.05 * max(42 / 40, 29 / 30)
    for axis in range(2):
        moved = torch.zeros(2, dtype=torch.float64).index_fill(0, torch.tensor(axis), 1e-6)
        slope = float(strictest(x + moved)[0] - strictest(x - moved)[0]) / 2e-6
        assert float(gradient[axis]) == pytest.approx(slope, rel=1e-5)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Three residual blocks."""
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(conv_bn(3, 8), nn.ReLU(), *(BasicBlock(8, 8) for _ in range(3)), *tail)
    randomise(model, 0)
    x = torch.randn(1, 3, 8, 8)
    groups = prove(model, replace(find_groups(model, x), blocks=find_blocks(model, x)))
    return workbench(model, x, groups, tmp_path_factory.mktemp("scratch"))


def test_without_a_block_every_limit_costs_what_the_network_without_it_costs(deep: Workbench) -> None:
    budgets = [parse_budget(kind, "50%") for kind in ("macs", "params", "size")]
    limits = make_limits(budgets, deep)
    block = deep.groups.removable[1]
    choice = BlockChoice(block.name, block.modules, removed=True, reason="too dear")
    kept = {group.name: range(5) for group in deep.groups.prunable}
    plan = make_plan(deep.groups, kept, fingerprint_of(deep.model), [choice])
    widths = torch.tensor([0.0 if block.has_inside(one) else 5.0 for one in deep.groups.prunable], dtype=torch.float64)

    shares = [float(one.cost_without([block])(widths)[0]) / one.limit for one in limits.all]

    real = [one.used(plan) for one in limits.all]
    assert shares[:2] == pytest.approx(real[:2], rel=1e-12)
    assert shares[2] == pytest.approx(real[2], rel=0.15)  # the file loses nodes of the graph too
    assert float(limits.cost_without([block])(widths)[0]) >= max(shares)


def test_a_block_that_is_not_worth_its_time_goes_and_the_latency_is_met(
    deep: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learn, "_RANDOM", 2)  # few structures teach enough of a formula
    limit = LatencyLimit(parse_budget("latency", "55%"), deep)
    depth = Depth(deep.groups, limit.cost_without)
    model = copy.deepcopy(deep.model)
    given: Any = {"cost": limit.cost, "limit": limit.limit, "preferred": limit.preferred, "depth": depth}
    masks = ChannelMasks(model, deep.groups, limit.budget, steps=1, **given)
    poor = deep.groups.removable[2]
    scores = [torch.linspace(-1, -0.6 if poor.has_inside(group) else 1, group.units) for group in deep.groups.prunable]
    with torch.no_grad():
        masks.scores.copy_(torch.cat(scores))

    plan = close_loop(masks, limit.used, fill=limit.fill, aim=limit.aim)

    assert [block.name for block in plan.removed_blocks] == [poor.name]
    assert 0.85 < limit.used(plan) <= 1
    (path,) = [deep_path for structure, deep_path in limit.probe._files.items() if structure == plan.structure]
    assert sum(node.op_type == "Conv" for node in onnx.load(path).graph.node) == 5
    learned = {group.name: group.width for group in deep.groups.prunable}
    told = explain_deviations(learned, plan, limit.preferred, deep.groups)
    gone = [group for group in deep.groups.prunable if poor.has_inside(group)]
    assert gone
    assert not any(group.name in note for note in told for group in gone)


def test_a_candidate_for_the_size_has_the_biases_that_training_will_move() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    assert not model[1].bias.any()
    bias = model[0].bias.detach().clone()
    one, other = (module.bias.tolist() for module in with_biases(model)[1:])
    assert all([*one, *other])
    assert one != other  # a file would hold equal ones once
    assert torch.equal(model[0].bias, bias)
