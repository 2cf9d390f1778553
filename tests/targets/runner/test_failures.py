from pathlib import Path

import pytest

from dtp_deploy_targets.runner.failures import explain_failure

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.mark.parametrize(
    ("name", "cause", "line"),
    [
        ("error-oom-10.3.txt", "out of memory", "Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1"),
        ("error-oom-nano-7.txt", "out of memory", "Requested amount of memory (150994944 bytes)"),
        ("error-unsupported-op-8.0.txt", "this TensorRT has no operator Round", "3: getPluginCreator could not find"),
        ("error-unsupported-op-8.6.txt", "this TensorRT does not have one of the model's operators", "ModelImporter"),
        ("error-unknown-option.txt", "this trtexec does not know --fp16", "Unknown option: --fp16"),
        ("error-shape-profile.txt", "the shapes do not fit the model", "3: [executionContext.cpp"),
        ("error-incompatible-engine.txt", "the engine was built for another board or TensorRT version", "The engine"),
        ("error-11-strong-typing-UNVERIFIED.txt", "the model mixes precisions in one operator", "ITensor::getDim"),
    ],
)
def test_recorded_failures(name, cause, line):
    failure = explain_failure("", (SAMPLES / name).read_text())
    assert failure.cause == cause
    assert failure.line.startswith(line)
    assert failure.remedy
    assert "\n" not in str(failure)


@pytest.mark.parametrize(
    ("index", "cause"),
    [
        (0, "/usr/lib/aarch64-linux-gnu/libnvinfer.so.8 is an empty stand-in"),
        (1, "the library libnvinfer.so.6 is missing"),
        (2, "the library libnvdla_compiler.so is missing"),
    ],
)
def test_missing_libraries(index, cause):
    line = (SAMPLES / "error-missing-library.txt").read_text().splitlines()[index]
    assert explain_failure("", line).cause == cause


def test_a_tactic_without_memory_is_no_failure_by_itself():
    warning = (SAMPLES / "warning-oom-skipped-tactic-8.txt").read_text()
    assert explain_failure("", warning).cause == "trtexec failed"


def test_the_node_is_named():
    log = (
        "[E] [TRT] In node 4 with name: /Round and operator: Round (importFallbackPluginImporter): UNSUPPORTED_NODE: x"
    )
    failure = explain_failure("", log)
    assert failure.cause == "this TensorRT has no operator Round (node /Round)"


def test_nothing_said():
    assert str(explain_failure("", "")) == "trtexec failed. Run its command line on the board to see more."
