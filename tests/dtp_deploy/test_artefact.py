"""The delivered folder is whole or absent, and reads back as the same model."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.artefact import (
    PLAN,
    REPORT_JSON,
    REPORT_MARKDOWN,
    WEIGHTS,
    check_output,
    load_pruned,
    open_artefact,
    save_weights,
    write_report,
)
from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.prune import PruningPlan, compose, remove_channels
from dtp_deploy.prune.plan import GroupChoice, fingerprint_of
from dtp_deploy.report import read_report

SAMPLE = Path(__file__).parent / "report" / "sample_report.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def deliver(out: Path, text: str = "{}", force: bool = False) -> None:
    with open_artefact(out, force) as partial:
        (partial / REPORT_JSON).write_text(text)


def test_the_folder_appears_at_the_end_and_whole(tmp_path: Path) -> None:
    out = tmp_path / "made" / "on" / "the way"

    with open_artefact(out) as partial:
        (partial / REPORT_JSON).write_text("{}")
        assert not out.exists()
        assert partial == out.with_name("the way.partial")

    assert names(out) == [REPORT_JSON]
    assert names(out.parent) == ["the way"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_any_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with open_artefact(tmp_path / "made" / "out") as partial:
            (partial / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_an_existing_folder_is_not_overwritten_without_force(tmp_path: Path) -> None:
    deliver(tmp_path / "out", "old")

    with pytest.raises(UsageError) as caught:
        deliver(tmp_path / "out", "new")
    assert str(caught.value) == (
        f"--out {tmp_path / 'out'} exists already. Give another folder, or --force to replace it."
    )
    assert (tmp_path / "out" / REPORT_JSON).read_text() == "old"


def test_force_replaces_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    deliver(out, "old")
    (out / "stale").touch()

    with open_artefact(out, force=True) as partial:
        (partial / REPORT_JSON).write_text("new")
        assert (out / REPORT_JSON).read_text() == "old"

    assert (out / REPORT_JSON).read_text() == "new"
    assert names(out) == [REPORT_JSON]
    assert names(tmp_path) == ["out"]


def test_a_failure_with_force_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    deliver(out, "old")

    def fail() -> None:
        with open_artefact(out, force=True):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own, two lines above
        fail()
    assert (out / REPORT_JSON).read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    deliver(out, "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UsageError) as caught:
        deliver(out, "new", force=True)
    assert str(caught.value) == (
        f"--out {out} cannot be written (No space left on device). Give another folder. "
        f"What this run made is complete in {out}.partial."
    )
    assert (out / REPORT_JSON).read_text() == "old"
    assert (tmp_path / "out.partial" / REPORT_JSON).read_text() == "new"


def test_a_full_disk_is_one_line_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run() -> None:
        with open_artefact(out) as partial:
            (partial / "checkpoints").mkdir()
            (partial / "checkpoints" / "000001.checkpoint").write_text("state")
            (partial / "model.onnx").write_text("half of it")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError) as caught:
        run()
    assert str(caught.value) == (
        f"{out}.partial cannot be written (No space left on device). Make room, and go on with --resume {out}."
    )
    assert not out.exists()
    assert [name for name in names(tmp_path / "out.partial") if not name.startswith(".")] == ["checkpoints"]


def test_force_replaces_an_empty_folder_but_nothing_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    deliver(tmp_path / "empty", force=True)
    assert names(tmp_path / "empty") == [REPORT_JSON]

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "me.jpg").touch()
    for force in (True, False):  # without it neither, lest it be advised in vain
        with pytest.raises(UsageError) as caught:
            deliver(photos, force=force)
        assert str(caught.value) == (
            f"--out {photos} exists and holds no report.json, so not even --force replaces it: it may be something of "
            "yours. Give another folder, or delete it yourself."
        )
        assert names(photos) == ["me.jpg"]


def test_what_came_during_the_run_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with open_artefact(out):
            out.mkdir()

    with pytest.raises(UsageError, match=r"exists already.* What this run made is complete in .*out\.partial\."):
        race()
    assert names(tmp_path) == ["out", "out.partial"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "--out {out} is a file. Give a folder that does not exist yet."),
        ("file/out", "--out {out} cannot be made, because {file} is not a folder. Give another folder."),
        ("file/deep/out", "--out {out} cannot be made, because {file} is not a folder. Give another folder."),
    ],
)
@pytest.mark.parametrize("check", [check_output, deliver])
def test_an_impossible_place_is_refused(
    tmp_path: Path, place: str, message: str, check: Callable[[Path], None]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / place

    with pytest.raises(UsageError) as caught:
        check(out)
    assert str(caught.value) == message.format(out=out, file=tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_an_unwritable_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere

    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "a" / "out")
    assert str(caught.value) == (
        f"--out {tmp_path / 'a' / 'out'} cannot be made, because {tmp_path} is not writable. "
        "Give a folder that you may write."
    )


def test_a_mount_point_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        check_output(Path("/proc"), force=True)
    assert str(caught.value) == "--out /proc is a mount point and cannot be replaced. Give a folder inside of it."


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b" / "out")

    assert names(tmp_path) == []


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk")

    deliver(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == [REPORT_JSON]


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from dtp_deploy.artefact import open_artefact\n"
        "with open_artefact(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half').touch(); (partial / 'more').mkdir(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert names(tmp_path) == ["out.partial"]

    deliver(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == [REPORT_JSON]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with open_artefact(tmp_path / "out") as partial:
        (partial / REPORT_JSON).touch()
        with pytest.raises(UsageError) as caught:
            deliver(tmp_path / "out")
        assert names(tmp_path) == ["out.partial"]

    assert str(caught.value) == (
        f"--out {tmp_path / 'out'} is being written by another run (Resource temporarily unavailable). "
        "Wait for it, or give another folder."
    )
    assert names(tmp_path / "out") == [REPORT_JSON]


def test_a_partial_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()

    with pytest.raises(UsageError) as caught:
        deliver(tmp_path / "out")
    assert str(caught.value) == (
        f"--out {tmp_path / 'out'} needs {tmp_path / 'out.partial'}, which exists and is not ours. "
        "Remove it, or give another folder."
    )
    assert names(tmp_path / "out.partial") == ["mine"]


def test_the_lock_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[int] = []
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda lock, how: (locks.append(lock), flock(lock, how)))
    deliver(tmp_path / "out")

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(locks[0])


def test_both_faces_of_the_report_are_written(tmp_path: Path) -> None:
    report = read_report(SAMPLE)

    write_report(report, tmp_path)

    assert read_report(tmp_path / REPORT_JSON) == report
    assert (tmp_path / REPORT_MARKDOWN).read_text(encoding="utf-8").startswith("# resnet.pt, pruned\n")


class Tiny(nn.Module):
    """4 hidden channels; the two names of the last weight are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)
        self.same = self.last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def plan_for(model: nn.Module) -> PruningPlan:
    kept = (0, 2)
    return PruningPlan(
        groups=(GroupChoice("first", 4, 2, kept),),
        tensors={"first.weight": {0: kept}, "first.bias": {0: kept}, "last.weight": {1: kept}},
        fingerprint=fingerprint_of(model),
    )


