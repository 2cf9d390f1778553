"""Proof of a removal: masking some units at their readers and removing them must give the same outputs.

All groups are tried at once. Where the outputs agree, every group that had a say in them is proven: one whose units
reach the outputs through each of its readers could not have differed unseen. Where they do not, halves are tried, down
to single groups; groups that were not seen to have a say are tried alone. What fails is frozen, with the reason, so
that no removal that was not seen to be exact is ever made. Residual blocks are tried one by one, where removing them
was asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from dtp_deploy.errors import GraphError
from dtp_deploy.graph import ChannelGroup, Groups, ResidualBlock, tensor_by_name
from dtp_deploy.graph.frozen import is_by_hand
from dtp_deploy.graph.groups import TensorSlice, index_tensor
from dtp_deploy.modules import Inputs, require_finite
from dtp_deploy.nested import flatten_outputs
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune.plan import BlockChoice, fingerprint_of, make_plan
from dtp_deploy.prune.surgery import blocks_silenced, remove_channels

_SHARE = 0.3
"""Share of a group's units that a trial removes."""
_DRAWS = 8
"""How many inputs and choices of units are tried until one has an effect; behind a ReLU a few units may all be dead."""
_FEW = 2
"""Up to so many groups are tried one by one."""
_SAY, _TIGHT = 1e-4, 1e-10
"""Least effect on the outputs by which a group is proven among others, and largest difference that is allowed then,
both relative to the largest output: an error is seen even if it is a millionth of the effect. Rounding is far below."""
_MEMORY_BYTES = 2 * 10**9
"""Largest memory that the gradients of a trial may take; single trials take none."""
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest relative difference of an agreeing pair of outputs, by the precision that the trial could run in."""


@contextmanager
def masked(model: nn.Module, groups: Iterable[ChannelGroup], kept_units: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Within the context, the readers of `model` see zeros in place of all units that are not kept."""
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for group in groups:
                if group.name not in kept_units:
                    continue
                for piece in group.readers:
                    tensor = tensor_by_name(model, piece.tensor)
                    saved.setdefault(piece.tensor, tensor.detach().clone())
                    gone = _gone(group, piece, kept_units[group.name])
                    tensor.index_fill_(piece.dim, gone.to(tensor.device), 0.0)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                tensor_by_name(model, name).copy_(value)


def _gone(group: ChannelGroup, piece: TensorSlice, kept: Sequence[int]) -> Tensor:
    """Where along its dimension a tensor's slice belongs to units that are not kept."""
    units = torch.tensor(sorted(set(range(group.units)) - set(kept)), dtype=torch.int64)
    return torch.isin(index_tensor(piece), units).nonzero().flatten()


def prove(model: nn.Module, groups: Groups, *, seed: int = 0, progress: Progress = SILENT) -> Groups:
    """Try the removal of every group that is not frozen, and freeze what masking and removing disagree on.

    The trial runs on a copy in eval mode whose parameters and BatchNorm statistics are perturbed, so that no zero or
    dead channel can make two different functions look alike, in float64 where the model allows it.

    Args:
        model: the dense model; not changed.
        groups: as found by `find_groups`, and the residual blocks that they hold.
        seed: of the perturbation and of the units tried.
        progress: told about every frozen group.

    Returns:
        The same groups and blocks, failures frozen.

    Raises:
        GraphError: no group is left that may be pruned.
        InputError: weights hold NaN or infinity, which nothing can be compared with.
    """
    require_finite(model)
    trial = _Trial(model, groups.inputs, seed)
    with progress.task("proof", total=len(groups)) as advance:
        for _ in groups.frozen:
            advance()
        failures = trial.failures(groups.prunable, advance)
    proven = [replace(group, frozen_because=failures.get(group.name, group.frozen_because)) for group in groups]
    together = replace(groups, all=tuple(proven))
    seen = frozenset(group.name for group in together.prunable) in trial.agreed
    if together.prunable and not seen and trial.failure(together.prunable) is not None:
        proven = _one_after_the_other(trial, proven)
    result = replace(groups, all=tuple(proven))
    for group in result.frozen:
        progress.note(f"{group.name} keeps its {group.width} channels: {group.frozen_because}.")
    if not result.prunable:
        advice = "Give a model in which a layer with weights reads another layer's channels."
        if any(is_by_hand(group.frozen_because) for group in result):
            advice = "Leave --keep and --only out, or give patterns that leave some layers to prune."
        reasons = "; ".join(f"{group.name}: {group.frozen_because}" for group in result.frozen[:5])
        raise GraphError(
            f"{type(model).__name__} has nothing to prune: all {len(result)} channel groups are frozen ({reasons}). "
            f"{advice}"
        )
    if not result.blocks:
        return result
    with progress.task("proof of blocks", total=len(result.blocks)) as advance:
        return replace(result, blocks=_proven_blocks(trial, result, advance))


