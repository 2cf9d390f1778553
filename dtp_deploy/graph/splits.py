"""torch-pruning's dependency graph, told by autograd which channels go where in a split.

torch-pruning 1.6.1 guesses the sizes of the parts from the layers after them, one part a reader. Where a part is read
twice, or goes straight into a concatenation (the C2f block of YOLOv8 does both), it guesses wrong. Autograd knows: each
edge of its graph carries the number of the output that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch_pruning
from torch_pruning.dependency.index_mapping import _SplitIndexMapping

_CHANNELS = 1
_ITEMS_A_NODE = 20
"""More stops a node than any group makes that ends."""


@dataclass(frozen=True)
class Split:
    """A split along the channels.

    Attributes:
        parts: first channel and the one after the last of every part.
        edges: for every edge that leaves the split the number of its part, torch-pruning's dependency along it, and the
            one back.
    """

    parts: list[tuple[int, int]]
    edges: list[tuple[int, Any, Any]]

    @property
    def part_size(self) -> int | None:
        """Channels in each part if all are equal, else None.

        A split into equal parts divides whatever it is given by their number, so that they must stay equal.
        """
        sizes = {end - start for start, end in self.parts}
        return sizes.pop() if len(sizes) == 1 else None


class _Bounded(torch_pruning.dependency.group.Group):  # type: ignore[misc]
    """A group that takes so many stops and no more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_dep(self, dep: Any, idxs: Any) -> None:  # noqa: ANN401
        if len(self) >= self._most:
            raise RuntimeError("their way goes in circles, as in a GRU")
        super().add_dep(dep, idxs)


class DependencyGraph(torch_pruning.DependencyGraph):  # type: ignore[misc]
    """The dependency graph of a model in which splits along the channels are set right.

    A split that a module reads which is called more than once is left as torch-pruning guesses it; the proof judges it.

    Attributes:
        splits: by node.
    """

    def __init__(self) -> None:
        super().__init__()
        self.splits: dict[Any, Split] = {}

    def build_dependency(self, *args: Any, **kwargs: Any) -> DependencyGraph:  # noqa: ANN401
        """As torch-pruning's."""
        super().build_dependency(*args, **kwargs)
        for node, split in self.splits.items():
            for number, there, back in split.edges:
                there.index_mapping[0] = _SplitIndexMapping(offset=split.parts[number], reverse=False)
                back.index_mapping[0] = _SplitIndexMapping(offset=split.parts[number], reverse=True)
            node.module.offsets = None  # or torch-pruning would put its guess back
        return self

    def get_pruning_group(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """As torch-pruning's, which goes round for ever where channels come back to where they were in another order.

        Raises:
            RuntimeError: the channels do so.
        """
        module, most = torch_pruning.dependency.graph, _ITEMS_A_NODE * max(len(self.module2node), 100)
        usual = module.Group
        module.Group = lambda: _Bounded(most)
        try:
            return super().get_pruning_group(*args, **kwargs)
        finally:
            module.Group = usual

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        super()._build_dependency(module2node)
        for node in module2node.values():
            if node.type == self.ops.OPTYPE.SPLIT and (split := _read_split(node)) is not None:
                self.splits[node] = split
        for node, split in self.splits.items():
            # What torch-pruning looks for in autograd's node, by the names of older versions of PyTorch, an edge each;
            # it derives the sizes of concatenations from it.
            node.grad_fn = SimpleNamespace(
                _saved_dim=_CHANNELS,
                _saved_self_sizes=node.grad_fn._saved_self_sym_sizes,
                _saved_split_sizes=[split.parts[number][1] - split.parts[number][0] for number, _, _ in split.edges],
            )


def _read_split(node: Any) -> Split | None:  # noqa: ANN401 - torch-pruning has no types
    parts, edges = _parts(node.grad_fn), _edges(node)
    return None if parts is None or edges is None else Split(parts, edges)


def _parts(function: Any) -> list[tuple[int, int]] | None:  # noqa: ANN401
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
    edges = {}
    for reader in node.outputs:
        numbers = [number for function, number in reader.grad_fn.next_functions if function is node.grad_fn]
        there = [dependency for dependency in node.dependencies if dependency.target is reader]
        back = [dependency for dependency in reader.dependencies if dependency.target is node]
        if not len(numbers) == len(there) == len(back):
            return None
        edges[reader] = iter(list(zip(numbers, there, back, strict=True)))
    return [next(edges[reader]) for reader in node.outputs]
