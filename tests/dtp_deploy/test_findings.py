"""What a run keeps of its stages: time and memory, over interruptions too."""

import pytest
import torch

from dtp_deploy.findings import Findings


def on_gpu(monkeypatch: pytest.MonkeyPatch, peak: int) -> None:
    """Let PyTorch tell of a CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak)


def test_memory_of_the_gpu_is_unknown_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings = Findings()
    with findings.stage("masks"):
        pass
    assert findings.stages["masks"]["peak_gpu_memory_bytes"] is None
    assert findings.stages["masks"]["peak_memory_bytes"] > 0


@pytest.mark.parametrize("peaks", [(7, 9), (9, 7)])
def test_a_stage_that_goes_on_keeps_its_largest_memory(peaks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Findings(), Findings()
    on_gpu(monkeypatch, peaks[0])
    with first.stage("masks"):
        pass
    second.load_state(first.state(), step=3)
    on_gpu(monkeypatch, peaks[1])
    with second.stage("masks"):
        pass
    assert second.stages["masks"]["peak_gpu_memory_bytes"] == 9
    assert second.stages["masks"]["seconds"] >= first.stages["masks"]["seconds"]
