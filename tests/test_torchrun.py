"""Several processes train what one process trains: real ones, started by torchrun, over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = """
import sys
import torch
from torch import nn
import dtp_deploy
from dtp_deploy.loading import load_data
from dtp_deploy.profile.measure import MeasureSettings

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, resume, minutes = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])
    dtp_deploy.compress(
        make(), data=load_data("digits"), budget=dtp_deploy.parse_budget("macs", "50%"), out=out, resume=resume,
        settings=dtp_deploy.Settings(epochs=int(sys.argv[4]), batch_size=128), checkpoint_minutes=minutes,
        measuring=MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0),
    )
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(folder: Path, processes: int, *arguments: str) -> list[str]:
    script = folder / "run.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments]


def run(folder: Path, processes: int, name: str, how: str = "fresh", minutes: str = "10", epochs: str = "1") -> str:
    finished = subprocess.run(
        command(folder, processes, str(folder / name), how, minutes, epochs),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def kept(folder: Path) -> dict[str, Any]:
    """The plan without the hash of the weights, which differ in the last bits."""
    plan: dict[str, Any] = json.loads((folder / "pruning_plan.json").read_text())
    assert plan.pop("weights_sha256")
    return plan


@pytest.mark.slow
def test_two_and_four_processes_learn_the_masks_of_one(tmp_path: Path) -> None:
    for processes in (1, 2, 4):
        run(tmp_path, processes, f"out{processes}")
    one = kept(tmp_path / "out1")
    assert any(group["width_after"] < group["width_before"] for group in one["groups"])
    for processes in (2, 4):
        other = tmp_path / f"out{processes}"
        assert kept(other) == one
        for name, tensor in weights(tmp_path / "out1").items():
            torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_another_number_goes_on(tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(tmp_path, 2, str(tmp_path / "out"), "fresh", "0", "60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        checkpoints = tmp_path / "out.partial" / "checkpoints"
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("00000[5-9].checkpoint")):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said, _ = running.communicate(timeout=120)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode != 0
    assert "SIGKILL" in said or "Signal 9" in said
    assert not (tmp_path / "out").exists()
    run(tmp_path, 1, "out", "resume", "10", "60")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["resumed_from_step"] >= 4


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    from dtp_deploy.errors import UsageError
    from dtp_deploy.loading import load_data
    from dtp_deploy.train.sharding import ShardedStream

    with pytest.raises(UsageError, match=r"--batch-size 10 cannot be shared by 4 processes\. Give a multiple of 4\."):
        ShardedStream(load_data("digits").train(10, seed=0), 10, rank=0, world=4)


def test_shares_together_are_the_batch() -> None:
    from dtp_deploy.loading import load_data
    from dtp_deploy.train.sharding import ShardedStream

    data = load_data("digits")
    (whole,), targets = next(iter(data.train(8, seed=0)))
    shares = [next(iter(ShardedStream(data.train(8, seed=0), 8, rank, 2))) for rank in (0, 1)]
    for rank, ((x,), y) in enumerate(shares):
        assert torch.equal(x, whole[rank::2])
        assert torch.equal(y, targets[rank::2])