def _proven_blocks(trial: _Trial, groups: Groups, advance: Callable[[], None]) -> tuple[ResidualBlock, ...]:
    """The residual blocks, each tried on its own and then with those before it and all groups around them."""
    proven: list[ResidualBlock] = []
    for block in groups.blocks:
        reason = block.kept_because
        if reason is None and not any(block.has_inside(group) for group in groups.prunable):
            reason = "none of its channels may be pruned, so nothing says what it is worth"
        if reason is None:
            reason = trial.failure([], [block])
        if reason is None:
            removed = [*(other for other in proven if other.kept_because is None), block]
            around = [group for group in groups.prunable if not any(one.has_inside(group) for one in removed)]
            if (why := trial.failure(around, removed)) is not None:
                reason = f"together with other removals {why}"
        proven.append(replace(block, kept_because=reason))
        advance()
    return tuple(proven)


def _one_after_the_other(trial: _Trial, proven: list[ChannelGroup]) -> list[ChannelGroup]:
    """Groups that hold alone but not together: add them one by one, and freeze those that break the sum."""
    kept: list[ChannelGroup] = []
    for group in proven:
        candidates = [other for other in (*kept, group) if other.frozen_because is None]
        reason = group.frozen_because
        if reason is None and (why := trial.failure(candidates)) is not None:
            reason = f"together with other groups {why}"
        kept.append(replace(group, frozen_because=reason))
    return kept


