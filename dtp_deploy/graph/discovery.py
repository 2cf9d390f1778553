"""Finding coupled channel groups with torch-pruning's dependency graph (Fang et al., DepGraph, CVPR 2023).

Only the structure is taken from it: which index of which layer depends on which channel of the root layer. Removal is
our own (`prune.surgery`), and nothing found here is believed before `prune.proof` has proven it.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError
from dtp_deploy.graph.frozen import freeze
from dtp_deploy.graph.groups import ChannelGroup, Groups, Role, TensorSlice
from dtp_deploy.modules import Inputs, as_inputs, shapes_of

_NORMS_ACROSS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def find_groups(
    model: nn.Module, inputs: Tensor | Inputs, *, keep: Sequence[str] = (), only: Sequence[str] = ()
) -> Groups:
    """Find the coupled channel groups of a model by tracing it once in eval mode, on a copy.

    Args:
        model: any module whose forward pass autograd can follow.
        inputs: an example of what the model is called with, batch first.
        keep: patterns of layers that stay as they are: "stem*", say.
        only: patterns of the only layers that may lose channels; see `freeze`.

    Returns:
        The groups, those frozen that no rule knows how to prune or that the patterns keep. The others are still to be
        proven (`prune.prove`).

    Raises:
        GraphError: the model could not be traced, or holds no coupled channels at all.
        UsageError: a pattern matches no layer.
    """
    inputs = as_inputs(inputs)
    try:
        traced = copy.deepcopy(model).eval()
    except RuntimeError as error:  # of weights that the old weight_norm made in a forward pass
        raise GraphError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}). Weights that are computed, as by "
            "weight_norm, stand in the way: take that off first, with torch.nn.utils.remove_weight_norm, say."
        ) from error
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    names = {id(module): name for name, module in traced.named_modules()}
    names |= {id(parameter): name for name, parameter in traced.named_parameters()}
    graph, raw_groups = _dependencies(traced, inputs)
    shared = _shared_parameters(traced)
    groups = [_without_computed(_GroupReader(graph, raw, names, shared).read(), traced) for raw in raw_groups]
    if not groups:
        raise GraphError(
            f"{type(model).__name__} has nothing to prune: no convolution or linear layer was found whose output "
            "channels another layer reads."
        )
    assert len({group.name for group in groups}) == len(groups), [group.name for group in groups]
    order = {name: place for place, name in enumerate(names.values())}
    ordered = Groups(tuple(sorted(groups, key=lambda group: order[group.name])), inputs)
    return freeze(ordered, model, keep, only)


def _without_computed(group: ChannelGroup, model: nn.Module) -> ChannelGroup:
    """The group, frozen where a tensor of it is computed from others: a slice of it would not be what is stored."""
    stored = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    computed = [piece.tensor for piece in group.slices if piece.tensor not in stored]
    if group.frozen_because is not None or not computed:
        return group
    return replace(
        group,
        frozen_because=f"'{computed[0]}' is computed, as by weight_norm; to prune it, take that off first: "
        "torch.nn.utils.parametrize.remove_parametrizations",
    )


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that several layers hold: slicing one would untie them, and they need not agree on what to keep."""
    holders = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {parameter for parameter, count in holders.items() if count > 1}


