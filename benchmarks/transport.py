"""Time and memory of one solve and its backward pass: the exact solver, POT's Sinkhorn and a plain top-k side by side.

    python -m benchmarks.transport [--most 1000000] [--threads 1]

Each round lets all solvers have their turn on the same scores, and a ratio is the median of the rounds' ratios, so that
a machine that is busy for a while slows both sides. A turn is one call, which finds the caches full of another solver's
data, and then calls for 20 ms, four at least where that does not take longer than a second: their median counts, and
the first call's time is in a column of its own. POT records its iterations for autograd and stops at a
marginal error of 1e-12; the exact solver stops at 1e-13 of the budget. The errors that they reach are in the table.
Top-k (`torch.topk`, straight-through gradient) solves an easier problem: it is the floor for anything that ranks units.
Memory is the peak of a fresh process above what it held before the solve (Linux only).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import ot
import torch
from torch import Tensor

from dtp_deploy.transport import LinearCost, TransportProblem, softness, solve_exact

SHARE = 0.3
SIZES = (10**3, 10**4, 10**5, 10**6)
EPSILONS = (0.1, 0.01)
ROUNDS = {10**3: 31, 10**4: 21, 10**5: 7, 10**6: 5}
POT_MOST = {0.1: 10**6, 0.01: 10**4}
"""Largest n for POT: beyond it one solve takes 17 to 100 s and gigabytes for its recorded iterations."""

_TURN_MS, _LEAST_CALLS, _LONG_TURN_MS = 20, 4, 1000

Solver = Callable[[Tensor, float], Tensor]


def exact(scores: Tensor, epsilon: float) -> Tensor:
    cost = LinearCost(torch.ones_like(scores))
    return solve_exact(TransportProblem(scores, epsilon, cost, SHARE * len(scores))).masks


def pot(scores: Tensor, epsilon: float) -> Tensor:
    mass = torch.full_like(scores, 1 / len(scores))
    bins = torch.tensor([1 - SHARE, SHARE], dtype=scores.dtype)
    costs = torch.stack([scores**2, (scores - 1) ** 2], dim=1)
    plan: Tensor = ot.sinkhorn(mass, bins, costs, epsilon, stopThr=1e-12, numItermax=100_000)
    return plan[:, 1] * len(scores)


def topk(scores: Tensor, epsilon: float) -> Tensor:
    kept = scores.detach().topk(round(SHARE * len(scores))).indices
    return torch.zeros_like(scores).index_fill(0, kept, 1.0) + (scores - scores.detach())


SOLVERS: dict[str, Solver] = {"exact": exact, "POT": pot, "top-k": topk}


def make_scores(count: int) -> tuple[Tensor, Tensor]:
    """Scores, uniform in [0, 1), and an upstream gradient."""
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(count, dtype=torch.float64, generator=generator)
    return scores.requires_grad_(), torch.randn(count, dtype=torch.float64, generator=generator)


def solve_and_backward(name: str, scores: Tensor, upstream: Tensor, epsilon: float) -> tuple[Tensor, float]:
    """Masks, and the time of the solve and its backward pass in ms."""
    begin = time.perf_counter_ns()
    masks = SOLVERS[name](scores, epsilon)
    torch.autograd.grad(masks, scores, upstream)
    return masks.detach(), (time.perf_counter_ns() - begin) / 1e6


def turn(name: str, scores: Tensor, upstream: Tensor, epsilon: float) -> tuple[float, float]:
    """Times in ms of a solve and its backward pass: of the first call after another solver, and of those after it."""
    first = solve_and_backward(name, scores, upstream, epsilon)[1]
    again: list[float] = []
    while sum(again) < _TURN_MS or (len(again) < _LEAST_CALLS and sum(again) < _LONG_TURN_MS):
        again.append(solve_and_backward(name, scores, upstream, epsilon)[1])
    return first, statistics.median(again)


def peak_mib(name: str, count: int, epsilon: float) -> float:
    """Peak memory of one solve and backward above what the process held before; call it in a fresh process."""
    solve_and_backward(name, *make_scores(100), epsilon)  # what is loaded on first use is not the solver's memory
    scores, upstream = make_scores(count)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _status_kib("VmRSS")
    solve_and_backward(name, scores, upstream, epsilon)
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


@dataclass(frozen=True)
class Case:
    """What was measured for one number of units and one epsilon, by solver."""

    count: int
    epsilon: float
    softness: float
    times_ms: dict[str, list[float]]
    first_ms: dict[str, list[float]]
    errors: dict[str, float]
    memory_mib: dict[str, float]

    @property
    def label(self) -> list[str]:
        return [f"{self.count:,}", f"{self.epsilon:g}"]

    def time_row(self) -> list[str]:
        texts = [spread(self.times_ms[name]) if name in self.times_ms else "not run" for name in SOLVERS]
        return [*self.label, f"{self.softness:.2f}", *texts, *self.ratios(self.times_ms)]

    def first_row(self) -> list[str]:
        texts = [spread(self.first_ms[name]) if name in self.first_ms else "not run" for name in SOLVERS]
        return [*self.label, *texts, *self.ratios(self.first_ms)]

    @staticmethod
    def ratios(times_ms: dict[str, list[float]]) -> list[str]:
        """The other solvers' times by the exact one's."""
        others = [name for name in SOLVERS if name != "exact"]
        return [f"{ratio(times_ms[name], times_ms['exact']):.3g}" if name in times_ms else "" for name in others]

    def memory_row(self) -> list[str]:
        memory = [f"{self.memory_mib[name]:.1f}" if name in self.memory_mib else "not run" for name in SOLVERS]
        errors = [f"{self.errors[name]:.0e}" if name in self.errors else "" for name in ("exact", "POT")]
        return [*self.label, *memory, *errors]


def measure(count: int, epsilon: float) -> Case:
    """All solvers in turns, then the memory of each in a process of its own."""
    scores, upstream = make_scores(count)
    names = [name for name in SOLVERS if name != "POT" or count <= POT_MOST[epsilon]]
    masks = {name: solve_and_backward(name, scores, upstream, epsilon)[0] for name in names}  # warm-up
    times: dict[str, list[float]] = {name: [] for name in names}
    first: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS[count]):
        for name in names:
            at_first, again = turn(name, scores, upstream, epsilon)
            first[name].append(at_first)
            times[name].append(again)
    memory = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_mib, name, count, epsilon).result()
    errors = {name: abs(float(masks[name].mean()) / SHARE - 1) for name in names}
    return Case(count, epsilon, softness(masks["exact"]), times, first, errors, memory)


def spread(samples: list[float]) -> str:
    """Median and range."""
    middle, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(samples), min(samples), max(samples))
    )
    return f"{middle} ({least}-{most})"


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def growth(cases: list[Case]) -> str:
    """By what factor time and memory grow with the last step of n; less than a MiB cannot be told from noise."""
    before, after = cases[-2:]
    parts = []
    for name in (name for name in SOLVERS if name in before.times_ms and name in after.times_ms):
        slower = statistics.median(after.times_ms[name]) / statistics.median(before.times_ms[name])
        parts.append(f"{name} time x {slower:.1f}")
        if before.memory_mib[name] >= 1:
            parts[-1] += f", memory x {after.memory_mib[name] / before.memory_mib[name]:.1f}"
    return f"From {before.count:,} to {after.count:,} units, epsilon {after.epsilon:g}: {'; '.join(parts)}."


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=max(SIZES), help="leave out sizes above this many units")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = [count for count in SIZES if count <= arguments.most]
    cases = {epsilon: [measure(count, epsilon) for count in sizes] for epsilon in EPSILONS}
    print(
        f"torch {torch.__version__}, POT {ot.__version__}, {arguments.threads} thread(s), "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. "
        f"float64, scores uniform in [0, 1), {SHARE:.0%} kept. "
        "Milliseconds of one solve and its backward pass: median (range).\n"
    )
    heads = ["n", "epsilon", "softness", "exact ms", "POT ms", "top-k ms", "POT / exact", "top-k / exact"]
    print_table(heads, [case.time_row() for column in cases.values() for case in column])
    print("The first calls of each turn:\n")
    heads = ["n", "epsilon", "exact ms", "POT ms", "top-k ms", "POT / exact", "top-k / exact"]
    print_table(heads, [case.first_row() for column in cases.values() for case in column])
    heads = ["n", "epsilon", "exact MiB", "POT MiB", "top-k MiB", "exact: error of the mass", "POT: error of the mass"]
    print_table(heads, [case.memory_row() for column in cases.values() for case in column])
    for column in cases.values():
        if len(column) > 1:
            print(growth(column))


if __name__ == "__main__":
    main()
