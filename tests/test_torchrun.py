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
import os, sys
import torch
from torch import nn
import dtp_deploy
import dtp_deploy.granularity as granularity
from dtp_deploy.loading import load_data
from dtp_deploy.profile.measure import MeasureSettings

def make(norm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), norm(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), norm(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 10),
    )

class Telling(granularity.ChannelMasks):
    def harden(self, plan=None):
        plan = super().harden(plan)
        found = {"scores": self.scores.detach(), "masks": self.result.masks.detach(), "plan": plan.to_json()}
        torch.save(found | {"model": self.model.state_dict()}, f"{out}.rank{os.environ.get('RANK', '0')}")
        return plan

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, resume, minutes = sys.argv[1], sys.argv[2] == "resume", float(sys.argv[3])
    granularity.ChannelMasks = Telling
    model = make(nn.BatchNorm2d if sys.argv[5] == "norm" else nn.Identity)
    budget = dtp_deploy.parse_budget("macs", "50%")
    dtp_deploy.compress(
        model, data=load_data("digits"), budget=budget, out=out, resume=resume,
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


def run(
    folder: Path,
    processes: int,
    name: str,
    how: str = "fresh",
    minutes: str = "10",
    epochs: str = "1",
    norm: str = "plain",
) -> str:
    finished = subprocess.run(
        command(folder, processes, str(folder / name), how, minutes, epochs, norm),
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
def test_with_batchnorm_all_processes_have_the_same_masks_and_plan(tmp_path: Path) -> None:
    run(tmp_path, 2, "out", norm="norm")
    first, second = (torch.load(tmp_path / f"out.rank{rank}") for rank in (0, 1))
    assert torch.equal(first["scores"], second["scores"])
    assert torch.equal(first["masks"], second["masks"])
    assert first["plan"] == second["plan"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["budget"]["met"]
    assert all(entry["passed"] for entry in report["parity"])
    assert [entry["stage"] for entry in report["accuracy_stages"]] == [
        "dense",
        "after hardening",
        "after fine-tuning",
        "delivered",
    ]
    written = weights(tmp_path / "out")
    assert written["1.running_mean"].shape == written["0.bias"].shape
    assert written["1.num_batches_tracked"] > 0


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_another_number_goes_on(tmp_path: Path) -> None:
    running = subprocess.Popen(
        command(tmp_path, 2, str(tmp_path / "out"), "fresh", "0", "30", "norm"),
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
    run(tmp_path, 1, "out", "resume", "10", "30", "norm")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["resumed_from_step"] >= 4