@pytest.fixture
def delivered(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A pruned model with weights of its own, and the folder that holds it."""
    torch.manual_seed(0)
    dense = Tiny()
    small = remove_channels(dense, plan_for(dense)).eval()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_()
    save_weights(small, tmp_path / WEIGHTS)
    (tmp_path / PLAN).write_text(plan_for(dense).to_json())
    return small, tmp_path


@pytest.mark.parametrize("factory", [Tiny, Tiny(), lambda: Tiny()], ids=["class", "model", "function"])
def test_a_delivered_model_computes_the_same(
    delivered: tuple[nn.Module, Path], factory: Callable[[], nn.Module] | nn.Module
) -> None:
    small, folder = delivered
    before = (
        {name: tensor.clone() for name, tensor in factory.state_dict().items()} if isinstance(factory, Tiny) else {}
    )

    loaded = load_pruned(factory, folder)

    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), small(x))
    assert not loaded.training
    if isinstance(factory, Tiny):
        assert all(torch.equal(tensor, before[name]) for name, tensor in factory.state_dict().items())


def test_a_factory_may_be_named(delivered: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small, folder = delivered
    (folder / "nets_of_artefact_test.py").write_text(
        "from torch import nn\nclass Tiny(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.first = nn.Linear(3, 4)\n        self.last = nn.Linear(4, 2)\n        self.same = self.last\n"
    )
    monkeypatch.chdir(folder)

    loaded = load_pruned("nets_of_artefact_test:Tiny", str(folder))

    assert torch.equal(loaded.state_dict()["first.weight"], small.state_dict()["first.weight"])


def test_another_model_is_refused(delivered: tuple[nn.Module, Path]) -> None:
    with pytest.raises(InputError, match="The pruning plan was made for another model"):
        load_pruned(nn.Linear(3, 2), delivered[1])


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def scramble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x00")


def wrong_index(path: Path) -> None:
    plan = json.loads(path.read_text())
    plan["tensors"]["first.bias"]["0"] = [0, 99]
    path.write_text(json.dumps(plan))


def wrong_tensor(path: Path) -> None:
    plan = json.loads(path.read_text())
    plan["tensors"]["nothing.bias"] = {"0": [0]}
    path.write_text(json.dumps(plan))


def other_weights(path: Path) -> None:
    save_weights(Tiny(), path)


@pytest.mark.parametrize("file", [PLAN, WEIGHTS])
@pytest.mark.parametrize("damage", [remove, truncate, scramble])
def test_a_damaged_folder_is_refused_and_the_file_named(
    delivered: tuple[nn.Module, Path], file: str, damage: Callable[[Path], None]
) -> None:
    path = delivered[1] / file
    damage(path)

    with pytest.raises(InputError) as caught:
        load_pruned(Tiny, delivered[1])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [wrong_index, wrong_tensor])
def test_a_plan_that_names_what_is_not_there_is_refused(
    delivered: tuple[nn.Module, Path], damage: Callable[[Path], None]
) -> None:
    damage(delivered[1] / PLAN)

    with pytest.raises(InputError, match=r"pruning_plan\.json is damaged \("):
        load_pruned(Tiny, delivered[1])


def test_weights_of_another_run_are_refused(delivered: tuple[nn.Module, Path]) -> None:
    other_weights(delivered[1] / WEIGHTS)

    with pytest.raises(InputError, match=r"model\.safetensors does not belong to the pruning_plan\.json beside it \("):
        load_pruned(Tiny, delivered[1])


def test_weights_changed_after_they_were_written_are_refused(delivered: tuple[nn.Module, Path]) -> None:
    path, plan = delivered[1] / WEIGHTS, delivered[1] / PLAN
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    plan.write_text(replace(plan_for(Tiny()), weights_sha256=sha256).to_json())
    load_pruned(Tiny, delivered[1])

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with pytest.raises(InputError) as caught:
        load_pruned(Tiny, delivered[1])
    assert str(caught.value) == (
        f"{path} is not as it was written: its SHA-256 is not the one in pruning_plan.json. "
        "Give a folder that dtp-deploy compress --out wrote, as it was written."
    )


def test_the_exact_text_for_missing_weights(delivered: tuple[nn.Module, Path]) -> None:
    (delivered[1] / WEIGHTS).unlink()

    with pytest.raises(InputError) as caught:
        load_pruned(Tiny, delivered[1])
    assert str(caught.value) == (
        f"Weights {delivered[1] / WEIGHTS} does not exist. "
        "Give a folder that dtp-deploy compress --out wrote, as it was written."
    )


def crashing() -> nn.Module:
    raise ValueError("no such layer")


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        (3, UsageError, "load_pruned() got a int as its factory. Give a function that makes the dense model."),
        (
            crashing,
            InputError,
            f"The factory raised ValueError: no such layer, at "
            f"test_artefact.py:{crashing.__code__.co_firstlineno + 1}. Correct it; it is called without arguments.",
        ),
        (lambda: 3, InputError, "The factory returned a int. Let it return the dense torch.nn.Module."),
    ],
)
def test_a_factory_that_is_none_is_refused(
    delivered: tuple[nn.Module, Path], factory: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        load_pruned(factory, delivered[1])
    assert str(caught.value) == message


def second_plan(small: nn.Module, kept: tuple[int, ...] = (1,)) -> PruningPlan:
    """A plan for what `plan_for` leaves, which also removes one of the outputs."""
    return PruningPlan(
        groups=(GroupChoice("first", 2, len(kept), kept), GroupChoice("last", 2, 1, (0,))),
        tensors={
            "first.weight": {0: kept},
            "first.bias": {0: kept},
            "last.weight": {1: kept, 0: (0,)},
            "last.bias": {0: (0,)},
        },
        fingerprint=fingerprint_of(small),
    )


def test_two_plans_in_one_do_what_they_do_in_turn() -> None:
    dense = Tiny()
    first = plan_for(dense)
    small = remove_channels(dense, first)
    second = second_plan(small)

    both = compose(first, second)

    in_turn, at_once = remove_channels(small, second), remove_channels(dense, both)
    assert all(torch.equal(value, at_once.state_dict()[name]) for name, value in in_turn.state_dict().items())
    assert both.fingerprint == fingerprint_of(dense)
    assert both.chain == (fingerprint_of(small),)
    assert both.groups == (GroupChoice("first", 4, 1, (2,)), GroupChoice("last", 2, 1, (0,)))
    assert both.tensors["last.weight"] == {1: (2,), 0: (0,)}
    assert PruningPlan.from_json(both.to_json()) == both


def test_three_plans_in_one_name_every_model_between() -> None:
    dense = Tiny()
    first = plan_for(dense)
    small = remove_channels(dense, first)
    second = second_plan(small, kept=(0, 1))
    smaller = remove_channels(small, second)
    third = PruningPlan((), {}, fingerprint_of(smaller))

    left, right = compose(compose(first, second), third), compose(first, compose(second, third))

    assert left.chain == right.chain == (fingerprint_of(small), fingerprint_of(smaller))
    assert left == right


def test_a_group_that_is_divided_otherwise_loses_its_units_and_keeps_its_widths() -> None:
    dense = Tiny()
    first = plan_for(dense)
    coarse = PruningPlan((GroupChoice("first", 99, 1, (0,)),), {}, fingerprint_of(dense))

    (group,) = compose(first, coarse).groups

    assert (group.width_before, group.width_after, group.kept_units) == (4, 1, ())


def test_a_plan_written_before_there_were_chains_is_read() -> None:
    document = json.loads(plan_for(Tiny()).to_json())
    del document["chain"]

    assert PruningPlan.from_json(json.dumps(document)) == plan_for(Tiny())
