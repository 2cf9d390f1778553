import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dtp_deploy.errors import InputError
from dtp_deploy.loading.checkpoint import WRAPPER_KEYS, read_checkpoint

SAVE_AGAIN = "Save it again with torch.save(model.state_dict(), path)."
GIVE_FILE = "Give a file written by torch.save(model.state_dict(), path), or a .safetensors file."
WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


class Malicious:
    """Creates the file `victim` when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == f"Checkpoint {path} {message}"
    assert "\n" not in str(caught.value)


def assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zip_format", [True, False])
def test_reads_a_state_dict_and_its_digest(tmp_path: Path, zip_format: bool) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS, _use_new_zipfile_serialization=zip_format)
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint.state_dict)
    assert checkpoint.path == path
    assert checkpoint.key is None
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reads_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert_weights(dict(sorted(read_checkpoint(tmp_path / "w.safetensors").state_dict.items(), reverse=True)))


@pytest.mark.parametrize("key", WRAPPER_KEYS)
def test_unwraps_each_known_key(tmp_path: Path, key: str) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "w.pt", {"epoch": 3, key: WEIGHTS}))
    assert_weights(checkpoint.state_dict)
    assert checkpoint.key == key


def test_takes_trained_weights_before_their_average(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in WEIGHTS.items()}
    path = saved(tmp_path / "w.pt", {"ema": average, "model": WEIGHTS})
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint.state_dict)
    assert checkpoint.key == "model"


def test_passes_over_a_wrapper_key_that_holds_nothing_and_unwraps_twice(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model": None, "ema": {"state_dict": WEIGHTS, "decay": 0.99}})
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint.state_dict)
    assert checkpoint.key == "ema.state_dict"


def test_a_weight_named_like_a_wrapper_key_is_a_weight(tmp_path: Path) -> None:
    weights = {"model": torch.ones(2), "head": torch.zeros(1)}
    checkpoint = read_checkpoint(saved(tmp_path / "w.pt", weights))
    assert_weights(checkpoint.state_dict, weights)
    assert checkpoint.key is None


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_strips_the_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "w.pt", {prefix + name: value for name, value in WEIGHTS.items()})
    assert_weights(read_checkpoint(path).state_dict)


def test_keeps_a_prefix_that_not_all_names_have(tmp_path: Path) -> None:
    weights = {"module.fc": torch.ones(2), "head": torch.zeros(1)}
    assert_weights(read_checkpoint(saved(tmp_path / "w.pt", weights)).state_dict, weights)


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda content, path: torch.save(content, path), id="zip"),
        pytest.param(lambda content, path: torch.save(content, path, pickle_protocol=4), id="zip-protocol-4"),
        pytest.param(
            lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False), id="legacy"
        ),
        pytest.param(lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)), id="pickle-0"),
        pytest.param(lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)), id="pickle-2"),
        pytest.param(lambda content, path: path.write_bytes(pickle.dumps(content, protocol=5)), id="pickle-5"),
    ],
)
def test_refuses_code_and_runs_none(tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    path, victim = tmp_path / "w.pt", tmp_path / "victim"
    save({"state_dict": {"count": 1}, "extra": Malicious(victim)}, path)
    assert_refused(
        path,
        "is refused: it needs code to load (posix.mkdir), and only weights are read here; nothing was run. "
        f"Where you trust the file, load it yourself. {SAVE_AGAIN}",
    )
    assert not victim.exists()


def test_no_environment_variable_lets_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path / "w.pt", {"extra": Malicious(tmp_path / "victim")})
    with pytest.raises(InputError, match=r"needs code to load \(posix\.mkdir\)"):
        read_checkpoint(path)
    assert not (tmp_path / "victim").exists()


def test_the_malicious_pickle_would_work_elsewhere(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()


def test_refuses_a_pickled_model_and_names_its_classes(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"model": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())})
    assert_refused(
        path,
        "is refused: it needs code to load (torch.nn.modules.activation.ReLU, torch.nn.modules.batchnorm.BatchNorm1d, "
        "torch.nn.modules.container.Sequential and 1 more), and only weights are read here; nothing was run. "
        f"Where you trust the file, load it yourself. {SAVE_AGAIN}",
    )


def test_refuses_torchscript(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert_refused(
        tmp_path / "w.pt",
        "is a TorchScript archive, which holds a program and not only weights. "
        "Open it with torch.jit.load where you trust it, and save its state_dict() with torch.save.",
    )


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pt", f"does not exist. {GIVE_FILE}")
    assert_refused(tmp_path, f"is a directory. {GIVE_FILE}")
    (tmp_path / "empty.pt").touch()
    assert_refused(tmp_path / "empty.pt", "is empty (0 bytes). Copy or save it again.")
    os.mkfifo(tmp_path / "pipe.pt")
    assert_refused(tmp_path / "pipe.pt", f"is not a regular file. {GIVE_FILE}")


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_refuses_a_truncated_file(tmp_path: Path, zip_format: bool, share: float) -> None:
    whole = saved(tmp_path / "whole.pt", WEIGHTS, _use_new_zipfile_serialization=zip_format).read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: int(share * len(whole))])
    assert_refused(
        tmp_path / "w.pt",
        "is truncated or damaged, or not written by torch.save. Copy it again, or save it again with torch.save.",
    )


def test_refuses_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    # What is between the brackets is safetensors' own.
    assert re.fullmatch(
        re.escape(f"Checkpoint {path} is damaged or no safetensors file (SafetensorError: ")
        + r"[^\n]+\)\. Copy or save it again\.",
        str(caught.value),
    )


@pytest.mark.parametrize("content", [b"hello world\n" * 20, b"cats\nand dogs\n", b"\xff\xd8\xff\xe0" * 50, b"\x00"])
def test_refuses_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert_refused(tmp_path / "w.pt", f"is not a checkpoint: torch.save did not write it. {SAVE_AGAIN}")


def test_refuses_another_zip_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("photos/a.txt", "hello")
    assert_refused(tmp_path / "w.pt", f"is a zip archive, but no checkpoint: it has no data.pkl. {SAVE_AGAIN}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), f"holds a Tensor, not a state_dict. {SAVE_AGAIN}"),
        ([torch.zeros(3)], f"holds a list, not a state_dict. {SAVE_AGAIN}"),
        ({}, f"holds an empty dict, not a state_dict. {SAVE_AGAIN}"),
        ({"model": {}}, f"holds an empty dict, not a state_dict. {SAVE_AGAIN}"),
        (
            {"epoch": 3, "weights": WEIGHTS, "lr": 0.1, 4: torch.ones(1)},
            "holds no state_dict: not a weight by name are 'epoch' (int), 'weights' (dict), 'lr' (float) and 1 more. "
            "Give tensors by name, at the top level or under one of: "
            "state_dict, model_state_dict, model, params, state_dict_ema, model_ema, ema.",
        ),
    ],
)
def test_refuses_other_contents(tmp_path: Path, content: object, message: str) -> None:
    assert_refused(saved(tmp_path / "w.pt", content), message)


def test_a_name_that_the_system_refuses_is_one_line_too(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    assert_refused(path, f"cannot be read: File name too long. {GIVE_FILE}")
