"""What all tests share: the same random numbers on every run, and no deadline that a busy machine could miss."""

import hypothesis
import pytest
import torch

from dtp_deploy.loading import Dataset, load_data

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep measurements for the session, and away from those of the user."""
    monkeypatch.setenv("DTP_DEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "measurements"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same state of PyTorch's generator, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Dataset:
    """Real data that is always there: scikit-learn's digits."""
    digits = load_data("digits")
    assert isinstance(digits, Dataset)
    return digits
