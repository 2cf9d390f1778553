"""The training loop: memory that is too small, losses that break down, logs."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import InputError, TrainingError, UsageError
from dtp_deploy.loading import Dataset
from dtp_deploy.task import CLASSIFICATION, UNLABELLED, Task
from dtp_deploy.train import Settings, Trainer
from dtp_deploy.train.logs import RunLog


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 1, 4, 4)).astype(np.float32)
    y = rng.integers(0, 3, 32)
    return Dataset("noise", x, y, x[:8], y[:8])


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class SmallMemory(nn.Module):
    """Fails as a device does whose memory holds no more than some samples."""

    def __init__(self, inside: nn.Module, most: int) -> None:
        super().__init__()
        self.inside, self.most = inside, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        return self.inside(x)


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        yield lambda: None

    def note(self, message: str) -> None:
        self.notes.append(message)


def trained(model: nn.Module, data: Dataset, progress: Notes | None = None) -> Trainer:
    trainer = Trainer(data.train(16, seed=0), CLASSIFICATION, Settings(epochs=3, batch_size=16), None)
    trainer.run(model, trainer.total_steps, **({"progress": progress} if progress else {}))
    return trainer


def test_out_of_memory_halves_the_batch_and_gives_the_same_weights(data: Dataset) -> None:
    whole, notes = make(), Notes()
    trained(whole, data)
    small = SmallMemory(make(), most=5)
    trainer = trained(small, data, notes)
    assert trainer.parts == 4
    assert notes.notes == [
        "Out of memory at 16 samples: batches go on in 2 parts, their gradients added up.",
        "Out of memory at 8 samples: batches go on in 4 parts, their gradients added up.",
    ]
    for a, b in zip(whole.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sample_that_never_fits_is_an_error(data: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"A single sample of shape \(16, 1, 4, 4\) does not fit into the memory of cpu"
    ):
        trained(SmallMemory(make(), most=0), data)


def test_memory_that_runs_out_in_the_loss_is_no_fault_of_the_loss(data: Dataset) -> None:
    def hungry(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 8:
            raise torch.OutOfMemoryError
        return nn.functional.cross_entropy(outputs, targets)

    trainer = Trainer(data.train(16, seed=0), Task("mine", hungry, None), Settings(epochs=1, batch_size=16), None)
    trainer.run(make(), 1)
    assert trainer.parts == 2


def test_a_loss_that_says_itself_what_is_wrong_is_not_wrapped(data: Dataset) -> None:
    def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
        raise InputError("--loss task:loss returned a float. Let it return a scalar tensor.")

    trainer = Trainer(data.train(16, seed=0), Task("mine", wrong, None), Settings(epochs=1, batch_size=16), None)
    with pytest.raises(InputError) as caught:
        trainer.run(make(), 1)
    assert str(caught.value) == "--loss task:loss returned a float. Let it return a scalar tensor."


def test_other_gradients_are_forgotten_when_a_batch_starts_over(data: Dataset) -> None:
    forgotten = []
    trainer = Trainer(data.train(16, seed=0), CLASSIFICATION, Settings(epochs=1, batch_size=16), None)
    trainer.run(SmallMemory(make(), most=8), 1, forget=lambda: forgotten.append(True))
    assert forgotten == [True]


def test_a_loss_that_is_no_number_ends_the_run_with_advice(data: Dataset) -> None:
    model = make()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"at step 0 of \d+: training broke down\. Lower --lr \(now [\d.]+\)\."):
        trained(model, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named_and_not_the_learning_rate(data: Dataset, value: float) -> None:
    data.x_train[:] = value
    with pytest.raises(InputError, match="The training batch of step 0 holds NaN or infinite inputs"):
        trained(make(), data)


@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 60), (0.5, 60), (0.75, 20), (1.0, 1)])
def test_the_mask_phase_is_shorter_where_less_is_pruned_than_kept(ratio: float, steps: int) -> None:
    assert Settings().mask_steps(100, ratio) == steps


@pytest.mark.parametrize(("total", "steps"), [(1, 1), (2, 1), (3, 2)])
def test_a_step_is_left_for_fine_tuning_where_there_are_two(total: int, steps: int) -> None:
    assert Settings(mask_share=0.99).mask_steps(total, 0.5) == steps


def test_nothing_to_learn_from_is_refused(data: Dataset) -> None:
    with pytest.raises(
        InputError, match=r"There is nothing to learn from: the data have no labels, and distillation is"
    ):
        Trainer(data.train(16, seed=0), UNLABELLED, Settings(distill=False), make())


def test_a_loss_that_does_not_fit_the_model_is_explained(data: Dataset) -> None:
    task = Task("mine", lambda outputs, targets: outputs.no_such_thing, None)
    trainer = Trainer(data.train(16, seed=0), task, Settings(epochs=1), None)
    with pytest.raises(
        InputError, match=r"The loss of 'mine' could not be computed \(AttributeError: .*\)\. Check that"
    ):
        trainer.run(make(), 1)


def test_distillation_alone_pulls_outputs_to_the_teacher(data: Dataset) -> None:
    teacher, student = make().eval(), make()
    with torch.no_grad():
        student[1].weight.mul_(0.3)
    x = torch.from_numpy(data.x_train)
    before = UNLABELLED.distance(student(x), teacher(x), 4.0).item()
    settings = Settings(epochs=30, batch_size=16, learning_rate=0.05)
    trainer = Trainer(data.train(16, seed=0), UNLABELLED, settings, teacher)
    trainer.run(student, trainer.total_steps)
    assert UNLABELLED.distance(student(x), teacher(x), 4.0).item() < 0.2 * before


def test_log_holds_one_record_every_few_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log", every=2)
    for step in range(1, 5):
        log.write(step, "masks", {"loss": 1.0 / step})
    log.close()
    records = [json.loads(line) for line in (tmp_path / "log" / "scalars.jsonl").read_text().splitlines()]
    assert [(record["step"], record["stage"], record["loss"]) for record in records] == [
        (2, "masks", 0.5),
        (4, "masks", 0.25),
    ]


def test_records_of_epochs_come_at_any_step_and_hold_numbers_only(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.write_epoch(3, "mask phase", {"step": 3, "epoch": 1.0, "price": None, "widths": [4, 6]})
    log.close()
    (record,) = [json.loads(line) for line in (tmp_path / "log" / "scalars.jsonl").read_text().splitlines()]
    del record["time_s"]
    assert record == {"step": 3, "stage": "mask phase", "epoch": 1.0, "widths/0": 4, "widths/1": 6}


def test_log_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"--log-dir .*file/log cannot be written \(Not a directory\)\. Give another folder\."
    ):
        RunLog(tmp_path / "file" / "log")


def test_losses_compute_in_float32_where_models_compute_in_less(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_half", lambda self, device: True)  # on the CPU as on a GPU
    inside: list[torch.dtype] = []
    outside: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        outside.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    def distance(self: Task, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        outside.extend([outputs.dtype, wanted.dtype])
        return (outputs - wanted).square().mean()

    monkeypatch.setattr(Task, "distance", distance)
    model, teacher = make(), make()
    for one in (model, teacher):
        one.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    trainer = Trainer(data.train(16, seed=0), Task("mine", loss, None), Settings(epochs=1), teacher)
    trainer.run(model, 1)
    assert set(inside) == {torch.bfloat16}
    assert set(outside) == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("warm_up", 1.0),
        ("warm_up", -0.1),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("weight_decay", math.nan),
        ("clip_norm", 0.0),
        ("temperature", 0.0),
        ("distill_weight", 1.5),
        ("batchnorm_batches", 0),
    ],
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"^{setting} is {value}; give "):
        Settings(**{setting: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Settings(warm_up=0.0, momentum=0.0, weight_decay=0.0, distill_weight=1.0, batchnorm_batches=1)
