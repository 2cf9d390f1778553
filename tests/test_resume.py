"""A run that is cut off goes on, and ends where it would have ended."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import dtp_deploy
from dtp_deploy import ChannelMasks, find_groups, granularity, limits, prove
from dtp_deploy.budget import Budget
from dtp_deploy.checkpoints import CheckpointFolder
from dtp_deploy.errors import InputError, StoppedError, UsageError
from dtp_deploy.loading import Dataset
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.prune import MaskSettings
from dtp_deploy.train import Settings
from examples.digits_cnn import make_model

SETTINGS = Settings(epochs=2, batch_size=128)
STEPS = 22
QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)
compress = partial(dtp_deploy.compress, measuring=QUICKLY)
HALF = Budget("macs", 0.5, relative=True)


class CutOff(Exception):
    """Stands for whatever ends a process in the middle."""


class StopsAt:
    """A listener that cuts the run off after some steps of a stage."""

    def __init__(self, stage: str, steps: int, how: Callable[[], None]) -> None:
        self.stage, self.left, self.how = stage, steps, how

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        def advance() -> None:
            if name == self.stage and total is not None:
                self.left -= 1
                if self.left == 0:
                    self.how()

        yield advance

    def note(self, message: str) -> None:
        pass


def cut() -> None:
    raise CutOff


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(make_model(), nn.Dropout(0.2))  # dropout draws from the global generator, which is kept too


@pytest.fixture(scope="module")
def mask_steps(dense: nn.Module, data: Dataset) -> int:
    """Steps of the mask phase of such a run, of 22 in all."""
    found = find_groups(dense, torch.zeros(1, *data.sample_shape))
    student = copy.deepcopy(dense)
    return ChannelMasks(student, prove(dense, found), HALF, steps=partial(SETTINGS.mask_steps, STEPS)).steps


@pytest.fixture(scope="module")
def whole(dense: nn.Module, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never cut off."""
    out = tmp_path_factory.mktemp("whole") / "out"
    compress(dense, data=data, budget=HALF, out=out, settings=SETTINGS)
    return out


