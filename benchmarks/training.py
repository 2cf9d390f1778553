"""Throughput of training: with masks against without, by layout, by the amount of data, by the number of processes.

    python -m benchmarks.training [--steps 60] [--threads 1] [--device cuda]

Prints four Markdown tables. Masks, layout: two copies of one network train on the same random batches, step by step in
turns, and who goes first alternates; the ratio is the median of the paired ratios, with its 95 % interval. Data: images
a second for one and four times the data. Processes (on CPUs): the same global batch, shared by torchrun's processes.
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
from dtp_deploy.memory import freed_memory_kept
from dtp_deploy.ranks import joined, rank
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.layout import channels_last
from dtp_deploy.train.stream import open_stream
from examples.fashion_resnet import make_model, make_wide_model

_WARM_UP = 20
"""Steps left out. In its first steps the schedule moves fast, and epsilon is searched anew in each of them."""


Step = Callable[[torch.Tensor, torch.Tensor], None]


def stepper(model: nn.Module, after: Callable[[], None] = lambda: None) -> Step:
    """One plain training step of a model, and what comes after it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def in_turns(first: Step, second: Step, shape: tuple[int, ...], steps: int, device: torch.device) -> np.ndarray:
    """Seconds of every step of both, [2, steps]."""
    seconds = np.zeros((2, steps + _WARM_UP))
    for number in range(steps + _WARM_UP):
        x, y = torch.randn(shape, device=device), torch.randint(0, 10, shape[:1], device=device)
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter_ns()
            (first, second)[which](x, y)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[which, number] = (time.perf_counter_ns() - start) / 1e9
    return seconds[:, _WARM_UP:]


def row(name: str, seconds: np.ndarray, batch: int) -> str:
    """A line of a table: images a second of both, and the throughput of the second over the first."""
    ratios = seconds[0] / seconds[1]
    low, high = np.percentile(
        np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1), [2.5, 97.5]
    )
    speeds = " | ".join(f"{batch / np.median(one):.0f}" for one in seconds)
    return f"| {name} | {batch} | {speeds} | {np.median(ratios):.3f} ({low:.3f} to {high:.3f}) |"


def paired_tables(steps: int, device: torch.device) -> None:
    """Print the cost of masks, and what the layout gains."""
    shape = (64, 1, 28, 28)
    rows: dict[str, list[str]] = {"with masks": [], "channels last": []}
    for name, make in {"ResNet-20": make_model, "ResNet-20, 2.5 times as wide": make_wide_model}.items():
        torch.manual_seed(0)
        plain = make().to(device)
        masked, last = copy.deepcopy(plain), copy.deepcopy(plain)
        groups = find_groups(masked, torch.zeros(1, *shape[1:], device=device))
        masks = ChannelMasks(masked, groups, parse_budget("macs", "30%"), steps=100 * steps)  # as long as real ones
        # The layout and the memory are as the trainer has them, but for what is compared.
        with freed_memory_kept(), channels_last(last):  # the input has one channel, which lies the same in both layouts
            seconds = in_turns(stepper(plain), stepper(last), shape, steps, device)
            rows["channels last"].append(row(f"{name}, 1x28x28", seconds, shape[0]))
        with freed_memory_kept(), channels_last(plain), channels_last(masked):
            seconds = in_turns(stepper(plain), stepper(masked, masks.step), shape, steps, device)
            rows["with masks"].append(row(f"{name}, 1x28x28", seconds, shape[0]))
    for what, lines in rows.items():
        print(f"| network | batch | images/s plain | images/s {what} | throughput ratio (95 % interval) |")
        print("|---|---|---|---|---|", *lines, "", sep="\n")


def train(images: int, device: torch.device, batch: int = 64) -> float:
    """Images a second of one epoch of plain training, of all processes together."""
    rng = np.random.default_rng(0)
    x, y = rng.random((images, 1, 28, 28), np.float32), rng.integers(0, 10, images)
    data = Dataset("random", x, y, x[:batch], y[:batch])
    settings = Settings(epochs=1, batch_size=batch)
    trainer = Trainer(open_stream(data, settings, device), CLASSIFICATION, settings, None)
    start = time.perf_counter()
    trainer.run(make_model().to(device), trainer.total_steps)
    return trainer.total_steps * batch / (time.perf_counter() - start)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        with joined():
            speed = train(64 * arguments.steps, torch.device("cpu"))
            if rank() == 0:
                print(f"{speed:.0f}")
        return
    where = f"{arguments.threads} thread(s) a process, on {arguments.device}"
    print(f"torch {torch.__version__}, {where}, {arguments.steps} steps each\n")
    paired_tables(arguments.steps, arguments.device)
    print("| images | images/s |\n|---|---|")
    for images in (16 * arguments.steps, 64 * arguments.steps):
        print(f"| {images} | {train(images, arguments.device):.0f} |")
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
