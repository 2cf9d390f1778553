"""A dry run says what a run would do, and does none of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.config import CompressConfig, ConfigFile
from dtp_deploy.errors import GraphError, InputError
from dtp_deploy.job import resolve
from dtp_deploy.order import make_order
from dtp_deploy.rehearsal import DryRun, rehearse, untrusted


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten()), "net.pt")


def rehearsed(**given: object) -> DryRun:
    config = {"checkpoint": "net.pt", "input": "1x1x8x8", "trust": True, "dry_run": True, **given}
    return rehearse(resolve(make_order(CompressConfig.model_validate(config), ConfigFile())))


def test_everything_is_said() -> None:
    plan = rehearsed()

    assert plan.imports[0] == "torch.nn.modules.activation.ReLU"
    assert plan.files == ("net.pt",)
    assert plan.out == "net-compressed"
    assert plan.budgets == ("latency 50%",)
    assert [(name, width, reason is None) for name, width, reason in plan.groups] == [("0", 4, True), ("2", 6, False)]
    reach = {one.kind: one for one in plan.reach}
    # 6x6 positions of 3x3x1x4 weights, and 4x4 of 3x3x4x6; then one channel in place of the four.
    assert (reach["macs"].dense, reach["macs"].smallest) == (36 * 36 + 16 * 216, 36 * 9 + 16 * 54)
    assert (reach["params"].dense, reach["params"].smallest) == (40 + 222, 10 + 60)
    assert reach["channels"].smallest == 1
    # Four bytes a parameter, and the graph, whose length hardly depends on the widths.
    assert reach["size"].dense - reach["size"].smallest == pytest.approx(4 * (262 - 70), abs=40)
    assert reach["size"].smallest > 4 * 70
    assert (reach["latency"].basis, reach["macs"].basis) == ("measured", "computed")
    assert reach["latency"].smallest > 0
    assert sorted(path.name for path in Path().iterdir()) == ["net.pt"]


def test_the_figures_are_those_of_the_smallest_network() -> None:
    from dtp_deploy.cost import count_macs

    small = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 6, 3), nn.Flatten())

    assert {one.kind: one.smallest for one in rehearsed().reach}["macs"] == count_macs(small, torch.zeros(1, 1, 8, 8))


def test_a_target_that_is_not_here_and_cannot_predict_is_no_error() -> None:
    plan = rehearsed(target="ssh")

    assert [one.kind for one in plan.reach] == ["macs", "params", "size", "channels"]
    assert plan.budgets == ("macs 50%",)
    assert any(note.startswith("What a latency budget can reach is not known. ") for note in plan.notes)


def test_single_weights_are_told_by_layer() -> None:
    plan = rehearsed(granularity="weights", params="30%")

    assert plan.groups == (("0", 36, None), ("2", 216, None))
    assert [(one.kind, one.dense, one.smallest) for one in plan.reach] == [("params", 262, 262 - 252 + 2)]
    assert [(one.budget, one.can_be_met) for one in plan.verdicts] == [("--params 30%", True)]
    assert rehearsed(granularity="weights", params="4%").verdicts[0].can_be_met is False


def test_two_of_four_is_told_by_layer() -> None:
    plan = rehearsed(granularity="2:4")

    assert plan.groups == (("0", 36, "four does not divide its 1 inputs"), ("2", 216, None))
    assert [(one.dense, one.smallest) for one in plan.reach] == [(262, 262 - 108)]
    assert (plan.budgets, plan.verdicts) == ((), ())


def test_two_of_four_without_a_layer_for_it_is_refused() -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), "net.pt")

    with pytest.raises(GraphError, match=r"no layer for --granularity 2:4 \(0: four does not divide its 1 inputs\)"):
        rehearsed(granularity="2:4")


def test_a_model_without_anything_to_prune_is_refused() -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "net.pt")

    with pytest.raises(GraphError, match=r"^Sequential has nothing to prune: "):
        rehearsed()


def test_each_budget_is_judged() -> None:
    plan = rehearsed(macs="50%", params="60", size="1kB", channel_count="1", target="ssh")

    verdicts = {one.budget: one for one in plan.verdicts}
    assert {budget: one.can_be_met for budget, one in verdicts.items()} == {
        "--macs 50%": True,
        "--params 60": False,
        "--size 1kB": False,
        "--channel-count 1": True,
    }
    assert str(verdicts["--macs 50%"]) == (
        "--macs 50%: can be met. The limit is 2,376 MACs; the least possible is 1,188 MACs."
    )
    assert str(verdicts["--params 60"]) == (
        "--params 60: cannot be met. The limit is 60 parameters; the least possible is 70 parameters."
    )


def test_rounded_widths_are_judged_too() -> None:
    (verdict,) = rehearsed(channel_count="1", round_to=2).verdicts

    assert verdict.can_be_met is False
    assert verdict.reason == "The limit is 1 channels; the least possible is 2 channels."


def test_a_latency_that_nobody_can_tell_is_not_judged() -> None:
    (verdict,) = rehearsed(latency="50%", target="ssh").verdicts

    assert (verdict.budget, verdict.can_be_met) == ("--latency 50%", None)
    assert verdict.reason == "Target 'ssh' cannot predict, and needs the name of a board: give --host user@board."


def test_labels_that_do_not_fit_the_model_are_refused_as_in_a_run() -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)), "net.pt")

    with pytest.raises(InputError, match=r"^Sequential gives 3 class scores, but the labels go up to 9\."):
        rehearsed(data="digits")


def test_what_is_read_and_imported_for_the_flags_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(2704, 10)), "net.pt")
    Path("rehearsal_code.py").write_text("def same(model):\n    return model\n")
    Path("dtp-deploy.toml").write_text("")
    monkeypatch.setattr("dtp_deploy.rehearsal.FASHION_MNIST", Path("dtp-deploy.toml"))
    order = make_order(
        CompressConfig(checkpoint="net.pt", data="fashion-mnist", prepare="rehearsal_code:same", trust=True),
        ConfigFile(),
    )
    config = order.config.model_copy(update={"trust": False})

    plan = untrusted(replace(order, config=config))

    assert plan is not None
    assert plan.imports[-1] == "rehearsal_code (--prepare)"
    assert plan.files == ("net.pt", "dtp-deploy.toml")


def test_a_file_without_trust_is_told_of_and_not_loaded() -> None:
    order = make_order(CompressConfig(checkpoint="net.pt", macs="50%"), ConfigFile())

    plan = untrusted(order)

    assert plan is not None
    assert plan.model == "net.pt, not loaded"
    assert "torch.nn.modules.conv.Conv2d" in plan.imports
    assert (plan.files, plan.groups, plan.reach, plan.verdicts) == (("net.pt",), (), (), ())
    assert plan.notes == (
        "net.pt needs code to load, and --trust is missing: nothing of it was run, so its channel groups, and which "
        "budgets can be met, are not known. Give --trust if you know where the file comes from.",
    )
    assert untrusted(make_order(CompressConfig(checkpoint="net.pt", trust=True), ConfigFile())) is None
    assert untrusted(make_order(CompressConfig(checkpoint="timm:resnet18"), ConfigFile())) is None
