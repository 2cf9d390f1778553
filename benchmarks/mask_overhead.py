"""What the masks cost: a training step with `ChannelMasks` against the same step without, in turns, in one run.

    python -m benchmarks.mask_overhead [--steps 60] [--threads 1]

Prints a Markdown table: median step time of both, and the median of the paired ratios with its 95 % interval. Two
copies of one network train on the same random batches; step by step they take turns, and who goes first alternates.
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dtp_deploy import ChannelMasks, find_groups, parse_budget
from dtp_deploy.testing.zoo import ZOO
from examples.fashion_resnet import make_model, make_wide_model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One plain training step."""
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def compare(make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every step without and with masks, each [steps,]."""
    torch.manual_seed(0)
    plain = make()
    masked = copy.deepcopy(plain)
    groups = find_groups(masked, torch.zeros(1, *shape[1:]))
    masks = ChannelMasks(masked, groups, parse_budget("macs", "30%"), steps=steps + 5)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (plain, masked)]
    seconds = np.zeros((2, steps + 5))
    for number in range(steps + 5):
        x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter_ns()
            step((plain, masked)[which], optimizers[which], x, y)
            if which:
                masks.step()
            seconds[which, number] = (time.perf_counter_ns() - start) / 1e9
    return seconds[0, 5:], seconds[1, 5:]  # the first steps warm up


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.steps} steps each\n")
    print("| network | batch | plain ms | with masks ms | ratio (95 % interval) |\n|---|---|---|---|---|")
    cases = {
        "ResNet-20 1x28x28": (make_model, (64, 1, 28, 28)),
        "wide ResNet-20 1x28x28": (make_wide_model, (64, 1, 28, 28)),
        "zoo depthwise 3x32x32": (ZOO["depthwise"].make, (64, *ZOO["depthwise"].input_shape[1:])),
    }
    for name, (make, shape) in cases.items():
        plain, masked = compare(make, shape, arguments.steps)
        ratios = masked / plain
        draws = np.median(ratios[rng.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        print(
            f"| {name} | {shape[0]} | {1e3 * np.median(plain):.1f} | {1e3 * np.median(masked):.1f} "
            f"| {np.median(ratios):.3f} ({low:.3f} to {high:.3f}) |"
        )


if __name__ == "__main__":
    main()
