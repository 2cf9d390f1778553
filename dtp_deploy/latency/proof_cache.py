"""Proofs of removals, kept on disk for `calibrate`, which has nothing else to do where a latency is known already.

A proof depends on the model's graph and weights, the inputs, the seed and the versions of the libraries, and on nothing
else: with all of them in the key, what is read is what would be found. `compress` proves anew all the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dtp_deploy import __version__
from dtp_deploy.export.onnx import capture
from dtp_deploy.export.quiet import held_back
from dtp_deploy.graph import Groups
from dtp_deploy.latency.cache import MeasurementCache
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import prove


def prove_once(model: nn.Module, groups: Groups, folder: Path | None, progress: Progress = SILENT) -> Groups:
    """`prove`, or what it said about the same groups of the same model before.

    Args:
        model: the dense model.
        groups: as found.
        folder: of the cache, see `MeasurementCache`.
        progress: told as `prove` does.

    Raises:
        GraphError: no group is left that may be pruned.
    """
    graph = _graph(model, groups)
    if graph is None:
        return prove(model, groups, progress=progress)
    cache = MeasurementCache({"dtp_deploy": __version__, "torch": torch.__version__}, folder)
    key = {"graph": graph, "groups": [[group.name, group.units, group.frozen_because] for group in groups]}
    reasons = cache.read("proof", key)
    if reasons is None:
        proven = prove(model, groups, progress=progress)
        cache.write("proof", key, [group.frozen_because for group in proven])
        return proven
    known = zip(groups, reasons, strict=True)
    return replace(groups, all=tuple(replace(group, frozen_because=reason) for group, reason in known))


def _graph(model: nn.Module, groups: Groups) -> str | None:
    """A digest of everything that the model computes with; None where PyTorch cannot trace it."""
    try:
        with held_back():
            program = capture(model, groups.inputs)
    except Exception:  # of many classes; the proof does without, and the export will say what is wrong
        return None
    found = hashlib.sha256(str(program).encode())
    tensors = {**program.state_dict, **program.constants}
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
