"""Accuracy of pruned classifiers, side by side: differentiable transportation and what users would take instead.

    python -m benchmarks.accuracy --data fashion.npz --quick --workers 2 --json rows.json --picture accuracy.png

All methods start from the same base model, see the same data, make the same number of steps along the same learning
rate schedule with the same distillation, and keep the same budget of MACs; seeds are paired. Data is an `.npz` in the
format of `dtp-deploy compress`. `--tune` first chooses the strengths of the regularising methods for every cell, on a
part of the training data that a base model of its own has not seen; `dtp` keeps its defaults. `--bases` starts from
several base models: how far one method is ahead of another differs more from base to base than from seed to seed. Rows
that the JSON file holds already, of the same settings, are not run again, so a benchmark that was cut off goes on.

`--quick`: resnet20 and mobilenetv2, 25 and 10 % of the MACs, five methods, three seeds, stem stride 2.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.ablations import CHANGED, LEARNED, STARTED
from benchmarks.classifiers import CLASSIFIERS, accuracy, base_model
from benchmarks.pruners import METHODS, STRENGTHS, Job, prune
from benchmarks.rows import Row, in_points, run_missing
from dtp_deploy import find_groups, prove
from dtp_deploy.cost import macs_per_sample
from dtp_deploy.loading import Dataset, load_data
from dtp_deploy.train import Settings

_SETTINGS = ("base_epochs", "batch_size", "learning_rate", "augment", "stem_stride")
"""Options that are the same for all rows of a call."""
KEY = ("data", "model", "base", "budget", "method", "seed", "epochs", "strength", *_SETTINGS, "tune")
"""What tells one run from another."""
Pair = tuple[int, int]
"""What is compared: the number of the base model, and the seed of the pruning."""
Cell = tuple[str, str, float]
"""What a table has a line for: data, model, and budget in percent of the MACs."""
_HELD_OUT = 6
"""One in so many training images is held out for tuning."""
_QUICK = {
    "models": ["resnet20", "mobilenetv2"],
    "budgets": [25.0, 10.0],
    "methods": ["dtp", "l2-uniform", "bn-scale", "groupnorm", "growing-reg"],
}
_T_95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    11: 2.201,
    14: 2.145,
}
"""Student's t for a 95 % interval by degrees of freedom; between two of them the smaller number of degrees counts."""


def dataset(path: str, tune: bool) -> Dataset:
    """The data; for tuning, a part of its training images takes the place of the test images."""
    data = load_data(path)
    if not isinstance(data, Dataset):
        raise SystemExit(f"--data {path}: give an .npz file, or digits")
    if not tune:
        return data
    held = torch.arange(len(data.y_train)).numpy() % _HELD_OUT == 0
    x, y = data.x_train, data.y_train
    return replace(data, x_train=x[~held], y_train=y[~held], x_val=x[held], y_val=y[held])


def base_of(arguments: argparse.Namespace, data: Dataset, model: str, number: int) -> torch.nn.Module:
    """A base model, which for tuning has not seen the held-out images either; its number seeds its training."""
    return base_model(
        model, data, arguments.stem_stride, arguments.base_epochs, arguments.augment, arguments.cache, number
    )


def run(arguments: argparse.Namespace, row: Row) -> Row:
    """One run, in a process of its own with one thread."""
    torch.set_num_threads(1)
    data = dataset(row["data"], row["tune"])
    base = base_of(arguments, data, row["model"], row["base"])
    groups = prove(base, find_groups(base, torch.zeros(1, *data.sample_shape)))
    settings = Settings(
        epochs=row["epochs"],
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        augment=arguments.augment,
        seed=row["seed"],
    )
    start = time.perf_counter()
    job = Job(base, groups, data, row["budget"] / 100, settings, row["strength"])
    outcome = prune(row["method"], job)
    return row | {
        "accuracy": accuracy(outcome.model, data),
        "macs": macs_per_sample(outcome.model, groups.inputs),
        "accuracy_at_hardening": outcome.accuracy_at_hardening,
        "seconds": time.perf_counter() - start,
    }


