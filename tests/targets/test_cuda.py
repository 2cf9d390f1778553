import ctypes

import numpy as np
import pytest

from dtp_deploy.errors import TargetError
from dtp_deploy_targets import cuda
from tests.targets import fake_cuda


@pytest.fixture
def driver(tmp_path, monkeypatch):
    library = fake_cuda.build(tmp_path)
    monkeypatch.setattr(cuda, "LIBRARY", str(library))
    return ctypes.CDLL(str(library))


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    message = "no GPU: there is no NVIDIA driver here (libno-such-driver.so.1 is not found)"
    assert cuda.problem() == message
    with pytest.raises(TargetError) as caught:
        cuda.gpu()
    assert str(caught.value) == message


def test_a_driver_that_does_not_start_says_why(driver, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_INIT", "100")
    assert cuda.problem() == "no GPU: the NVIDIA driver does not start (stand-in error, error 100)"


def test_a_gpu_is_named_and_another_one_is_not_there(driver):
    assert cuda.problem() == ""
    assert cuda.gpu() == cuda.Gpu(0, "Stand-in GPU", "8.7")
    assert cuda.problem(1) == "no GPU 1: the driver finds 1"


def test_arrays_go_there_and_back_and_everything_is_given_back(driver):
    sent = np.arange(12, dtype=np.float32).reshape(3, 4)
    back = np.zeros_like(sent)
    with cuda.stream() as stream:
        address = stream.allocate(sent.nbytes)
        stream.upload(sent, address)
        stream.download(address, back)
        stream.wait()
        assert (driver.fake_retained(), driver.fake_allocated()) == (1, 1)
    np.testing.assert_array_equal(back, sent)
    assert (driver.fake_retained(), driver.fake_allocated()) == (0, 0)


def test_too_much_memory_is_said_to_be_so(driver):
    with cuda.stream() as stream, pytest.raises(TargetError, match=r"^out of GPU memory: could not allocate \d+ bytes"):
        stream.allocate(1 << 31)
