"""What two processes that train together agree on: BatchNorm, memory that runs out in one of them, damaged pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dtp_deploy.loading import Dataset, load_data
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.batchnorm import synchronised_batchnorm
from dtp_deploy.train.together import synchronises

SCRIPT = """
import json, os, sys
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import torch
from torch import nn
import dtp_deploy.loading.images as images
from dtp_deploy.errors import DtpError
from dtp_deploy.loading import Dataset, load_data
from dtp_deploy.ranks import joined, rank
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.stream import open_stream

FOLDER = Path(sys.argv[1])
CPU = torch.device("cpu")


class SmallMemory(nn.Module):
    def __init__(self, inside, most, from_pass=0):
        super().__init__()
        self.inside, self.most, self.left = inside, most, from_pass

    def forward(self, x):
        self.left -= 1
        if len(x) > self.most and self.left < 0:
            raise torch.OutOfMemoryError
        return self.inside(x)


class Notes:
    def __init__(self):
        self.notes = []

    @contextmanager
    def task(self, name, total=None, *, passing=False):
        yield lambda: None

    def note(self, message):
        self.notes.append(message)


def make(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 4, 4)).astype(np.float32)
    y = rng.integers(0, 3, 64)
    return Dataset("noise", x, y, x[:8], y[:8])


def train(model, steps=4, rate=0.02, progress=None):
    settings = Settings(epochs=1, batch_size=16, learning_rate=rate)
    trainer = Trainer(open_stream(data(), settings, CPU), CLASSIFICATION, settings, None)
    trainer.run(model, steps, **({"progress": progress} if progress else {}))
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    error = None
    try:
        with joined():
            norm = make(nn.BatchNorm2d(4))
            trainer = train(norm)
            found["norm"], found["loss"] = norm.state_dict(), trainer.loss
            found["types"] = [type(module).__name__ for module in norm]
            still = make(nn.BatchNorm2d(4))
            train(still, rate=1e-30)
            found["still"] = still.state_dict()

            notes = Notes()
            small = SmallMemory(make(nn.Identity()), most=3 if rank() else 100)
            found["parts"] = train(small, progress=notes).parts
            found["small"], found["notes"] = small.inside.state_dict(), notes.notes

            folder = load_data(str(FOLDER / "pictures"), input_shapes=[(1, 3, 8, 8)])
            opened, decode = [], images.read_picture
            images.read_picture = lambda path, preprocessing: opened.append(path) or decode(path, preprocessing)
            epoch = list(open_stream(folder, Settings(batch_size=4, augment="shift-flip"), CPU))
            found["epoch"], found["opened"], found["damage"] = epoch, len(opened), folder.notes

            # The last: one that runs out of memory in the middle leaves the others alone.
            train(SmallMemory(make(nn.Identity()), most=3 if rank() else 100, from_pass=4))
    except DtpError as caught:
        error = str(caught)
    torch.save(found, FOLDER / f"rank{os.environ['RANK']}.pt")
    (FOLDER / f"error{os.environ['RANK']}.json").write_text(json.dumps(error))
"""


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(22):
            Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(folder / name / f"{number}.jpg")
    for name in ("cats/3.jpg", "dogs/7.jpg"):  # headers are whole, so that the damage shows when they are decoded
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) - 60])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes wrote."""
    folder = tmp_path_factory.mktemp("together")
    pictures(folder / "pictures")
    (folder / "run.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*launcher, str(folder / "run.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    (folder / "said").write_text(finished.stderr)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def noise() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 4, 4)).astype(np.float32)
    y = rng.integers(0, 3, 64)
    return Dataset("noise", x, y, x[:8], y[:8])


