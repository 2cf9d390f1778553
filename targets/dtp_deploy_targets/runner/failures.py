"""Why trtexec failed, in one line, from what it printed."""

from __future__ import annotations

import re
from typing import NamedTuple


class Failure(NamedTuple):
    """Why trtexec failed: a short cause, the first error line, and what to do."""

    cause: str
    line: str
    remedy: str

    def __str__(self) -> str:
        said = f" ({self.line})" if self.line else ""
        return f"{self.cause}{said}. {self.remedy}"


# The causes by a pattern, the more telling ones first: later lines of a log are consequences of earlier ones.
_CAUSES = (
    (
        r"error while loading shared libraries: (\S+?): file too short",
        "{0} is an empty stand-in",
        "The container was started without the NVIDIA runtime: start it with --runtime nvidia.",
    ),
    (
        r"(?:error while loading shared libraries: |Could not load library |ImportError: )(\S+?):",
        "the library {0} is missing",
        "Install TensorRT with its libraries (package nvidia-jetpack), or add their folder to LD_LIBRARY_PATH.",
    ),
    (
        r"Unknown option: (\S+)",
        "this trtexec does not know {0}",
        "Its version is not what it says; report it with the output of trtexec --help.",
    ),
    (
        r"No importer registered for op: (\w+)|getPluginCreator could not find plugin: (\w+)"
        r"|operator:? (\w+) .*UNSUPPORTED_NODE",
        "this TensorRT has no operator {0}",
        "Replace it in the model, or use a newer TensorRT.",
    ),
    (
        r"Plugin not found, are the plugin name|UNSUPPORTED_NODE",
        "this TensorRT does not have one of the model's operators",
        "The lines of the log before this one name the node. Replace it, or use a newer TensorRT.",
    ),
    (
        r"must have same input types",
        "the model mixes precisions in one operator",
        "Export it in one precision, or convert all of it.",
    ),
    (
        r"\[E\].*(?:Error Code 1: Cuda Runtime \(out of memory\)|Error Code 2: OutOfMemory)|OutOfMemory Error",
        "out of memory",
        "Close what else uses the memory (GPU and CPU share it on a Jetson), or build a smaller model.",
    ),
    (
        r"Could not find any implementation for node (.+?)\.?\)?\.?$",
        "no kernel fits the node {0}",
        "Try another precision, or give the builder more memory.",
    ),
    (
        r"Static model does not take explicit shapes|Required optimization profile is invalid"
        r"|does not satisfy any optimization profile|exceed min ~ max range|Cannot find input tensor with name",
        "the shapes do not fit the model",
        "Export the model with a static shape.",
    ),
    (
        r"generated on an incompatible device|Engine deserialization failed|incompatible (?:engine|plan)",
        "the engine was built for another board or TensorRT version",
        "Build it again on this board.",
    ),
    (r"Cannot open engine file: ?(\S*)", "the engine file {0} is not there", "Build it first."),
    (
        r"Cannot create DLA engine",
        "there is no such DLA core",
        "Use the GPU, or a board with a DLA and a TensorRT that has it.",
    ),
    (r"Failed to parse onnx file|Parsing model failed", "the ONNX model cannot be read", "Export it again."),
    (
        r"Inference set up failed|Error occurred during inference|Unable to create execution context",
        "the engine was built but could not run",
        "The first error line says why.",
    ),
)


def explain_failure(stdout: str, stderr: str) -> Failure:
    """Why a run of trtexec that ended with an exit status other than 0 failed.

    Judge by the exit status first: 11.1 prints no FAILED line for a wrong command line.
    """
    text = f"{stderr}\n{stdout}"
    line = first_error(text)
    for pattern, cause, remedy in _CAUSES:
        match = re.search(pattern, text, re.MULTILINE)
        if match is not None:
            words = [group for group in match.groups() if group]
            node = re.search(r"[Ii]n node (?:\d+ with name: )?(\S+)", text) if "operator" in cause else None
            where = f" (node {node.group(1)})" if node else ""
            return Failure(cause.format(*words) + where, line, remedy)
    return Failure("trtexec failed", line or _last_line(text), "Run its command line on the board to see more.")


def first_error(text: str) -> str:
    """The first error line of a log, without time stamp and level; later ones are its consequences."""
    for line in text.splitlines():
        if re.search(r"\[[EF]\]|\] (?:INTERNAL_)?ERROR: |error while loading|ImportError: |incompatible device", line):
            stripped = re.sub(r"^(?:\[[\d/:-]+\] )?(?:\[(?:TRT|[EF]|TensorRT)\] ?)+(?:ERROR: )?", "", line).strip()
            return stripped[:300]
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("&&&&")]
    return lines[-1][:300] if lines else ""