class _Trial:
    """A perturbed copy of the model, on which removals are tried."""

    def __init__(self, model: nn.Module, inputs: Inputs, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.generator = generator
        self.agreed: set[frozenset[str]] = set()  # groups, by name, that were removed together like they were masked
        self.model = perturbed(model, generator)
        self.fingerprint = fingerprint_of(model)
        self.given = inputs
        self.dtype = torch.float64
        try:
            self.model.to(self.dtype)
            self._draw_inputs()
        except Exception:  # the model has float32 written into its code
            self.dtype = torch.float32
            self.model.to(self.dtype)
            self._draw_inputs()

    def failures(self, tried: Sequence[ChannelGroup], advance: Callable[[], None]) -> dict[str, str | None]:
        """Why each group cannot be pruned, or None, by its name."""
        proven = self._proven_at_once(tried) if len(tried) > _FEW else frozenset()
        if proven is None:
            half = len(tried) // 2
            return self.failures(tried[:half], advance) | self.failures(tried[half:], advance)
        found: dict[str, str | None] = {}
        for group in tried:
            found[group.name] = None if group.name in proven else self.failure([group])
            advance()
        return found

    def _proven_at_once(self, tried: Sequence[ChannelGroup]) -> frozenset[str] | None:
        """The groups that one removal of units of all of them proves, by name; None if that does not give the same.

        In float64 only: in float32 what one group does among many may be too small to be told from rounding.
        """
        if self.dtype != torch.float64:
            return frozenset()
        kept = {group.name: self._some_units(group) for group in tried}
        try:
            wanted, heard = self._heard(tried, kept)
        except Exception:  # no gradients: the model works in place, or cuts them off
            return frozenset()
        try:
            found = outputs_of(remove_channels(self.model, make_plan(tried, kept, self.fingerprint)), self.inputs)
        except Exception:  # the halves will say which group it is, and why
            return None
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
            return None
        if not relative_difference(wanted, found) <= _TIGHT:
            return None
        self.agreed.add(frozenset(kept))
        return heard

    def _heard(
        self, tried: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]
    ) -> tuple[list[Tensor], frozenset[str]]:
        """The masked outputs, and the groups whose masked units would change them through every one of their readers.

        That is the slope of a random sum of the outputs, each divided by its largest value, by the masks. It is taken
        on a copy, as a model that keeps what it computes would keep its history too.
        """
        model = copy.deepcopy(self.model)
        pieces = [(group, piece) for group in tried for piece in group.readers]
        readers = {piece.tensor: tensor_by_name(model, piece.tensor).requires_grad_() for _, piece in pieces}
        whole = {name: tensor.detach().clone() for name, tensor in readers.items()}
        _limit_memory(model)
        with masked(model, tried, kept), torch.enable_grad():
            wanted = flatten_outputs(model(*self.inputs))
            sums = [self._random_sum(output) for output in wanted if output.requires_grad and output.numel() > 0]
            found = torch.autograd.grad(sums, list(readers.values()), allow_unused=True)
        slopes = dict(zip(readers, found, strict=True))
        silent = set()
        for group, piece in pieces:
            slope = slopes[piece.tensor]
            gone = _gone(group, piece, kept[group.name])
            if slope is None or not _sum_of_products(slope, whole[piece.tensor], piece.dim, gone) > _SAY:
                silent.add(group.name)
        return [output.detach() for output in wanted], frozenset(group.name for group in tried) - silent

    def _random_sum(self, output: Tensor) -> Tensor:
        weights = torch.randn(output.shape, generator=self.generator).to(output) / output.numel() ** 0.5
        total: Tensor = (output * weights).sum()
        return total / output.detach().abs().max().clamp_min(1e-30)

    def failure(self, tried: Sequence[ChannelGroup], blocks: Sequence[ResidualBlock] = ()) -> str | None:
        """Why the tried groups cannot be pruned and the blocks removed, or None if masking and removing agree."""
        what = "its layers" if blocks else "its channels"
        ends = [block.modules[-1] for block in blocks]
        for draw in range(_DRAWS):
            if draw > 0:
                self._draw_inputs()
            kept = {group.name: self._some_units(group) for group in tried}
            with masked(self.model, tried, kept), blocks_silenced(self.model, ends):
                wanted = outputs_of(self.model, self.inputs)
            seen = relative_difference(self.dense, wanted) > TOLERANCES[self.dtype]
            if seen:
                break
        choices = [BlockChoice(block.name, block.modules, removed=True, reason="") for block in blocks]
        plan = make_plan(tried, kept, self.fingerprint, choices)
        try:
            found = outputs_of(remove_channels(self.model, plan), self.inputs)
        except Exception as error:
            without = what if blocks else f"some of {what}"
            return f"the model does not run without {without} ({type(error).__name__}: {_line(error)})"
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
            return f"{what} are an output of the model"
        if not seen:
            return f"no effect of {what} on the outputs was seen, so nothing can be proven"
        difference = relative_difference(wanted, found)
        if not difference <= TOLERANCES[self.dtype]:
            return f"masking and removing {what} gave different outputs (by {difference:.2g} relative)"
        return None

    def _draw_inputs(self) -> None:
        self.inputs = tuple(self._drawn(tensor) for tensor in self.given)
        self.dense = outputs_of(self.model, self.inputs)

    def _drawn(self, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like  # indices and flags mean something: they stay as given
        return torch.randn(like.shape, generator=self.generator).to(like.device, self.dtype)

    def _some_units(self, group: ChannelGroup) -> list[int]:
        removed = min(max(1, round(_SHARE * group.units)), group.units - 1)
        return sorted(torch.randperm(group.units, generator=self.generator)[removed:].tolist())


def _sum_of_products(slope: Tensor, weight: Tensor, dim: int, places: Tensor) -> float:
    """Of the slices at some places of a dimension, absolute."""
    places = places.to(weight.device)
    return float((slope.index_select(dim, places) * weight.index_select(dim, places)).sum().abs())


def _limit_memory(model: nn.Module) -> None:
    """Let a model raise MemoryError when its layers' outputs, which gradients need, get too large together."""
    taken = 0

    def count(module: nn.Module, args: object, output: object) -> None:
        nonlocal taken
        taken += output.numel() * output.element_size() if isinstance(output, Tensor) else 0
        if taken > _MEMORY_BYTES:
            raise MemoryError(f"the outputs of the layers take more than {_MEMORY_BYTES} bytes")

    for module in model.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(count)


def perturbed(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in eval mode, every parameter moved by noise of a tenth of its spread, BatchNorm statistics shaken."""
    copied = copy.deepcopy(model).eval()

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                parameter.add_(noise(parameter), alpha=0.1 * spread if spread > 0 else 0.1)
        for module in copied.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean += noise(module.running_mean) * 0.2 * module.running_var.sqrt()
                module.running_var *= (0.2 * noise(module.running_var)).exp()
    return copied


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that the model returns, in the order of its containers (dicts by their own order)."""
    with torch.no_grad():
        return flatten_outputs(model(*inputs))


def relative_difference(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest difference of any output, relative to the largest value of that output; NaN or infinity counts as inf."""
    worst = 0.0
    for a, b in zip(reference, other, strict=True):
        if a.numel() == 0:
            continue
        difference = float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
