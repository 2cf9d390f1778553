"""Throughput of training: with masks against without, by the amount of data, and by the number of processes.

    python -m benchmarks.training [--steps 60] [--threads 1]

Prints three Markdown tables. Masks: two copies of one network train on the same random batches, step by step in turns,
and who goes first alternates; the ratio is the median of the paired ratios, with its 95 % interval. Data: images a
second for one and four times the data. Processes: the same global batch, shared by torchrun's processes.
"""

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dtp_deploy import ChannelMasks, find_groups, parse_budget
from dtp_deploy.loading import Dataset
from dtp_deploy.ranks import joined, rank, world_size
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.sharding import ShardedStream
from examples.fashion_resnet import make_model, make_wide_model

_WARM_UP = 20
"""Steps left out. In its first steps the schedule moves fast, and epsilon is searched anew in each of them."""


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One plain training step."""
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def in_turns(make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of every step without and with masks, each [steps,]."""
    torch.manual_seed(0)
    plain = make()
    masked = copy.deepcopy(plain)
    groups = find_groups(masked, torch.zeros(1, *shape[1:]))
    masks = ChannelMasks(masked, groups, parse_budget("macs", "30%"), steps=100 * steps)  # as long as real ones
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, momentum=0.9) for model in (plain, masked)]
    seconds = np.zeros((2, steps + _WARM_UP))
    for number in range(steps + _WARM_UP):
        x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter_ns()
            step((plain, masked)[which], optimizers[which], x, y)
            if which:
                masks.step()
            seconds[which, number] = (time.perf_counter_ns() - start) / 1e9
    return seconds[0, _WARM_UP:], seconds[1, _WARM_UP:]


def masks_table(steps: int) -> None:
    """Print the cost of masks."""
    rng = np.random.default_rng(0)
    print("| network | batch | images/s plain | images/s with masks | throughput ratio (95 % interval) |")
    print("|---|---|---|---|---|")
    for name, make in {"ResNet-20": make_model, "ResNet-20, 2.5 times as wide": make_wide_model}.items():
        plain, masked = in_turns(make, (64, 1, 28, 28), steps)
        ratios = plain / masked
        low, high = np.percentile(np.median(rng.choice(ratios, (2000, len(ratios))), axis=1), [2.5, 97.5])
        speeds = f"{64 / np.median(plain):.0f} | {64 / np.median(masked):.0f}"
        print(f"| {name}, 1x28x28 | 64 | {speeds} | {np.median(ratios):.3f} ({low:.3f} to {high:.3f}) |")


def train(images: int, batch: int = 64) -> float:
    """Images a second of one epoch of plain training, of all processes together."""
    rng = np.random.default_rng(0)
    x, y = rng.random((images, 1, 28, 28), np.float32), rng.integers(0, 10, images)
    data = Dataset("random", x, y, x[:batch], y[:batch])
    stream = data.train(batch, seed=0)
    shared = ShardedStream(stream, batch, rank(), world_size()) if world_size() > 1 else stream
    trainer = Trainer(shared, CLASSIFICATION, Settings(epochs=1, batch_size=batch), None)
    start = time.perf_counter()
    trainer.run(make_model(), trainer.total_steps)
    return trainer.total_steps * batch / (time.perf_counter() - start)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        with joined():
            speed = train(64 * arguments.steps)
            if rank() == 0:
                print(f"{speed:.0f}")
        return
    print(f"torch {torch.__version__}, {arguments.threads} thread(s) a process, {arguments.steps} steps each\n")
    masks_table(arguments.steps)
    print("\n| images | images/s |\n|---|---|")
    for images in (16 * arguments.steps, 64 * arguments.steps):
        print(f"| {images} | {train(images):.0f} |")
    print("\n| processes | images/s |\n|---|---|")
    worker = ["-m", "benchmarks.training", "--worker", "--steps", str(arguments.steps)]
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
        finished = subprocess.run(
            [sys.executable, *launcher, *worker, "--threads", str(arguments.threads)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads)},
        )
        print(f"| {processes} | {finished.stdout.strip()} |")


if __name__ == "__main__":
    main()
