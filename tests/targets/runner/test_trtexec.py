"""Command lines by version, and what real trtexec printed; the samples' sources stand in samples/README.md."""

from pathlib import Path

import pytest

from dtp_deploy_targets.runner import trtexec
from dtp_deploy_targets.runner.trtexec import MEASURE_FLAGS, Version

SAMPLES = Path(__file__).parent.parent / "samples"
VERSIONS = [Version(*v) for v in [(8, 0, 1), (8, 2), (8, 4), (8, 5), (8, 6, 1), (10, 0, 1), (10, 3), (10, 16), (11, 1)]]


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


def flags(command: list[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in command[1:])


def build(version, precision="fp16", **options):
    return flags(trtexec.build_command("trtexec", version, "m.onnx", "m.engine", precision, **options))


def measure(version):
    return flags(trtexec.measure_command("trtexec", version, "m.engine", "t.json", seconds=1.5))


def test_banner_versions():
    versions = [banner.version for banner in trtexec.parse_banners(sample("banners.txt"))]
    numbers = ["8.0.3", "8.2.5", "8.5.3", "10.0.1", "10.3.0", "10.7.0", "10.10.0", "10.13.0", "10.13.3"]
    assert versions == [None, *(Version.parse(number) for number in numbers)]


def test_banner_parts():
    banners = {str(banner.version): banner for banner in trtexec.parse_banners(sample("banners.txt"))}
    assert (banners["10.7.0"].status, banners["10.7.0"].build) == ("PASSED", "b23")
    assert banners["10.3.0"].command == "/usr/src/tensorrt/bin/trtexec --loadEngine=model.engine --useCudaGraph"


def test_version_of_a_whole_log():
    assert trtexec.parse_version(sample("log-8.2.5-fp32-passed.txt")) == (8, 2, 5)
    assert trtexec.parse_version("[07/25/2022-16:42:22] [I] TensorRT version: 8.2.5\n") == (8, 2, 5)
    assert trtexec.parse_version("bash: trtexec: command not found") is None


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_every_version_measures_the_same(version):
    command = measure(version)
    assert set(MEASURE_FLAGS) <= command.keys()
    assert not {"--noCudaGraph", "--noSpinWait", "--includeDataTransfers"} & command.keys()
    assert command["--percentile"] == ("99" if version < (8, 5) else "50,90,95,99")
    assert command["--duration"] == ("2" if version < (8, 4) else "1.5")


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_build_only_by_version(version):
    command = build(version)
    assert ("--buildOnly" in command) == (version < (8, 6))
    assert ("--skipInference" in command) == (version >= (8, 6))
    assert ("--workspace" in command) == (version < (8, 4))
    assert ("--profilingVerbosity" in command) == (version >= (8, 2))
    assert "--noTF32" in command


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(
    ("precision", "wanted"), [("fp32", set()), ("fp16", {"--fp16"}), ("int8", {"--int8", "--fp16"})]
)
def test_precision_flags_end_with_11(version, precision, wanted):
    found = {"--fp16", "--int8"} & build(version, precision).keys()
    assert found == (set() if version >= (11,) else wanted)


def test_other_build_options():
    command = build(Version(10, 3), dla_core=1, sparsity=True, timing_cache="c")
    assert command["--useDLACore"] == "1"
    assert {"--allowGPUFallback", "--sparsity", "--timingCacheFile"} <= command.keys()


def test_layers_are_inspected_where_that_exists():
    assert "--exportLayerInfo=l" not in trtexec.inspect_command("trtexec", Version(8, 0, 1), "e", "p", "l")
    assert "--exportLayerInfo=l" in trtexec.inspect_command("trtexec", Version(8, 2), "e", "p", "l")


def test_inputs_whose_names_hold_a_colon_are_quoted():
    command = trtexec.run_command("trtexec", "e", {"x:0": "a.bin", "y": "b.bin"}, "out.json")
    assert "--loadInputs='x:0':a.bin,y:b.bin" in command


@pytest.mark.parametrize(
    ("name", "median_ms", "p99_ms", "qps"),
    [
        ("log-8.2.5-fp32-passed.txt", 5.94946, 6.47375, 166.041),
        ("summary-8.2.5-int8-bound-warnings.txt", 1.61377, 1.69678, 324.544),
        ("summary-3-percentiles.txt", 30.333, 30.4204, 32.7261),
        ("summary-10.13-enqueue-bound.txt", 1667.19, 1673.94, 0.562059),
        ("summary-11-FIXTURE.txt", 1.55, 2.1, 624.1),
    ],
)
def test_summary(name, median_ms, p99_ms, qps):
    summary = trtexec.parse_summary(sample(name))
    assert summary.compute_median_ms == median_ms
    assert summary.lines_ms["GPU Compute Time"]["percentile(99%)"] == p99_ms
    assert summary.throughput_qps == qps


def test_summary_totals_and_absence():
    summary = trtexec.parse_summary(sample("summary-3-percentiles.txt"))
    assert (summary.host_walltime_s, summary.gpu_compute_s) == (3.08622, 3.0635)
    assert summary.lines_ms["Latency"]["percentile(90%)"] == 30.8303
    assert trtexec.parse_summary(sample("error-oom-10.3.txt")) is None


def test_warnings():
    (unstable,) = trtexec.parse_summary(sample("summary-10.10-unstable.txt")).warnings
    assert unstable == "GPU compute time is unstable, with coefficient of variance = 5.58977%."
    enqueue, transfers = trtexec.parse_warnings(sample("summary-8.2.5-int8-bound-warnings.txt"))
    assert enqueue.startswith("Throughput may be bound by Enqueue Time")
    assert transfers.startswith("Throughput may be bound by host-to-device transfers")
    assert trtexec.parse_warnings(sample("summary-3-percentiles.txt")) == []
    lost = "[W] The specified --useCudaGraph flag has been ignored. The inference will be launched without it."
    assert trtexec.parse_warnings(lost) == [lost[4:]]


def test_echoed_options_tell_how_it_was_measured():
    options = trtexec.parse_options(sample("log-8.2.5-fp32-passed.txt"))
    assert (options["Precision"], options["Compute Capability"]) == ("FP32", "8.0")
    assert trtexec.measured_the_agreed_way(options) == [
        "Data transfers: Enabled",
        "Spin-wait: Disabled",
        "CUDA Graph: Disabled",
    ]
    assert trtexec.parse_options(sample("options-echo-10.13.3.txt"))["Precision"] == "FP32 (obey precision constraints)"
    agreed = {"Data transfers": "Disabled", "Spin-wait": "Enabled", "CUDA Graph": "Enabled"}
    assert trtexec.measured_the_agreed_way(agreed) == []


def test_options_without_time_stamps():
    options = trtexec.parse_options(sample("banner-10.3-orin-nx.txt"))
    assert options["Duration"] == "3s (+ 200ms warm up)"


def test_placement():
    placement = trtexec.parse_placement(sample("dla-placement.log.txt"))
    assert placement.dla == ["{ForeignNode[Conv_0...Relu_7]}"]
    assert placement.gpu == ["REDUCE: GlobalAveragePool_8"]


def test_sparsity():
    sparsity = trtexec.parse_sparsity(sample("sparsity-8.log.txt"))
    assert sparsity is not None
    assert sparsity.eligible
    assert trtexec.parse_sparsity(sample("log-8.2.5-fp32-passed.txt")) is None
