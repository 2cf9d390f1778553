"""Checkpoints on a disk that misbehaves."""

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dtp_deploy import __version__, checkpoints
from dtp_deploy.checkpoints import CheckpointFolder, read_origin
from dtp_deploy.errors import InputError, UsageError


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """The system refuses to make any file larger than this, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.newest() is None
    assert not folder
    state = {"step": 3, "weights": torch.arange(4.0), "nested": {"list": [1, 2.5, None, "text"]}}
    folder.save(state, step=3)
    found = folder.newest()
    assert found is not None
    assert torch.equal(found.pop("weights"), state.pop("weights"))
    assert found == state
    assert folder


def test_full_disk_at_the_first_checkpoint_promises_none(tmp_path: Path) -> None:
    message = r"could not be written to .* \(File too large\)\. Make room, and start again\.$"
    with files_up_to(100_000), pytest.raises(InputError, match=message):
        CheckpointFolder(tmp_path).save({"weights": torch.zeros(1_000_000)}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save({"weights": torch.zeros(10)}, step=1)
    message = (
        r"A checkpoint of 4\.0 MB could not be written to .* \(File too large\)\. The checkpoints before it are kept\."
    )
    with files_up_to(100_000), pytest.raises(InputError, match=message):
        folder.save({"weights": torch.zeros(1_000_000)}, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["000001.checkpoint"]
    found = folder.newest()
    assert found is not None
    assert len(found["weights"]) == 10


def test_a_pickle_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    import pickle

    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "it-ran",))

    content = pickle.dumps(Malicious(), protocol=2)
    header = json.dumps({"dtp_deploy": __version__, "step": 1, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    (tmp_path / "000001.checkpoint").write_bytes(header + b"\n" + content)
    assert CheckpointFolder(tmp_path).newest() is None
    assert not (tmp_path / "it-ran").exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "__version__", "0.0.9")
    CheckpointFolder(tmp_path).save({"step": 1}, step=1)
    monkeypatch.undo()
    with pytest.raises(InputError) as caught:
        CheckpointFolder(tmp_path).newest()
    assert str(caught.value) == (
        f"{tmp_path}/000001.checkpoint was written by dtp-deploy 0.0.9; this is dtp-deploy {__version__}, which may "
        "train in another way. Go on with that version, or start over: the command as it was, with --force."
    )


def test_checkpoints_that_name_no_version_are_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save({"step": 1}, step=1)
    path = tmp_path / "000001.checkpoint"
    path.write_bytes(path.read_bytes().replace(b'"dtp_deploy"', b'"schema"', 1))
    with pytest.raises(InputError, match=r"was written by an earlier version; this is dtp-deploy "):
        CheckpointFolder(tmp_path).newest()


@pytest.mark.parametrize("header", ["[]", "7", "{}", None], ids=["list", "number", "bare", "no state"])
def test_whatever_a_file_holds_it_is_passed_over(header: str | None, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save({"step": 1}, step=1)
    if header is None:
        header = json.dumps({"dtp_deploy": __version__, "sha256": hashlib.sha256(b"").hexdigest()})
    (tmp_path / "000002.checkpoint").write_text(header + "\n")
    (tmp_path / "000002 copy.checkpoint").write_bytes(b"copied")
    assert folder.newest() == {"step": 1}
    folder.save({"step": 3}, step=3)
    assert folder.newest() == {"step": 3}


def test_no_checkpoint_and_none_that_is_whole_are_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"there is no checkpoint in .*out\.partial\. Start the run with --out "):
        read_origin(out)
    folder = tmp_path / "out.partial" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "000001.checkpoint").write_bytes(b"damaged")
    with pytest.raises(UsageError) as caught:
        read_origin(out)
    assert str(caught.value) == (
        f"--resume {out}: all checkpoints in {folder} are damaged. Start over: the command as it was, with --force."
    )