def wanted(arguments: argparse.Namespace, strengths: Mapping[tuple[Cell, str], float]) -> Iterator[Row]:
    """Rows of the tables to run, without their results: all methods of a cell one after the other.

    Args:
        arguments: the options.
        strengths: by cell and method, where it is not the published one.
    """
    bases, seeds = range(arguments.bases), range(arguments.seeds)
    for data, model, base, budget, seed, method in product(
        arguments.data, arguments.models, bases, arguments.budgets, seeds, arguments.methods
    ):
        strength = strengths.get(((Path(data).stem, model, budget), method))
        yield _row(arguments, data, model, base, budget, seed, method) | {"strength": strength, "tune": False}


def _row(arguments: argparse.Namespace, data: str, model: str, base: int, budget: float, seed: int, method: str) -> Row:
    what = {"data": data, "model": model, "base": base, "budget": budget, "method": method, "seed": seed}
    return what | {"epochs": arguments.epochs} | {name: getattr(arguments, name) for name in _SETTINGS}


def to_tune(arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows that choose strengths: every strength of a method once for every cell, judged on held-out images."""
    for data, model, budget, method in product(arguments.data, arguments.models, arguments.budgets, arguments.methods):
        for strength in STRENGTHS.get(method, ()):
            yield _row(arguments, data, model, 0, budget, 0, method) | {"strength": strength, "tune": True}


def tuned(rows: Sequence[Row]) -> dict[tuple[Cell, str], float]:
    """By cell and method, the strength that did best on held-out images where it is not the published one; printed."""
    tried: dict[tuple[Cell, str], dict[float, float]] = defaultdict(dict)
    # In their order, so that the published one, which is the first, wins ties.
    for row in sorted(rows, key=lambda row: STRENGTHS[row["method"]].index(row["strength"])):
        tried[cell_of(row), row["method"]][row["strength"]] = 100 * row["accuracy"]
    for ((data, model, budget), method), points in tried.items():
        each = ", ".join(f"{strength:g}: {value:.2f}" for strength, value in points.items())
        print(f"strengths of {method}, {data} {model} {budget:g} %, held-out training images: {each}")
    best = {what: max(points, key=points.__getitem__) for what, points in tried.items()}
    return {(cell, method): value for (cell, method), value in best.items() if value != STRENGTHS[method][0]}


def cell_of(row: Row) -> Cell:
    """The cell of the tables that a row belongs to."""
    return Path(row["data"]).stem, row["model"], row["budget"]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval, by Student's t.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    middle = mean(values)
    if len(values) < 2:
        return middle, -math.inf, math.inf
    freedom = max(known for known in _T_95 if known <= len(values) - 1)
    half = _T_95[freedom] * stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def cells(rows: Sequence[Row]) -> dict[Cell, dict[str, dict[Pair, float]]]:
    """Points by cell, then by method, then by pair."""
    table: dict[Cell, dict[str, dict[Pair, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        table[cell_of(row)][row["method"]][row.get("base", 0), row["seed"]] = 100 * row["accuracy"]
    return table


def _dtp_first(table: Mapping[Any, Mapping[str, object]]) -> list[str]:
    """The names of all methods of a table."""
    return sorted({name for by_method in table.values() for name in by_method}, key=lambda name: (name != "dtp", name))


def print_tables(rows: Sequence[Row], bases: dict[tuple[str, str], float]) -> None:
    """Accuracy by cell and method, and how far `dtp` is from the best other method of each cell."""
    table = cells(rows)
    methods = _dtp_first(table)
    print("\n| data | model | dense | MACs | " + " | ".join(methods) + " | dtp - best other |")
    print("|---|---|---|---|" + "---|" * (len(methods) + 1))
    pooled: dict[float, list[float]] = defaultdict(list)
    for (data, model, budget), by_method in table.items():
        scores = [in_points([*by_method.get(name, {}).values()]) for name in methods]
        differences = _differences(by_method)
        pooled[budget] += differences
        last = f"{mean(differences):+.2f}" if differences else ""
        print(f"| {data} | {model} | {bases[data, model]:.2f} | {budget:g} % | {' | '.join(scores)} | {last} |")
    everything = [value for values in pooled.values() for value in values]
    if everything:
        parts = {"all": everything} | {f"{budget:g} %": values for budget, values in pooled.items()}
        for name, values in parts.items():
            middle, low, high = interval(values)
            print(f"\ndtp - best other, {name}: {middle:+.2f} ({low:+.2f} to {high:+.2f}), {len(values)} pairs")


def _differences(by_method: dict[str, dict[Pair, float]]) -> list[float]:
    """`dtp` less the best other method, pair by pair; the best is the one that `dtp` leads least, after the fact.

    Of several base models each gives one, the mean over its seeds, which are no independent trials of the method.
    """
    dtp = by_method.get("dtp", {})
    others = [by_pair for name, by_pair in by_method.items() if not name.startswith("dtp") and dtp.keys() & by_pair]
    if not others:
        return []
    leads = [{pair: value - other[pair] for pair, value in dtp.items() if pair in other} for other in others]
    least = min(leads, key=lambda lead: mean(lead.values()))
    differences: dict[int, list[float]] = defaultdict(list)
    for pair, lead in least.items():
        differences[pair[0]].append(lead)
    if len(differences) > 1:
        return [mean(values) for values in differences.values()]
    return [value for values in differences.values() for value in values]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against MACs, a panel for each model and data set; a method has the same colour in all of them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    table = cells(rows)
    panels = sorted({cell[:2] for cell in table})
    methods = _dtp_first(table)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False, layout="constrained")
    for (data, model), axis in zip(panels, axes[0], strict=True):
        budgets = sorted(cell[2] for cell in table if cell[:2] == (data, model))
        for number, name in enumerate(methods):
            points = [(budget, table[data, model, budget].get(name)) for budget in budgets]
            values = [(budget, list(by_pair.values())) for budget, by_pair in points if by_pair]
            axis.errorbar(
                [budget for budget, _ in values],
                [mean(value) for _, value in values],
                [stdev(value) if len(value) > 1 else 0.0 for _, value in values],
                label=name,
                color=f"C{number}",
                capsize=2,
                marker="o",
                linewidth=2.2 if name == "dtp" else 1.0,
            )
        axis.set(title=f"{model} on {data}", xlabel="MACs, % of the dense model", xscale="log", ylabel="top-1, points")
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axis.minorticks_off()
    axes[0][0].legend()
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    """The options; `--quick` decides models, budgets, methods and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="an .npz in the format of compress, or digits")
    parser.add_argument("--models", nargs="+", choices=list(CLASSIFIERS), default=list(CLASSIFIERS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[50.0, 25.0, 10.0], help="percent of the MACs")
    ablations = {*CHANGED, *LEARNED, *STARTED} - {"dtp-sinkhorn-1"}
    usual = [method for method in METHODS if method not in ablations]
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=usual, help="by default all but the ablations"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the pruning, for every base model")
    parser.add_argument(
        "--bases", type=int, default=1, help="base models to start from, trained from seeds of their own"
    )
    parser.add_argument("--epochs", type=int, default=1, help="in all, whatever a method does in them")
    parser.add_argument("--base-epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--augment", default="shift-flip")
    parser.add_argument("--stem-stride", type=int, choices=[1, 2], default=1, help="2 quarters what training costs")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy"), help="folder of the base models")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    parser.add_argument("--tune", action="store_true", help="choose strengths on held-out training images first")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.picture is not None and find_spec("matplotlib") is None:
        parser.error("--picture needs matplotlib: pip install matplotlib")
    if arguments.quick:
        vars(arguments).update(_QUICK, data=arguments.data[:1], seeds=3, stem_stride=2)
    return arguments


def main() -> None:
    """Run what is asked for and print it."""
    arguments = parse()
    torch.set_num_threads(1)
    bases = {}
    for path, model in product(arguments.data, arguments.models):
        data = dataset(path, tune=False)
        trained = [base_of(arguments, data, model, number) for number in range(arguments.bases)]
        bases[Path(path).stem, model] = mean(100 * accuracy(base, data) for base in trained)
    run_all = partial(
        run_missing, run=partial(run, arguments), names=KEY, workers=arguments.workers, path=arguments.json
    )
    strengths = {}
    if arguments.tune:
        for path, model in product(arguments.data, arguments.models):
            base_of(arguments, dataset(path, tune=True), model, 0)  # into the cache, once
        strengths = tuned(run_all([*to_tune(arguments)]))
    rows = run_all([*wanted(arguments, strengths)])
    print_tables(rows, bases)
    if arguments.picture is not None:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()
