"""What is checked before anything heavy is imported, and what is filled in."""

import subprocess
import sys
from pathlib import Path

import pytest

from dtp_deploy.budget import parse_budget
from dtp_deploy.config import CompressConfig
from dtp_deploy.errors import UsageError
from dtp_deploy.order import make_order


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_was_not_given_is_filled_in() -> None:
    order = make_order(CompressConfig(checkpoint="nets/best.pt"))

    assert order.out == Path("best-compressed")
    assert order.budgets == (parse_budget("latency", "50%"),)
    assert order.budget_is_default
    assert not make_order(CompressConfig(checkpoint="nets/best.pt", macs="50%")).budget_is_default
    assert order.target.name == "cpu"


def test_a_target_that_predicts_gets_a_budget_of_latency() -> None:
    order = make_order(CompressConfig(checkpoint="best.pt", target="jetson"))

    assert order.budgets == (parse_budget("latency", "50%"),)


def test_a_target_that_can_do_neither_gets_a_budget_of_macs() -> None:
    order = make_order(CompressConfig(checkpoint="best.pt", target="ssh", per_layer=True))

    assert order.budgets == (parse_budget("macs", "50%", "per-layer"),)


def test_a_folder_that_is_there_is_refused_unless_nothing_is_written() -> None:
    Path("best-compressed").mkdir()

    with pytest.raises(UsageError, match="--out best-compressed exists already"):
        make_order(CompressConfig(checkpoint="best.pt"))
    assert make_order(CompressConfig(checkpoint="best.pt", dry_run=True)).out == Path("best-compressed")


def test_a_statistic_without_a_latency_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        make_order(CompressConfig(checkpoint="best.pt", macs="50%", statistic="p99"))
    assert str(caught.value) == "--statistic p99 is of a latency. Give --latency too, or leave it out."


def test_single_weights_get_a_budget_of_parameters_and_two_of_four_none() -> None:
    weights = make_order(CompressConfig(checkpoint="best.pt", granularity="weights"))
    blocks = make_order(CompressConfig(checkpoint="best.pt", granularity="2:4"))

    assert (weights.budgets, weights.budget_is_default) == ((parse_budget("params", "50%"),), True)
    assert (blocks.budgets, blocks.budget_is_default) == ((), False)


def test_a_budget_that_the_granularity_cannot_keep_is_refused() -> None:
    with pytest.raises(UsageError, match="--latency 5ms cannot be kept by --granularity weights"):
        make_order(CompressConfig(checkpoint="best.pt", granularity="weights", latency="5ms"))
    with pytest.raises(UsageError, match="--params 20% does not go with --granularity 2:4"):
        make_order(CompressConfig(checkpoint="best.pt", granularity="2:4", params="20%"))
    with pytest.raises(UsageError, match="--per-layer is of a budget, and --granularity 2:4 has none"):
        make_order(CompressConfig(checkpoint="best.pt", granularity="2:4", per_layer=True))


def test_it_imports_no_pytorch() -> None:
    script = "import sys, dtp_deploy.order; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