def make(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.slow
def test_both_end_with_the_same_weights_and_running_statistics(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first["norm"].keys() == make(nn.BatchNorm2d(4)).state_dict().keys()
    for name, tensor in first["norm"].items():
        assert torch.equal(tensor, second["norm"][name]), name
    assert first["types"][1] == "BatchNorm2d"
    assert first["loss"] == second["loss"]


@pytest.mark.slow
def test_running_statistics_are_those_of_the_first_process(ranks: list[dict[str, Any]]) -> None:
    """On CPUs, of its share of the batches alone; seen where the weights stand still."""
    model, data = make(nn.BatchNorm2d(4)).train(), noise()
    stream = data.train(16, seed=0)
    stream.share(0, 2)
    for (x,), _ in stream:
        model(x)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        torch.testing.assert_close(ranks[1]["still"][name], model.state_dict()[name])


@pytest.mark.slow
def test_memory_that_is_too_small_in_one_makes_both_take_smaller_parts(ranks: list[dict[str, Any]]) -> None:
    assert [rank["parts"] for rank in ranks] == [4, 4]
    assert ranks[0]["notes"] == [
        "Out of memory at 8 samples: batches go on in 2 parts, their gradients added up.",
        "Out of memory at 4 samples: batches go on in 4 parts, their gradients added up.",
    ]
    model, data = make(nn.Identity()), noise()
    settings = Settings(epochs=1, batch_size=16)
    Trainer(data.train(16, seed=0), CLASSIFICATION, settings, None).run(model, 4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ranks[0]["small"][name], tensor)
        assert torch.equal(ranks[0]["small"][name], ranks[1]["small"][name])


@pytest.mark.slow
def test_memory_that_runs_out_later_is_told(folder: Path, ranks: list[dict[str, Any]]) -> None:
    errors = [json.loads((folder / f"error{rank}.json").read_text()) for rank in (0, 1)]
    assert errors == [
        "Another process of this run died. Its own message is above; go on from the last checkpoint with --resume.",
        "Out of memory in one of 2 processes at step 2, although the first batch fitted. Go on with --resume when more "
        "memory is free, or start over with --force and a smaller --batch-size.",
    ]


@pytest.mark.slow
def test_every_process_decodes_its_share_and_knows_all_damage(folder: Path, ranks: list[dict[str, Any]]) -> None:
    whole = load_data(str(folder / "pictures"), input_shapes=[(1, 3, 8, 8)])
    epoch = list(whole.train(4, 0, "shift-flip"))
    assert any("2 of 44 pictures could not be read" in note for note in whole.notes)
    for rank, found in enumerate(ranks):
        assert len(found["epoch"]) == len(epoch)
        for ((part,), labels), ((x,), y) in zip(found["epoch"], epoch, strict=True):
            assert torch.equal(part, x[rank::2])
            assert torch.equal(labels, y[rank::2])
        assert found["damage"] == whole.notes
    pictures = 4 * len(epoch)
    assert pictures / 2 <= min(found["opened"] for found in ranks)
    assert sum(found["opened"] for found in ranks) == pictures + 2


@pytest.mark.slow
def test_gradients_lie_as_the_filters_do(folder: Path) -> None:
    """Where they do not, DistributedDataParallel warns that it has to copy them."""
    assert "strides do not match" not in (folder / "said").read_text()


class WithActivation(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_synchronised_layers_share_their_tensors_and_are_put_back() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), shared, nn.Sequential(WithActivation(4), nn.BatchNorm2d(4)), shared)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    with synchronised_batchnorm(model):
        assert type(model[1]) is type(model[2][1]) is nn.SyncBatchNorm
        assert model[1] is model[3]
        assert type(model[2][0]) is WithActivation
        during = model.state_dict(keep_vars=True)
        assert list(during) == list(before)
        assert all(during[name] is tensor for name, (tensor, _) in before.items())
        with torch.no_grad():
            model[1].running_mean.add_(1)
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert torch.equal(shared.running_mean, before["1.running_mean"][1] + 1)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, (tensor, _) in before.items())


def test_layers_are_put_back_whatever_happens() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    norm = model[0]
    with pytest.raises(KeyboardInterrupt), synchronised_batchnorm(model):
        raise KeyboardInterrupt
    assert model[0] is norm


def test_only_cuda_devices_synchronise() -> None:
    assert synchronises(torch.device("cuda", 1))
    assert not synchronises(torch.device("cpu"))
