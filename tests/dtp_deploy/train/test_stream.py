"""Training data on the device, where they fit."""

import numpy as np
import pytest
import torch

from dtp_deploy.loading import Dataset
from dtp_deploy.memory import free_bytes
from dtp_deploy.train import Settings
from dtp_deploy.train.stream import open_stream

SETTINGS = Settings(batch_size=4, augment="shift-flip")
ELSEWHERE = torch.device("meta")  # a device that every machine has, and on which no value can be read


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 1, 8, 8)).astype(np.float32)
    return Dataset("noise", x, rng.integers(0, 3, 16), x[:8], rng.integers(0, 3, 8))


def test_data_go_to_a_device_with_four_times_the_room(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = data.x_train.nbytes + data.y_train.nbytes
    for free, device in ((4 * needed, "meta"), (4 * needed - 1, "cpu")):
        monkeypatch.setattr("dtp_deploy.train.stream.free_bytes", lambda device, free=free: free)
        (x,), y = next(iter(open_stream(data, SETTINGS, ELSEWHERE)))
        assert (x.device.type, y.device.type) == (device, device)
        assert x.shape == (4, 1, 8, 8)
    assert isinstance(data.x_train, np.ndarray)


def test_batches_are_the_same_wherever_the_data_lie(data: Dataset) -> None:
    kept, plain = (data.train(4, 0, "shift-flip") for _ in range(2))
    assert kept.keep_on(torch.device("cpu"), 10**9)
    for ((a,), b), ((c,), d) in zip(kept, plain, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_nothing_is_brought_to_the_cpu() -> None:
    assert free_bytes(torch.device("cpu")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_from_a_cuda_device_are_those_from_memory(data: Dataset) -> None:
    on_device = open_stream(data, SETTINGS, torch.device("cuda", 0))
    for ((a,), b), ((c,), d) in zip(on_device, data.train(4, 0, "shift-flip"), strict=True):
        assert a.is_cuda
        assert b.is_cuda
        assert torch.equal(a.cpu(), c)
        assert torch.equal(b.cpu(), d)
