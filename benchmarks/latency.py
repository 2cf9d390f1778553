"""Latency as a budget: is the limit met when it is measured afresh, is it used, and how well does the table predict?

    OMP_NUM_THREADS=1 python -m benchmarks.latency [--quick] [--target cpu ...] [--structures 20]

Prints Markdown tables. Networks have random weights: the structure decides. For every network and target the table is
learned with an empty cache, and once more from the cache; random structures of preferred widths are measured and
predicted; for every budget the masks' initial scores choose channels, the loop is closed, and the structure is measured
again in new processes in turns with the dense network. Beside it stands the choice for the same MACs without the table.

The ratio is the median over six processes, and its interval their range, which holds the true median with 97 %
confidence. "Met" is a range that ends at or below the limit + 2 %.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from benchmarks.networks import make
from dtp_deploy import ChannelMasks, parse_budget
from dtp_deploy.cost import LatencyCost, count_macs
from dtp_deploy.errors import DtpError
from dtp_deploy.export.delivery import deliver
from dtp_deploy.graph import find_groups
from dtp_deploy.latency import close_loop, learn_table
from dtp_deploy.latency.structures import time_together
from dtp_deploy.latency.verdict import PROCESSES
from dtp_deploy.limits import LatencyLimit, Workbench
from dtp_deploy.profile import LatencyReport, MeasureSettings, measure, median_ratio
from dtp_deploy.prune import PruningPlan, make_plan, prove, remove_channels
from dtp_deploy.prune.choice import kept_counts
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.target import TargetSpec, target_classes

FULL = [("ResNet-18", 64), ("ResNet-18", 224), ("ResNet-50", 224), ("MobileNetV2", 224), ("DenseNet", 128)]
QUICK = [("ResNet-18", 64), ("DenseNet", 64)]
BUDGETS = ("80%", "60%", "40%")
FINAL = MeasureSettings(min_seconds=0.5, max_seconds=5.0, repeats=0)


class Case:
    """One network on one target."""

    def __init__(self, name: str, pixels: int, target: str, folder: Path, structures: int) -> None:
        self.title = f"{name}, {pixels} px, {target}"
        self.model = make(name)
        x = torch.randn(1, 3, pixels, pixels)
        self.groups = prove(self.model, find_groups(self.model, x))
        self.batches = [{"input": x.numpy()}]
        delivery = deliver(self.model, self.groups.inputs, folder / "dense.onnx", self.batches, "dense")
        self.dense = cast(Any, SimpleNamespace(delivery=delivery))
        self.bench = Workbench(self.model, self.groups, self.dense, self.batches, folder, TargetSpec(target))
        began = time.monotonic()
        self.limits = {text: LatencyLimit(parse_budget("latency", text), self.bench) for text in BUDGETS[:1]}
        first = self.limits[BUDGETS[0]]
        self.learning_s = time.monotonic() - began
        began = time.monotonic()
        self.table = learn_table(first.probe)
        self.cached_s = time.monotonic() - began
        self.limits |= {text: LatencyLimit(parse_budget("latency", text), self.bench) for text in BUDGETS[1:]}
        self.errors, self.apart = self.prediction_errors(first, structures)

    def units(self, plan: PruningPlan) -> torch.Tensor:
        """Units kept of every prunable group."""
        return kept_counts({choice.name: choice.kept_units for choice in plan.groups}, self.groups.prunable)

    def prediction_errors(self, limit: LatencyLimit, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Relative errors of predicted shares of the dense latency, for random structures of preferred widths.

        They are measured twice, and the mean counts; how far the two are apart, which comes second, no table predicts.
        """
        cost = cast(LatencyCost, limit.cost)
        rng = np.random.default_rng(1)
        plans = {}
        for number in range(count):
            kept = {}
            for group, units in zip(self.groups.prunable, limit.preferred or [], strict=True):
                allowed = [each for each in units if each >= 0.2 * group.units]
                kept[group.name] = range(int(rng.choice(allowed)))
            plans[str(number)] = make_plan(self.groups, kept, fingerprint_of(self.model))
        shares = []
        for _ in range(2):
            (dense_ms, *measured), _ = time_together(limit.probe, plans)
            shares.append(np.array(measured) / dense_ms)
        predicted = np.array([cost.exact(self.units(plan)) for plan in plans.values()]) / self.table.dense_ms
        return predicted / np.sqrt(shares[0] * shares[1]) - 1, np.abs(shares[0] / shares[1] - 1)

    def budget_row(self, text: str, folder: Path) -> str:
        """What became of one budget."""
        limit = self.limits[text]
        masks = self.masks(text, limit)
        tried: list[float] = []

        def used(plan: PruningPlan) -> float:
            tried.append(limit.used(plan))
            return tried[-1]

        try:
            plan = close_loop(masks, used, fill=limit.fill, aim=limit.aim)
        except DtpError as error:
            return f"| {self.title} | {text} | not met: {error} |"
        macs = count_macs(remove_channels(self.model, plan), self.groups.inputs)
        masks.detach()
        by_macs = ChannelMasks(make_copy(self.model), self.groups, parse_budget("macs", str(macs)), steps=1)
        rival = by_macs.choose()
        files = {"dense": self.dense.delivery.path}
        for name, each in (("latency", plan), ("macs", rival)):
            files[name] = folder / f"{name}.onnx"
            deliver(remove_channels(self.model, each), self.groups.inputs, files[name], self.batches, name)
        runs = self.measured(files, "latency", "dense")  # a third in turn would push weights out of the cache
        ratios = [median_ratio(run["latency"], run["dense"]).ratio for run in runs]
        faster = [median_ratio(run["latency"], run["macs"]).ratio for run in self.measured(files, "latency", "macs")]
        share, searched = limit.budget.limit, max(each for each in tried if each <= 1)
        unstable = sum(not report.stable for run in runs for report in run.values())
        return (
            f"| {self.title} | {text} | {_range(ratios)} | {'yes' if max(ratios) <= share * 1.02 else 'no'} "
            f"| {np.median(ratios) / share:.1%} | {searched:.1%} | {len(tried)} | {_range(faster)} "
            f"| {self.mass(masks, plan) / self.mass(masks, rival):.3f} | {unstable} of {2 * len(runs)} |"
        )

    def measured(self, files: Mapping[str, Path], *names: str) -> list[dict[str, LatencyReport]]:
        """These of the files in turns, in several fresh processes."""
        return [measure({name: files[name] for name in names}, self.bench.target, FINAL) for _ in range(PROCESSES)]

    def masks(self, text: str, limit: LatencyLimit) -> ChannelMasks:
        """Masks with their initial scores."""
        return ChannelMasks(
            make_copy(self.model),
            self.groups,
            parse_budget("latency", text),
            steps=1,
            cost=limit.cost,
            limit=limit.limit,
            preferred=limit.preferred,
        )

    def mass(self, masks: ChannelMasks, plan: PruningPlan) -> float:
        """Sum of the scores that a plan keeps, counted from the lowest score."""
        kept = {choice.name: list(choice.kept_units) for choice in plan.groups}
        scores = masks.group_scores()
        lowest = min(float(each.min()) for each in scores)
        return sum(
            float((each[kept[group.name]] - lowest).sum())
            for each, group in zip(scores, self.groups.prunable, strict=True)
        )