def _dependencies(model: nn.Module, inputs: Inputs) -> tuple[Any, list[Any]]:
    """torch-pruning's dependency graph and its groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dtp_deploy.graph.splits import DependencyGraph

        try:
            with torch.enable_grad():
                # Left to itself, torch-pruning may try two ways of calling the model, and report the second failure.
                graph = DependencyGraph().build_dependency(model, inputs, lambda m, x: m(*x), verbose=False)
            return graph, list(_raw_groups(graph, model))
        except Exception as error:
            raise GraphError(
                f"The channels of {type(model).__name__} could not be followed with inputs of shape "
                f"{shapes_of(inputs)} ({type(error).__name__}: {error}). Check --input; code that autograd cannot "
                "trace cannot be pruned."
            ) from error


def _raw_groups(graph: Any, model: nn.Module) -> Iterable[Any]:  # noqa: ANN401 - torch-pruning has no types
    """One raw group for all output channels that belong together, begun at the first layer that writes some of them.

    torch-pruning's own enumeration takes a layer as done as soon as some of its channels are in a group.
    """
    done: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        if not isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or module not in graph.module2node:
            continue
        handler = graph.get_pruner_of_module(module).prune_out_channels
        left = sorted(set(range(graph.get_out_channels(module))) - done[id(module)])
        if not left:
            continue
        raw = graph.get_pruning_group(module, handler, left)
        for item in raw.items:
            if graph.is_out_channel_pruning_fn(item.dep.handler):
                done[id(item.dep.target.module)] |= set(item.idxs)
        yield raw


@dataclass
class _Site:
    """Where a group meets one layer, on its input or output side: layer index -> channels of the root layer."""

    module: nn.Module | nn.Parameter
    name: str
    reads: bool
    dim: int
    roots_of_index: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))


class _GroupReader:
    """Turns one raw group into a `ChannelGroup`."""

    def __init__(self, graph: Any, raw: Any, names: dict[int, str], shared: set[int]) -> None:  # noqa: ANN401
        self.graph, self.raw, self.names, self.shared = graph, raw, names, shared
        self.root: nn.Module = raw[0].dep.target.module
        self.indices: list[int] = list(raw[0].idxs)  # of the root layer's channels that are in this group
        self.channel_of_index = {index: channel for channel, index in enumerate(self.indices)}
        self.width = len(self.indices)

    def read(self) -> ChannelGroup:
        sites, frozen = self._sites(self.raw)
        if frozen is None and self._is_folded(sites):
            for channel in range(self.width):
                single, _ = self._sites(self._single(channel))
                for key, site in single.items():
                    for index in site.roots_of_index:
                        sites[key].roots_of_index[index].add(channel)
        parent = list(range(self.width))
        for roots in itertools.chain(*map(_coupled, sites.values()), self._coupled_by_splits()):
            _unite(parent, roots)
        units = _units(parent)
        sizes = {len(members) for members in units}
        unit_of_root = {root: number for number, members in enumerate(units) for root in members}
        slices = tuple(piece for site in sites.values() for piece in _slices(site, unit_of_root))
        if frozen is None and (len(sizes) > 1 or any(_is_uneven(piece, len(units)) for piece in slices)):
            frozen = "its channels are coupled unevenly"
        group = ChannelGroup(
            name=self.names[id(self.root)],
            units=len(units),
            channels_per_unit=max(sizes),
            slices=slices,
            frozen_because=frozen,
        )
        if frozen is None and not group.readers:
            frozen = "no layer with weights reads its channels, as with an output of the model"
        if frozen is None and group.units < 2:
            frozen = "it has a single unit, and the last one cannot be removed"
        return ChannelGroup(group.name, group.units, group.channels_per_unit, slices, frozen)

    def _sites(self, raw: Any) -> tuple[dict[tuple[int, bool], _Site], str | None]:  # noqa: ANN401
        sites: dict[tuple[int, bool], _Site] = {}
        frozen: str | None = None
        for item in raw.items:
            node, handler = item.dep.target, item.dep.handler
            module = node.module
            if node.type == self.graph.ops.OPTYPE.OUTPUT:
                frozen = frozen or "its channels are an output of the model"
            if id(module) not in self.names:
                continue  # an operation without weights
            name = self.names[id(module)]
            if isinstance(module, _NORMS_ACROSS):
                frozen = frozen or f"{type(module).__name__} '{name}' normalises across its channels"
            elif not _is_known(module):
                frozen = frozen or f"{type(module).__name__} '{name}' is not understood"
            elif isinstance(module, nn.Module) and any(id(own) in self.shared for own in module.parameters(False)):
                frozen = frozen or f"{type(module).__name__} '{name}' shares its weight with another layer"
            reads = self.graph.is_in_channel_pruning_fn(handler) and not self.graph.is_out_channel_pruning_fn(handler)
            dim = node.pruning_dim if isinstance(module, nn.Parameter) else 0
            site = sites.setdefault((id(module), reads), _Site(module, name, reads, dim))
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                site.roots_of_index[index].add(self.channel_of_index[root])
        return sites, frozen

    def _coupled_by_splits(self) -> Iterable[set[int]]:
        """Channels at the same place in every part of a split into equal parts, which must stay equal."""
        for item in self.raw.items:
            split = self.graph.splits.get(item.dep.target)
            size = None if split is None else split.part_size
            if size is None:
                continue
            places: dict[int, set[int]] = defaultdict(set)
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                places[index % size].add(self.channel_of_index[root])
            yield from places.values()

    def _single(self, channel: int) -> Any:  # noqa: ANN401
        return self.graph.get_pruning_group(self.root, self.raw[0].dep.handler, [self.indices[channel]])

    def _is_folded(self, sites: dict[tuple[int, bool], _Site]) -> bool:
        """Whether removing one channel removes more than its own: a chunk that is added to its other half, say.

        The group of all channels keeps one root an index, so such couplings are lost in it; the groups of single
        channels show them. Three channels are enough to notice; then all are looked at.
        """
        for channel in {0, self.width // 2, self.width - 1}:
            single, _ = self._sites(self._single(channel))
            for key, site in single.items():
                expected = {index for index, roots in sites[key].roots_of_index.items() if channel in roots}
                if set(site.roots_of_index) != expected:
                    return True
        return False


def _is_known(module: nn.Module | nn.Parameter) -> bool:
    known = (*_CONVOLUTIONS, *_BATCH_NORMS, nn.Linear, nn.PReLU, nn.Embedding, nn.Parameter)
    return isinstance(module, known)


def _is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.groups > 1 and module.groups == module.out_channels


def _coupled(site: _Site) -> Iterable[set[int]]:
    """Sets of root channels that this layer forces to be removed together."""
    yield from (roots for roots in site.roots_of_index.values() if len(roots) > 1)
    module = site.module
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1 and not _is_depthwise(module):
        # Every group of the convolution must keep the same positions, on either side, to stay a grouped convolution.
        total = module.in_channels if site.reads else module.out_channels
        each = total // module.groups
        positions: dict[int, set[int]] = defaultdict(set)
        for index, roots in site.roots_of_index.items():
            positions[index % each] |= roots
        yield from positions.values()


def _unite(parent: list[int], members: set[int]) -> None:
    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first, *rest = sorted(members)
    for other in rest:
        low, high = sorted((find(first), find(other)))
        parent[high] = low


def _units(parent: list[int]) -> list[list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for root in range(len(parent)):
        node = root
        while parent[node] != node:
            node = parent[node]
        members[node].append(root)
    return [members[node] for node in sorted(members)]


def _slices(site: _Site, unit_of_root: dict[int, int]) -> Iterable[TensorSlice]:
    unit_of_index = {index: unit_of_root[min(roots)] for index, roots in site.roots_of_index.items()}
    for leaf, dim, role in _tensors(site):
        tensor = getattr(site.module, leaf) if leaf else site.module
        assert isinstance(tensor, Tensor), leaf
        size = tensor.shape[dim]
        units = [-1] * size
        for index, unit in unit_of_index.items():
            units[index % size] = unit  # an input index of a grouped convolution is a position within its group
        yield TensorSlice(f"{site.name}.{leaf}" if leaf else site.name, dim, tuple(units), role)


def _is_uneven(piece: TensorSlice, units: int) -> bool:
    counts = [0] * units
    for unit in piece.unit_of_index:
        if unit >= 0:
            counts[unit] += 1
    return len(set(counts)) > 1


def _tensors(site: _Site) -> Iterable[tuple[str, int, Role]]:
    """The tensors of a layer that hold its channels: name, dimension, role."""
    module = site.module
    if isinstance(module, nn.Parameter):
        yield "", site.dim, "through"
    elif isinstance(module, _CONVOLUTIONS):
        out_dim, in_dim = (1, 0) if isinstance(module, _TRANSPOSED) else (0, 1)
        if _is_depthwise(module):
            yield "weight", 0, "through"
        elif site.reads:
            yield "weight", in_dim, "reader"
            return
        else:
            yield "weight", out_dim, "writer"
        if module.bias is not None:
            yield "bias", 0, "through"
    elif isinstance(module, nn.Linear):
        if site.reads:
            yield "weight", 1, "reader"
            return
        yield "weight", 0, "writer"
        if module.bias is not None:
            yield "bias", 0, "through"
    elif isinstance(module, nn.Embedding):
        yield "weight", 1, "writer"
    elif isinstance(module, nn.PReLU):
        if module.num_parameters > 1:
            yield "weight", 0, "through"
    elif isinstance(module, _BATCH_NORMS):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, leaf) is not None:
                yield leaf, 0, "through"
