"""The pruning plan: everything that turns the dense model into the pruned one, and nothing that needs code to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, cast, get_args

from torch import nn

from dtp_deploy.budget import Granularity
from dtp_deploy.errors import InputError
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.graph.groups import is_inside

SCHEMA_VERSION = 2
"""Of what is read. A plan that removes no block is written as version 1, which earlier programs read too."""


@dataclass(frozen=True)
class GroupChoice:
    """What was kept of one channel group.

    Attributes:
        name: the layer that writes the channels first.
        width_before: channels in the dense model.
        width_after: channels kept; 0 where the block around them was removed.
        kept_units: indices of the units kept, ascending.
        frozen_because: why nothing was removed, if the group was frozen.
    """

    name: str
    width_before: int
    width_after: int
    kept_units: tuple[int, ...]
    frozen_because: str | None = None


@dataclass(frozen=True)
class LayerChoice:
    """How many weights of one layer are left. Which ones, the zeros in the delivered weights say.

    Attributes:
        name: the layer.
        weights: values of its weight.
        kept: those that are not zero.
        left_because: why none was set to zero, if the layer was left as it is.
    """

    name: str
    weights: int
    kept: int
    left_because: str | None = None

    @property
    def tensor(self) -> str:
        """Name of the layer's weight in the model's state."""
        return f"{self.name}.weight" if self.name else "weight"


@dataclass(frozen=True)
class BlockChoice:
    """Whether one residual block was removed as a whole.

    Attributes:
        name: the module around it.
        modules: those that it consists of; the output of the last one is what is added to the block's input.
        removed: whether they give nothing but zeros from now on.
        reason: why it was removed, or why not.
    """

    name: str
    modules: tuple[str, ...]
    removed: bool
    reason: str


@dataclass(frozen=True)
class PruningPlan:
    """Kept units of every group, and the kept indices of every tensor dimension that follow from them.

    Attributes:
        groups: one choice a group, in the order of the layers.
        tensors: tensor name -> dimension -> kept indices, ascending. Removal needs nothing but this.
        fingerprint: of the dense model's tensor names and shapes, see `fingerprint_of`.
        chain: where several plans were composed, the fingerprint of each model between the dense one and the last.
        preprocessing: what makes the model's inputs of pictures; plain values, {} if nothing is known.
        weights_sha256: of the file of weights delivered with the plan; "" if none was.
        granularity: what was pruned last.
        layers: one choice a layer, where single weights were set to zero; nothing of their tensors is removed.
        blocks: one choice a residual block, where removing them was allowed; `tensors` names nothing in a removed one.
    """

    groups: tuple[GroupChoice, ...]
    tensors: Mapping[str, Mapping[int, tuple[int, ...]]]
    fingerprint: str
    chain: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    granularity: Granularity = "channels"
    layers: tuple[LayerChoice, ...] = ()
    blocks: tuple[BlockChoice, ...] = ()

    @property
    def removed_blocks(self) -> tuple[BlockChoice, ...]:
        """The residual blocks that are removed."""
        return tuple(block for block in self.blocks if block.removed)

    @property
    def removed_modules(self) -> tuple[str, ...]:
        """The modules that are removed, none inside of another."""
        return outermost(module for block in self.removed_blocks for module in block.modules)

    @property
    def structure(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What the cost of the network depends on: the widths, and the modules that are removed."""
        return tuple(self.widths().values()), self.removed_modules

    def widths(self) -> dict[str, int]:
        """Channels kept, by group."""
        return {group.name: group.width_after for group in self.groups}

    @property
    def zeros(self) -> int:
        """How many weights of the masked layers are zero."""
        return sum(layer.weights - layer.kept for layer in self.layers if layer.left_because is None)

    def check(self, model: nn.Module) -> None:
        """Raise unless the plan was made for a model with exactly these tensors.

        Raises:
            InputError: the model's tensor names or shapes differ from those that the plan was made for.
        """
        if fingerprint_of(model) != self.fingerprint:
            raise InputError(
                f"The pruning plan was made for another model: the tensor names or shapes of {type(model).__name__} "
                "differ. Give the factory, unchanged, that the dense model came from."
            )

    def damage(self, model: nn.Module) -> str | None:
        """The first thing that the plan keeps and a model of these tensors lacks, in words; None if there is none."""
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        for name, dims in self.tensors.items():
            for dim, kept in dims.items():
                size = shapes[name][dim] if name in shapes and 0 <= dim < len(shapes[name]) else 0
                if not kept or kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
                    return (
                        f"dimension {dim} of '{name}' has {size} indices, and those kept are not some of them in "
                        "ascending order"
                    )
        modules = dict(model.named_modules())
        absent = [layer.tensor for layer in self.layers if layer.tensor not in shapes]
        absent += [path for path in self.removed_modules if path not in modules]
        return f"there is no '{absent[0]}'" if absent else None

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan."""
        return json.dumps(
            {
                "schema_version": SCHEMA_VERSION if self.removed_blocks else 1,
                "fingerprint": self.fingerprint,
                "chain": list(self.chain),
                "preprocessing": dict(self.preprocessing),
                "weights_sha256": self.weights_sha256,
                "granularity": self.granularity,
                "groups": [
                    {
                        "name": group.name,
                        "width_before": group.width_before,
                        "width_after": group.width_after,
                        "kept_units": list(group.kept_units),
                        "frozen_because": group.frozen_because,
                    }
                    for group in self.groups
                ],
                "layers": [asdict(layer) for layer in self.layers],
                "tensors": {
                    name: {str(dim): list(kept) for dim, kept in dims.items()} for name, dims in self.tensors.items()
                },
            }
            | ({"blocks": [asdict(block) for block in self.blocks]} if self.blocks else {})
        )

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read a plan.

        Raises:
            InputError: the text is no pruning plan, or one of a newer schema.
        """
        try:
            raw = json.loads(text)
            version = raw["schema_version"]
            if type(version) is not int:
                raise ValueError(f"schema_version is {version!r}, and no whole number")
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"The pruning plan has schema version {version}; this dtp-deploy reads up to {SCHEMA_VERSION}. "
                    "Install a newer dtp-deploy."
                )
            return PruningPlan(
                groups=tuple(
                    GroupChoice(
                        str(group["name"]),
                        int(group["width_before"]),
                        int(group["width_after"]),
                        tuple(int(unit) for unit in group["kept_units"]),
                        group["frozen_because"],
                    )
                    for group in raw["groups"]
                ),
                tensors={
                    str(name): {int(dim): tuple(int(index) for index in kept) for dim, kept in dims.items()}
                    for name, dims in raw["tensors"].items()
                },
                fingerprint=str(raw["fingerprint"]),
                chain=tuple(str(fingerprint) for fingerprint in raw.get("chain", ())),
                preprocessing=dict(raw.get("preprocessing", {})),
                weights_sha256=str(raw.get("weights_sha256", "")),
                granularity=_granularity(raw.get("granularity", "channels")),
                layers=tuple(
                    LayerChoice(str(layer["name"]), int(layer["weights"]), int(layer["kept"]), layer["left_because"])
                    for layer in raw.get("layers", ())
                ),
                blocks=tuple(
                    BlockChoice(
                        str(block["name"]),
                        tuple(str(module) for module in block["modules"]),
                        bool(block["removed"]),
                        str(block["reason"]),
                    )
                    for block in raw.get("blocks", ())
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"This is not a pruning plan ({type(error).__name__}: {error}). Give the pruning_plan.json that "
                "`dtp-deploy compress` wrote."
            ) from error


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan that does at once what `first` does to the dense model, and then `second` to what is left of it.

    Zeros that `first` left among the weights stay: `second` names single weights too.

    A group of the pruned model that the dense one divides into units otherwise has no `kept_units` any more: its
    widths and the kept indices of its tensors are right.

    Args:
        first: made for the dense model.
        second: made for the model that `first` gives.
    """
    tensors = {name: dict(dims) for name, dims in first.tensors.items()}
    for name, dims in second.tensors.items():
        before = tensors.setdefault(name, {})
        for dim, kept in dims.items():
            before[dim] = tuple(before[dim][index] for index in kept) if dim in before else kept
    blocks = tuple(block for block in first.blocks if block.removed) + second.blocks
    removed = [module for block in blocks if block.removed for module in block.modules]
    tensors = {name: dims for name, dims in tensors.items() if not is_inside(name, removed)}
    later = {group.name: group for group in second.groups}
    groups = [_composed(group, later.pop(group.name, None)) for group in first.groups]
    return PruningPlan(
        groups=(*groups, *later.values()),
        tensors=tensors,
        fingerprint=first.fingerprint,
        chain=(*first.chain, second.fingerprint, *second.chain),
        preprocessing=second.preprocessing or first.preprocessing,
        granularity=second.granularity,
        layers=second.layers,
        blocks=blocks,
    )


def outermost(modules: Iterable[str]) -> tuple[str, ...]:
    """Each once, without those that are inside of another.

    >>> outermost(["block.body.conv", "block.body", "stem", "stem"])
    ('block.body', 'stem')
    """
    names = tuple(dict.fromkeys(modules))
    return tuple(name for name in names if not is_inside(name, [other for other in names if other != name]))


def _granularity(value: object) -> Granularity:
    for known in get_args(Granularity):
        if value == known:
            return cast(Granularity, known)
    raise ValueError(f"granularity is {value!r}, and none of {', '.join(get_args(Granularity))}")


def _composed(first: GroupChoice, second: GroupChoice | None) -> GroupChoice:
    if second is None:
        return first
    same_units = first.width_after == second.width_before and max(second.kept_units, default=-1) < len(first.kept_units)
    kept = tuple(first.kept_units[unit] for unit in second.kept_units) if same_units else ()
    return replace(second, width_before=first.width_before, kept_units=kept)


def make_plan(
    groups: Iterable[ChannelGroup],
    kept_units: Mapping[str, Sequence[int]],
    fingerprint: str,
    blocks: Iterable[BlockChoice] = (),
) -> PruningPlan:
    """The plan that keeps the given units of the named groups, and everything of the others.

    Args:
        groups: the groups of the dense model.
        kept_units: group name -> units kept; at least one of each group. Frozen groups may not be named.
        fingerprint: `fingerprint_of` the dense model.
        blocks: of the dense model. Groups whose layers all lie in removed ones lose all units, whatever is given.
    """
    blocks = tuple(blocks)
    removed_modules = [module for block in blocks if block.removed for module in block.modules]
    tensors: dict[str, dict[int, set[int]]] = {}
    choices = []
    for group in groups:
        if group.lies_in(removed_modules):
            choices.append(GroupChoice(group.name, group.width, 0, (), group.frozen_because))
            continue
        kept = sorted(set(kept_units.get(group.name, range(group.units))))
        assert kept, group.name
        assert kept[0] >= 0, group.name
        assert kept[-1] < group.units, group.name
        assert group.frozen_because is None or group.name not in kept_units, group.name
        choices.append(
            GroupChoice(group.name, group.width, len(kept) * group.channels_per_unit, tuple(kept), group.frozen_because)
        )
        if len(kept) == group.units:
            continue
        removed = set(range(group.units)) - set(kept)
        for piece in group.slices:
            if is_inside(piece.tensor, removed_modules):
                continue
            everything = set(range(len(piece.unit_of_index)))
            gone = {index for index, unit in enumerate(piece.unit_of_index) if unit in removed}
            dims = tensors.setdefault(piece.tensor, {})
            dims[piece.dim] = dims.get(piece.dim, everything) - gone
    return PruningPlan(
        groups=tuple(choices),
        tensors={name: {dim: tuple(sorted(kept)) for dim, kept in dims.items()} for name, dims in tensors.items()},
        fingerprint=fingerprint,
        blocks=blocks,
    )


def fingerprint_of(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of all parameters and buffers.

    >>> fingerprint_of(nn.Linear(2, 3)) == fingerprint_of(nn.Linear(2, 3))
    True
    """
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
