"""A disk that fills up: told in one line, nothing half-written in the output folder, and the run goes on later."""

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import dtp_deploy
from dtp_deploy.budget import Budget
from dtp_deploy.checkpoints import CheckpointFolder
from dtp_deploy.errors import InputError
from dtp_deploy.loading import load_data
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.train import Settings
from examples.digits_cnn import make_model

QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)
ROOM = 64 * 1024
"""For folders, and for the last page of every file."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A small file system of its own, and what gives it another size in bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user cannot mount a tmpfs ({mounted.stderr.strip()})")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)

    try:
        yield place, resize
    finally:
        subprocess.run(["umount", str(place)], check=True)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_that_does_not_fit_leaves_those_before_it(disk: tuple[Path, Callable[[int], None]]) -> None:
    place, resize = disk
    folder = CheckpointFolder(place / "checkpoints")
    state = {"values": torch.rand(50_000)}
    for step in (1, 2):
        folder.save(state | {"step": step}, step)
    resize(2 * 200_000 + ROOM)
    with pytest.raises(InputError, match=r"A checkpoint of 0\.2 MB could not be written to .*No space left on device"):
        folder.save(state | {"step": 3}, 3)
    assert names(place) == {"checkpoints/000001.checkpoint", "checkpoints/000002.checkpoint"}
    newest = folder.newest()
    assert newest is not None
    assert newest["step"] == 2


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_full_again_and_again(
    disk: tuple[Path, Callable[[int], None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    compress = partial(
        dtp_deploy.compress,
        make_model(),
        data=load_data("digits"),
        budget=Budget("macs", 0.5, relative=True),
        settings=Settings(epochs=1, batch_size=256),
        measuring=QUICKLY,
    )
    sizes: list[int] = []
    save = CheckpointFolder.save

    def saving(folder: CheckpointFolder, state: dict[str, object], step: int) -> None:
        save(folder, state, step)
        sizes.append(max(folder.folder.iterdir()).stat().st_size)

    monkeypatch.setattr(CheckpointFolder, "save", saving)
    compress(out=tmp_path / "whole")
    in_masks, *later = sizes
    assert len(later) == 2
    place, resize = disk
    out = place / "out"
    partly, checkpoints = place / "out.partial", {"out.partial/.dtp-deploy-writes-here"}

    resize(ROOM)
    with pytest.raises(InputError) as none:
        compress(out=out)
    assert str(none.value) == (
        f"A checkpoint of {in_masks / 1e6:.1f} MB could not be written to {partly}/checkpoints (No space left on "
        "device). Make room, and start again."
    )
    assert names(place) == set()

    resize(in_masks + ROOM)
    with pytest.raises(InputError) as second:
        compress(out=out)
    assert str(second.value) == (
        f"A checkpoint of {later[0] / 1e6:.1f} MB could not be written to {partly}/checkpoints (No space left on "
        "device). The checkpoints before it are kept. Make room, and go on with --resume."
    )
    assert names(place) == checkpoints | {"out.partial/checkpoints/000001.checkpoint"}

    # Going on saves the end of the masks once more. There is room for that, and not for what is delivered.
    delivered = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    resize((2 * in_masks + later[0] + sum(later) + delivered) // 2)
    with pytest.raises(InputError) as delivery:
        compress(out=out, resume=True)
    assert str(delivery.value) == (
        f"{partly} cannot be written (No space left on device). Make room, and go on with --resume {out}."
    )
    assert delivery.value.exit_code == 2
    kept = names(place)
    assert kept > checkpoints
    assert all(name.endswith(".checkpoint") for name in kept - checkpoints)

    resize(20_000_000)
    report = compress(out=out, resume=True)
    assert report.resumed_from_step == 5
    assert not partly.exists()
    assert names(out) == names(tmp_path / "whole")
    for name in ("pruning_plan.json", "model.safetensors", "model.onnx"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
