"""Runs that are killed at random moments, and go on until they are done: do they end where an undisturbed run ends?

    python -m benchmarks.kill_resume [--runs 20] [--seed 0]

Every run is a process of its own, killed with SIGKILL after a random time, again and again, until one process comes to
the end. Its plan, weights and ONNX must be those of the undisturbed run, byte for byte, and at no moment may the output
folder exist half-written. Prints one line a run; the exit status is 1 if any run differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_FILES = ("pruning_plan.json", "model.safetensors", "model.onnx")
_COMPLETE = {*_FILES, "model.pt2", "report.json", "report.md"}
_SCRIPT = """
import sys
import torch
import dtp_deploy
from dtp_deploy.loading import load_data
from dtp_deploy.profile.measure import MeasureSettings
from examples.digits_cnn import make_model

torch.manual_seed(0)
torch.set_num_threads(1)
out, resume = sys.argv[1], sys.argv[2] == "resume"
dtp_deploy.compress(
    make_model(), data=load_data("digits"), budget=dtp_deploy.parse_budget("macs", "50%"), out=out, resume=resume,
    settings=dtp_deploy.Settings(epochs=3, batch_size=128), checkpoint_minutes=0.0,
    measuring=MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0),
)
"""


def start(out: Path, how: str) -> subprocess.Popen[bytes]:
    """One process that begins or goes on."""
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(out), how],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def disturbed(out: Path, seconds: float, rng: random.Random) -> int:
    """Kill and go on until a process comes to its end; the number of kills."""
    kills, allowed = 0, seconds
    while True:
        resume = any((out.with_name(f"{out.name}.partial") / "checkpoints").glob("*.checkpoint"))
        process = start(out, "resume" if resume else "fresh")
        try:
            if process.wait(timeout=rng.uniform(0.1, allowed)) == 0:
                return kills
            raise RuntimeError(f"a process ended with status {process.returncode}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
        allowed *= 1.2  # so that the end is reached
        if out.exists() and not {path.name for path in out.iterdir()} >= _COMPLETE:
            raise RuntimeError(f"{out} is half-written: {sorted(out.iterdir())}")
        if out.exists():
            return kills


def main() -> int:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    same = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        if start(folder / "whole", "fresh").wait() != 0:
            raise RuntimeError("the undisturbed run failed")
        seconds = time.perf_counter() - began
        for number in range(arguments.runs):
            out = folder / f"run{number}"
            kills = 0
            while kills == 0:  # a run that came through unharmed shows nothing: it is done again
                shutil.rmtree(out, ignore_errors=True)
                kills = disturbed(out, seconds, rng)
            equal = all((out / name).read_bytes() == (folder / "whole" / name).read_bytes() for name in _FILES)
            same += equal
            print(
                f"run {number + 1}: killed {kills} times, {'the same result' if equal else 'ANOTHER RESULT'}",
                flush=True,
            )
    print(f"{same} of {arguments.runs} runs ended with the result of the undisturbed run")
    return 0 if same == arguments.runs else 1


if __name__ == "__main__":
    sys.exit(main())
