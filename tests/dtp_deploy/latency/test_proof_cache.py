"""A proof is kept for the model that it was made for, and for no other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy import find_groups
from dtp_deploy.graph import Groups
from dtp_deploy.latency import proof_cache
from dtp_deploy.latency.proof_cache import prove_once
from dtp_deploy.testing.zoo import ZOO


class Mirrored(nn.Module):
    """A network of the same modules and weights as another, with another way through them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.flip(-1))
        return result


class Straight(Mirrored):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were proven, by name of their class."""
    done: list[str] = []
    prove = proof_cache.prove

    def counted(model: nn.Module, groups: Groups, **options: object) -> Groups:
        done.append(type(model).__name__)
        return prove(model, groups, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(proof_cache, "prove", counted)
    return done


def reasons(model: nn.Module, inputs: Tensor, folder: Path) -> list[str | None]:
    found = find_groups(model, inputs)
    return [group.frozen_because for group in prove_once(model, found, folder)]


def test_the_same_model_is_proven_once_and_any_change_proves_anew(tmp_path: Path, proofs: list[str]) -> None:
    entry = ZOO["residual"]
    inner = entry.model()
    for model in (Straight(inner), Straight(inner), Mirrored(inner), Mirrored(inner)):
        assert reasons(model, entry.inputs(), tmp_path) == reasons(model, entry.inputs(), tmp_path)
    assert proofs == ["Straight", "Mirrored"]
    with torch.no_grad():
        next(inner.parameters()).mul_(2.0)
    reasons(Straight(inner), entry.inputs(), tmp_path)
    reasons(Straight(inner), torch.cat([entry.inputs()] * 2, dim=-1), tmp_path)
    assert proofs == ["Straight", "Mirrored", "Straight", "Straight"]


def test_what_was_frozen_stays_frozen(tmp_path: Path, proofs: list[str]) -> None:
    entry = ZOO["attention"]
    first, second = (reasons(entry.model(), entry.inputs(), tmp_path) for _ in range(2))
    assert first == second
    assert any(first)
    assert len(proofs) == 1


def test_a_model_that_cannot_be_traced_is_proven_each_time(
    tmp_path: Path, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_cache, "capture", lambda model, inputs: 1 / 0)
    entry = ZOO["residual"]
    for _ in range(2):
        reasons(entry.model(), entry.inputs(), tmp_path)
    assert len(proofs) == 2
    assert not list(tmp_path.iterdir())
