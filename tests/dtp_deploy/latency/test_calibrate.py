"""What is learned about a target, and what happens where the target goes wrong meanwhile."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, cast

import numpy as np
import pytest
import torch

from dtp_deploy.cost import Staircase
from dtp_deploy.errors import GraphError, TargetError
from dtp_deploy.latency import LatencyProbe, LatencyTable, calibrate, learn_table, meter, structures
from dtp_deploy.latency import probe as probing
from dtp_deploy.latency.probe import DENSE
from dtp_deploy.latency.staircase import find_stairs
from dtp_deploy.profile import LatencyReport
from dtp_deploy.prune import make_plan
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.target import TargetSpec

MakeProbe = Callable[..., LatencyProbe]


def names_in(log: str) -> list[str]:
    return [name for name in log.splitlines() if name != "overhead"]


def measured_models(tmp_path: Path) -> list[str]:
    log = tmp_path / "log.txt"
    found = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return names_in(found)


def errors_of(table: LatencyTable, probe: LatencyProbe, multiple: int = 1) -> list[float]:
    """Relative errors of predicted shares of the dense latency, for structures that were not measured to learn."""
    rng = np.random.default_rng(5)
    plans, units = {}, {}
    for number in range(4):
        counts = [
            min(group.units, multiple * int(rng.integers(1, group.units // multiple + 1)))
            for group in probe.groups.prunable
        ]
        kept = {group.name: range(count) for group, count in zip(probe.groups.prunable, counts, strict=True)}
        plans[str(number)] = make_plan(probe.groups, kept, fingerprint_of(probe.model))
        units[str(number)] = torch.tensor(counts, dtype=torch.float64)
    reports = probe.measure(plans)
    return [
        table.cost.exact(units[name]) / table.dense_ms / (reports[name].p50_ms / reports[DENSE].p50_ms) - 1
        for name in plans
    ]


class Learned(Protocol):
    table: LatencyTable
    cache: Path
    log: str


@pytest.mark.parametrize("step", [1, 16])
def test_table_finds_the_staircase_and_predicts_structures(step: int, probe_on: MakeProbe, tmp_path: Path) -> None:
    probe = probe_on(step=step)
    table = learn_table(probe, cache_folder=tmp_path / "cache")
    assert table.cost.stairs == (Staircase(step, (float(step),)),) * 2
    assert table.estimated == 0
    assert max(map(abs, table.errors)) < 0.05
    assert max(map(abs, errors_of(table, probe, step))) < 0.05


def test_steps_of_unequal_height_are_found(probe_on: MakeProbe, tmp_path: Path) -> None:
    probe = probe_on("Uneven")
    table = learn_table(probe, cache_folder=tmp_path / "cache")
    assert table.cost.stairs == (Staircase(8, (18.0, 22.0, 26.0, 32.0)),) * 2
    assert "multiples of 8 (best: of 32) input and multiples of 8 (best: of 32) output channels" in table.summary()
    assert max(map(abs, table.errors)) < 0.05
    assert max(map(abs, errors_of(table, probe))) < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_noise_never_makes_channels_worth_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = [{width: width * float(rng.uniform(0.5, 1.5)) + 1 for width in range(64, 129, 8)} for _ in range(3)]
    times[0] |= {64: 60.0, 72: 50.0, 128: 120.0}  # a disturbed measurement: falling
    stairs = find_stairs(8, times)
    assert stairs.worth[0] >= 1
    assert stairs.worth[-1] == stairs.period


def test_structures_are_measured_in_several_processes_and_freed_from_the_error_of_each() -> None:
    class Probe:
        target = TargetSpec("cpu")
        errors: ClassVar = [1.0, 1.3, 0.8, 1.0]

        def measure(self, plans: object, settings: object) -> dict[str, LatencyReport]:
            factor = self.errors.pop()
            return {name: LatencyReport.from_blocks([[factor * ms]] * 4) for name, ms in ((DENSE, 8.0), ("plan", 2.0))}

    times, unsteady = structures.time_together(cast(LatencyProbe, Probe()), {})
    assert times == pytest.approx([8.0, 2.0])
    assert unsteady
    assert Probe.errors == []


def test_a_load_spike_is_noticed_and_does_no_harm(probe_on: MakeProbe, learned: Learned, tmp_path: Path) -> None:
    quiet = learned.table
    assert quiet.unsteady == (0, 17)  # three layers' steps and their heights on two sides, four layers, the structures
    table = learn_table(probe_on("Spiked", step=8), cache_folder=tmp_path / "cache")
    assert table.unsteady == (1, 17)
    assert "Load of other work came and went during 1 of 17 measurements" in table.summary()
    assert table.cost.to_json() == quiet.cost.to_json()
    again = learn_table(probe_on("Spiked", step=8), cache_folder=tmp_path / "cache")
    assert again.unsteady == (1, 17)  # what the cache has is not forgotten to be doubtful


def test_only_widths_on_the_staircase_are_preferred(probe_on: MakeProbe, tmp_path: Path) -> None:
    probe = probe_on(step=16)
    preferred = learn_table(probe, cache_folder=tmp_path / "cache").cost.preferred_widths()
    for group, units in zip(probe.groups.prunable, preferred, strict=True):
        assert units[-1] == group.units
        assert all(count % 16 == 0 for count in units if count > 1), group.name


def test_slow_builds_are_learned_from_structures_alone(probe_on: MakeProbe, tmp_path: Path) -> None:
    probe = probe_on("SlowToBuild")
    table = learn_table(probe, cache_folder=tmp_path / "cache")
    assert not any(name.startswith("layer-") for name in measured_models(tmp_path))
    assert table.measured == 0
    assert table.estimated == 4
    assert max(map(abs, errors_of(table, probe))) < 0.1


def test_slow_builds_stop_at_the_time_cap(probe_on: MakeProbe, tmp_path: Path) -> None:
    learn_table(probe_on("SlowToBuild"), time_cap_s=0, cache_folder=tmp_path / "cache")
    assert len(measured_models(tmp_path)) == 1 + 4


def test_without_time_layers_are_estimated(probe_on: MakeProbe, tmp_path: Path) -> None:
    probe = probe_on()
    table = learn_table(probe, time_cap_s=0, cache_folder=tmp_path / "cache")
    assert (table.measured, table.estimated) == (0, 4)
    assert "0 kinds of layers measured, 4 estimated" in table.summary()
    assert max(map(abs, errors_of(table, probe))) < 0.2


def test_nothing_is_measured_twice_on_one_device(probe_on: MakeProbe, learned: Learned, tmp_path: Path) -> None:
    assert learned.log
    again = learn_table(probe_on(step=8), time_cap_s=0, cache_folder=learned.cache)
    assert measured_models(tmp_path) == []
    assert again.cost.to_json() == learned.table.cost.to_json()
    assert again == replace(learned.table, cost=again.cost)


def test_what_another_device_measured_is_not_used(probe_on: MakeProbe, learned: Learned, tmp_path: Path) -> None:
    shutil.copytree(learned.cache, tmp_path / "cache")
    learn_table(probe_on(step=8, device="there"), cache_folder=tmp_path / "cache")
    assert any(name.startswith("layer-") for name in measured_models(tmp_path))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dies", "the measuring process was ended by SIGSEGV"),
        ("hangs", "the measuring process was killed after 4 s without a result"),
        ("prints rubbish", "the measuring process ended with exit status 0 and no result"),
    ],
)
def test_a_target_that_goes_wrong_ends_the_calibration_which_then_goes_on_where_it_was(
    how: str,
    message: str,
    probe_on: MakeProbe,
    learned: Learned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter, "_LAYER", replace(meter._LAYER, timeout_s=4.0))
    (tmp_path / "fault.txt").write_text(f"{how} 60")
    with pytest.raises(TargetError, match=message):
        learn_table(probe_on(step=8), cache_folder=tmp_path / "cache")
    before = measured_models(tmp_path)
    (tmp_path / "fault.txt").unlink()
    table = learn_table(probe_on(step=8), cache_folder=tmp_path / "cache")
    after = measured_models(tmp_path)
    everything = names_in(learned.log)
    assert table.cost.to_json() == learned.table.cost.to_json()
    assert 0 < len(after) < len(everything)
    assert len(before) + len(after) > len(everything)  # the call that went wrong is done anew, the ones before are not


@pytest.mark.usefixtures("learned")  # exports all structures: that is not for threads
def test_two_calibrations_at_once_end_alike(probe_on: MakeProbe, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(learn_table, probe_on(step=8), cache_folder=tmp_path / "cache") for _ in range(2)]
        first, second = (run.result() for run in runs)
    for point in ([32.0, 64.0, 48.0], [8.0, 40.0, 16.0], [24.0, 8.0, 48.0]):
        widths = torch.tensor(point, dtype=torch.float64)
        assert first.cost.exact(widths) == pytest.approx(second.cost.exact(widths), rel=1e-6)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".json"] == []


def test_without_a_cache_the_table_is_learned_all_the_same(probe_on: MakeProbe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    table = learn_table(probe_on(step=8), cache_folder=tmp_path / "file" / "cache")
    assert max(map(abs, table.errors)) < 0.05
    assert table.problem is not None
    assert table.problem.startswith("Latency tables could not be kept in ")


def test_calibrate_learns_what_a_probe_finds_in_the_cache_and_a_second_one_exports_nothing(
    probe_on: MakeProbe, exported: LatencyProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_on(step=8)
    learn = partial(calibrate, exported.model, exported.groups.inputs, probe.target, cache_folder=tmp_path / "cache")
    table = learn()
    assert measured_models(tmp_path)
    again = learn_table(probe, cache_folder=tmp_path / "cache")
    monkeypatch.setattr(probing, "deliver", None)
    assert measured_models(tmp_path) == []
    assert again.cost.to_json() == table.cost.to_json() == learn().cost.to_json()


def test_what_cannot_be_exported_is_refused_before_anything_is_measured(
    probe_on: MakeProbe, exported: LatencyProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise GraphError("no")

    monkeypatch.setattr(probing, "deliver", refused)
    target = probe_on(step=8).target
    with pytest.raises(GraphError):
        calibrate(exported.model, exported.groups.inputs, target, cache_folder=tmp_path / "cache")
    assert measured_models(tmp_path) == []
