"""Which channels go where in a split, told by autograd.

torch-pruning 1.6.1 guesses the sizes of the parts from the layers after them, one part a reader. Where a part is read
twice, or goes straight into a concatenation (the C2f block of YOLOv8 does both), it guesses wrong. Autograd knows: each
edge of its graph carries the number of the output that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency.index_mapping import _SplitIndexMapping

_CHANNELS = 1


def dependency_graph(model: nn.Module, inputs: Tensor) -> Any:  # noqa: ANN401 - torch-pruning has no types
    """torch-pruning's dependency graph of a model, with the channels of every split along the channels set right.

    A split that is read by a module called more than once is left as torch-pruning guesses it; the proof judges it.
    """
    graph = _Graph().build_dependency(model, example_inputs=inputs, verbose=False)
    for node in graph.module2node.values():
        if node.type != graph.ops.OPTYPE.SPLIT or (parts := _parts(node.grad_fn)) is None:
            continue
        for number, there, back in _edges(node) or ():
            there.index_mapping[0] = _SplitIndexMapping(offset=parts[number], reverse=False)
            back.index_mapping[0] = _SplitIndexMapping(offset=parts[number], reverse=True)
            node.module.offsets = None  # or torch-pruning would put its guess back
    return graph


class _Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """Tells torch-pruning the size of every edge of a split before it guesses, since other sizes follow from it."""

    def _build_dependency(self, module2node: Any) -> None:  # noqa: ANN401
        super()._build_dependency(module2node)
        for node in module2node.values():
            if node.type == self.ops.OPTYPE.SPLIT and (parts := _parts(node.grad_fn)) and (edges := _edges(node)):
                function = node.grad_fn
                node.grad_fn = SimpleNamespace(
                    _saved_dim=_CHANNELS,
                    _saved_self_sizes=function._saved_self_sym_sizes,
                    _saved_split_sizes=[parts[number][1] - parts[number][0] for number, _, _ in edges],
                )


def part_size(node: Any) -> int | None:  # noqa: ANN401
    """Channels in each part of a split into equal parts along the channels; None for any other split.

    Such a split divides whatever it is given by the number of parts, so that its parts must stay equal.
    """
    parts = _parts(node.grad_fn)
    sizes = {end - start for start, end in parts} if parts is not None else set()
    return sizes.pop() if len(sizes) == 1 else None


def _parts(function: Any) -> list[tuple[int, int]] | None:  # noqa: ANN401
    """First channel and the one after the last of every part."""
    shape: Sequence[int] = getattr(function, "_saved_self_sym_sizes", ())
    channels = (_CHANNELS, 2**64 + _CHANNELS - len(shape))  # a negative dimension is saved as if it were unsigned
    if len(shape) <= _CHANNELS or getattr(function, "_saved_dim", None) not in channels:
        return None
    total = int(shape[_CHANNELS])
    if hasattr(function, "_saved_split_size"):
        size = int(function._saved_split_size)
        return [(start, min(start + size, total)) for start in range(0, total, size)]
    parts, start = [], 0
    for size in function._saved_split_sizes:
        parts.append((start, start + int(size)))
        start += int(size)
    return parts


def _edges(node: Any) -> list[tuple[int, Any, Any]] | None:  # noqa: ANN401
    """Number of the part, dependency from the split and dependency back to it, for every edge; None if they differ."""
    edges = {}
    for reader in node.outputs:
        numbers = [number for function, number in reader.grad_fn.next_functions if function is node.grad_fn]
        there = [dependency for dependency in node.dependencies if dependency.target is reader]
        back = [dependency for dependency in reader.dependencies if dependency.target is node]
        if not len(numbers) == len(there) == len(back):
            return None
        edges[id(reader)] = list(zip(numbers, there, back, strict=True))
    taken = {key: iter(triples) for key, triples in edges.items()}
    return [next(taken[id(reader)]) for reader in node.outputs]
