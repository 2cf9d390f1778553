"""Is a network pruned to a latency faster than one pruned to MACs that is as accurate?

    OMP_NUM_THREADS=1 python -m benchmarks.equal_accuracy --data fashion.npz [--latency 60%] [--macs 60% 45% 30%]

Prunes one base model to a latency and to several numbers of MACs, all with the same data, steps and seeds, and measures
everything that was delivered in turns with the dense network, in several fresh processes. What a MACs budget takes at
the accuracy of the latency budget is interpolated between the two MACs budgets around it; where the accuracy lies
outside of all of them, nothing is said. Prints a table and the ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch

from benchmarks.classifiers import CLASSIFIERS, accuracy, base_model
from dtp_deploy import Settings, compress, parse_budget
from dtp_deploy.errors import BudgetError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.latency.verdict import PROCESSES
from dtp_deploy.loading import Dataset, load_data
from dtp_deploy.profile import MeasureSettings, measure, median_ratio
from dtp_deploy.report import read_report

_FINAL = MeasureSettings(min_seconds=0.5, max_seconds=5.0, repeats=0)


@dataclass(frozen=True)
class Point:
    """What a budget gave, as a mean over the seeds: a fraction, and the latency as a share of the dense one."""

    budget: str
    accuracy: float
    latency: float


def latency_at(accuracy: float, points: Sequence[Point]) -> float | None:
    """The latency of a network of this accuracy, interpolated between two neighbours; None outside of all points.

    >>> latency_at(0.85, [Point("30%", 0.8, 0.4), Point("60%", 0.9, 0.8)])
    0.6
    >>> latency_at(0.95, [Point("30%", 0.8, 0.4), Point("60%", 0.9, 0.8)])
    """
    ordered = sorted(points, key=lambda point: point.accuracy)
    for low, high in pairwise(ordered):
        if low.accuracy <= accuracy <= high.accuracy and low.accuracy < high.accuracy:
            share = (accuracy - low.accuracy) / (high.accuracy - low.accuracy)
            return round(low.latency + share * (high.latency - low.latency), 4)
    return None


def prune(model: torch.nn.Module, data: Dataset, kind: str, text: str, settings: Settings, out: Path) -> float:
    """Deliver a pruned model to `out`; its accuracy there. A latency that was missed at the end is delivered too."""
    try:
        report = compress(model, data=data, budget=parse_budget(kind, text), out=out, settings=settings, device="cpu")
    except BudgetError:
        if not (out / "report.json").is_file():
            raise
        report = read_report(out / "report.json")
    assert report.pruned.accuracy is not None
    return report.pruned.accuracy


def main() -> None:
    """Prune, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz in the format of compress, or digits")
    parser.add_argument("--model", choices=list(CLASSIFIERS), default="resnet20")
    parser.add_argument("--latency", default="60%")
    parser.add_argument("--macs", nargs="+", default=["60%", "45%", "30%"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--base-epochs", type=int, default=12)
    parser.add_argument("--augment", default="shift-flip")
    parser.add_argument("--stem-stride", type=int, choices=[1, 2], default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy"), help="folder of the base models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(arguments.data)
    if not isinstance(data, Dataset):
        raise SystemExit(f"--data {arguments.data}: give an .npz file, or digits")
    base = base_model(
        arguments.model, data, arguments.stem_stride, arguments.base_epochs, arguments.augment, arguments.cache
    )
    budgets = [("latency", arguments.latency), *(("macs", text) for text in arguments.macs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"dense": folder / "dense.onnx"}
        export_onnx(base, torch.zeros(1, *data.sample_shape), files["dense"])
        accuracies: dict[tuple[str, str], list[float]] = {budget: [] for budget in budgets}
        for seed in range(arguments.seeds):
            settings = Settings(
                epochs=arguments.epochs, batch_size=64, learning_rate=0.02, augment=arguments.augment, seed=seed
            )
            for kind, text in budgets:
                out = folder / f"{kind}-{text.rstrip('%')}-{seed}"
                accuracies[kind, text].append(prune(base, data, kind, text, settings, out))
                files[out.name] = out / "model.onnx"
                print(f"--{kind} {text}, seed {seed}: {100 * accuracies[kind, text][-1]:.2f}", flush=True)
        runs = [measure(files, "cpu", _FINAL) for _ in range(PROCESSES)]
    shares = {
        name: median(median_ratio(run[name], run["dense"]).ratio for run in runs) for name in files if name != "dense"
    }
    print(f"\nDense: {100 * accuracy(base, data):.2f}. Load at the end {os.getloadavg()[0]:.1f}, one thread.\n")
    print("| budget | accuracy, by seed | latency / dense, by seed |\n|---|---|---|")
    points = {}
    for kind, text in budgets:
        taken = [shares[f"{kind}-{text.rstrip('%')}-{seed}"] for seed in range(arguments.seeds)]
        points[kind, text] = Point(text, mean(accuracies[kind, text]), mean(taken))
        figures = ", ".join(f"{100 * value:.2f}" for value in accuracies[kind, text])
        print(f"| {kind} {text} | {figures} | {', '.join(f'{share:.3f}' for share in taken)} |")
    ours = points.pop(budgets[0])
    rival = latency_at(ours.accuracy, list(points.values()))
    if rival is None:
        print("\nThe accuracy of the latency budget lies outside of those of the MACs budgets: give others.")
        return
    print(
        f"\nAt the accuracy of the latency budget ({100 * ours.accuracy:.2f}) a MACs budget takes {rival:.3f} of the "
        f"dense latency, the latency budget {ours.latency:.3f}: {ours.latency / rival:.3f} of it."
    )


if __name__ == "__main__":
    main()