@pytest.mark.parametrize(("stage", "steps"), [("masks", 1), ("masks", 3), ("fine-tuning", 1), ("fine-tuning", 5)])
def test_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(
    stage: str, steps: int, mask_steps: int, whole: Path, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    every_step = 0.0
    with pytest.raises(CutOff):
        compress(
            dense,
            data=data,
            budget=HALF,
            out=out,
            settings=SETTINGS,
            checkpoint_minutes=every_step,
            progress=StopsAt(stage, steps, cut),
        )
    assert not out.exists()
    assert [path.name for path in (tmp_path / "out.partial").iterdir() if not path.name.startswith(".")] == [
        "checkpoints"
    ]
    torch.manual_seed(99)
    report = compress(dense, data=data, budget=HALF, out=out, settings=SETTINGS, resume=True)
    assert report.resumed_from_step == steps + (mask_steps if stage == "fine-tuning" else 0)
    for name in ("pruning_plan.json", "model.safetensors", "model.onnx"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (tmp_path / "out.partial").exists()


def test_a_run_from_taylor_scores_with_a_kept_layer_is_resumed_bit_for_bit(
    dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, masks=MaskSettings(scores="taylor", score_batches=3), keep=("0.stem.0",))
    plans = []
    for cut_at in (None, 4):
        out = tmp_path / str(cut_at)
        run = partial(compress, dense, data=data, budget=HALF, out=out, settings=settings, checkpoint_minutes=0.0)
        if cut_at is not None:
            with pytest.raises(CutOff):
                run(progress=StopsAt("masks", cut_at, cut))
        report = run(resume=cut_at is not None)
        plans.append((out / "pruning_plan.json").read_bytes())
        assert [group.frozen_because for group in report.groups if group.name == "0.stem.0"] == [
            "kept by --keep '0.stem.0'"
        ]
        assert report.settings["keep"] == ["0.stem.0"]
    assert plans[0] == plans[1]


def test_what_was_decided_about_a_latency_is_kept_and_not_found_out_again(
    dense: nn.Module, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget("latency", 0.98, relative=True)  # nearly all is what removing channels does not shorten
    run = partial(compress, dense, data=data, budget=budget, target="jetson:orin-nano", settings=SETTINGS)
    run(out=tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(CutOff):
        run(out=out, checkpoint_minutes=0.0, progress=StopsAt("fine-tuning", 3, cut))
    monkeypatch.setattr(limits, "learn_table", None)
    monkeypatch.setattr(granularity, "close_loop", None)
    report = run(out=out, resume=True)
    assert report.budget.met
    for file in ("pruning_plan.json", "model.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_after_the_step_and_says_how_to_go_on(
    signal_name: str, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    import signal

    signum = getattr(signal, signal_name)
    out = tmp_path / "out"
    with pytest.raises(StoppedError) as stopped:
        compress(
            dense,
            data=data,
            budget=HALF,
            out=out,
            settings=SETTINGS,
            progress=StopsAt("masks", 3, lambda: os.kill(os.getpid(), signum)),
        )
    assert stopped.value.signum == signum
    assert str(stopped.value) == (
        f"Stopped by {signal_name} at step 4 of 22; everything is saved. Go on with: dtp-deploy compress --resume {out}"
    )
    report = compress(dense, data=data, budget=HALF, out=out, settings=SETTINGS, resume=True)
    assert report.resumed_from_step == 4


@pytest.fixture
def cut_off(dense: nn.Module, data: Dataset, tmp_path: Path) -> Path:
    """The output folder of a run that was cut off, with two checkpoints."""
    out = tmp_path / "out"
    with pytest.raises(CutOff):
        compress(
            dense,
            data=data,
            budget=HALF,
            out=out,
            settings=SETTINGS,
            checkpoint_minutes=0.0,
            progress=StopsAt("masks", 4, cut),
        )
    return out


def test_the_last_two_checkpoints_are_kept(cut_off: Path) -> None:
    checkpoints = cut_off.with_name("out.partial") / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["000003.checkpoint", "000004.checkpoint"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, cut_off: Path) -> None:
    folder = CheckpointFolder(cut_off.with_name("out.partial") / "checkpoints")
    newest = folder.folder / "000004.checkpoint"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": content[:-100], "flip": content, "empty": b""}[damage])
    state = folder.newest()
    assert state is not None
    assert state["trainer"]["step"] == 3


def test_only_damaged_checkpoints_are_an_error(cut_off: Path, dense: nn.Module, data: Dataset) -> None:
    checkpoints = cut_off.with_name("out.partial") / "checkpoints"
    for path in checkpoints.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"No checkpoint in .* is whole: all are damaged\. Start over: the command as"):
        compress(dense, data=data, budget=HALF, out=cut_off, settings=SETTINGS, resume=True)


def test_what_changed_since_the_checkpoint_is_named(cut_off: Path, dense: nn.Module, data: Dataset) -> None:
    other_data = dataclasses.replace(data, x_val=data.x_val[::-1].copy())
    other_settings = dataclasses.replace(
        SETTINGS, learning_rate=0.01, masks=MaskSettings(scores="bn"), keep=("0.stem.0",), only=("0",)
    )
    with pytest.raises(InputError) as refused:
        compress(
            make_model(),
            data=other_data,
            budget=Budget("macs", 0.4, True),
            out=cut_off,
            settings=other_settings,
            resume=True,
        )
    assert str(refused.value) == (
        f"--resume {cut_off}: the model, the data, the budget, the setting learning_rate, the setting masks, the "
        "setting keep, the setting only changed since the checkpoint "
        "was written. Give what the run was started with, or start over with --force."
    )
    assert (cut_off.with_name("out.partial") / "checkpoints" / "000004.checkpoint").exists()


def test_checkpoints_are_not_overwritten_by_mistake(cut_off: Path, dense: nn.Module, data: Dataset) -> None:
    with pytest.raises(UsageError, match=r"holds the checkpoints of a run that was cut off\. Go on with --resume"):
        compress(dense, data=data, budget=HALF, out=cut_off, settings=SETTINGS)
    report = compress(dense, data=data, budget=HALF, out=cut_off, settings=SETTINGS, force=True)
    assert report.resumed_from_step is None


def test_nothing_to_resume_is_an_error(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there are no checkpoints in .*out\.partial\. Start the run with --out"):
        compress(dense, data=data, budget=HALF, out=tmp_path / "out", settings=SETTINGS, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["masks", "fine-tuning"])
def test_a_signal_after_the_last_step_of_a_stage_is_not_swallowed(
    stage: str, mask_steps: int, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    import signal

    steps = mask_steps if stage == "masks" else STEPS - mask_steps
    with pytest.raises(StoppedError, match="Stopped by SIGTERM at step"):
        compress(
            dense,
            data=data,
            budget=HALF,
            out=tmp_path / "out",
            settings=SETTINGS,
            progress=StopsAt(stage, steps, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
    report = compress(dense, data=data, budget=HALF, out=tmp_path / "out", settings=SETTINGS, resume=True)
    assert report.resumed_from_step == (mask_steps if stage == "masks" else STEPS)


def test_changed_training_data_are_noticed(cut_off: Path, dense: nn.Module, data: Dataset) -> None:
    other = dataclasses.replace(data, x_train=data.x_train * 0.5)
    with pytest.raises(InputError, match=r"the data changed since the checkpoint was written"):
        compress(dense, data=other, budget=HALF, out=cut_off, settings=SETTINGS, resume=True)
