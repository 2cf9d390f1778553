"""What all tests share: the same random numbers on every run, and no deadline that a busy machine could miss."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same state of PyTorch's generator, in whatever order the tests run."""
    torch.manual_seed(0)