def make_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy, as masks are put on in place."""
    return copy.deepcopy(model)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--target", action="append", help="by default every one that is available")
    parser.add_argument("--network", action="append", help="by default all of the list")
    parser.add_argument("--pixels", type=int, action="append", help="of these sizes only")
    parser.add_argument("--structures", type=int, help="random structures a network; 20, or 8 with --quick")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    targets = arguments.target or [
        name
        for name, target in target_classes().items()
        if not _needs_more(target) and target().availability().available
    ]
    structures = arguments.structures or (8 if arguments.quick else 20)
    listed = QUICK if arguments.quick else FULL
    cases = [
        case for case in listed if case[0] in (arguments.network or case) and case[1] in (arguments.pixels or case)
    ]
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} logical CPUs\n", flush=True)
    summary, rows = [], []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DTP_DEPLOY_CACHE"] = cache
        for target in targets:
            for name, pixels in cases:
                with ExitStack() as stack:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    case = Case(name, pixels, target, folder, structures)
                    errors, own = np.abs(case.errors), np.abs(case.table.errors)
                    _tell(
                        f"{case.title}: learned in {case.learning_s:.0f} s, errors {np.round(case.errors, 3).tolist()}"
                    )
                    summary.append(
                        f"| {case.title} | {case.learning_s:.0f} | {case.cached_s:.1f} "
                        f"| {np.median(own):.1%} | {own.max():.1%} | {np.median(errors):.1%} | {errors.max():.1%} "
                        f"| {case.errors.mean():+.1%} | {np.median(case.apart):.1%} | {case.apart.max():.1%} "
                        f"| {os.getloadavg()[0]:.1f} |"
                    )
                    for text in BUDGETS:
                        rows.append(case.budget_row(text, folder))
                        _tell(rows[-1])
    print(
        "| network | learning s | from cache s | median error when learned, on structures not seen | worst "
        "| median error measured later | worst | mean (signed) | two such measurements apart, median | worst | load |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(summary), "\n")
    print(
        "| network | limit | latency / dense (range) | met | of the limit | when it was searched | structures measured "
        "| latency / that of the MACs budget, same MACs | score mass / that of the MACs budget | unstable |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}.")


def _range(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _needs_more(target: type) -> bool:
    """Whether a target cannot be made without options (a host, say)."""
    return any(
        parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        for parameter in inspect.signature(target).parameters.values()
    )


if __name__ == "__main__":
    main()
