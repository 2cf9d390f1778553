"""Groups that the user freezes, by patterns of layer names.

A pattern names a layer, all layers inside a module, or with `*`, `?` and `[...]` whatever it matches: "stem*" and
"stem" both name "stem.0.conv". `*` matches dots too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from dtp_deploy.errors import UsageError
from dtp_deploy.graph.groups import ChannelGroup, Groups, Role

_KEPT, _NOT_NAMED = "kept by --keep", "not named by --only"


def freeze(groups: Groups, model: nn.Module, keep: Sequence[str] = (), only: Sequence[str] = ()) -> Groups:
    """The same groups; those that may not be pruned by these patterns are frozen, with the pattern as the reason.

    Args:
        groups: of this model.
        model: has the names.
        keep: layers that stay as they are: every group that one of them writes, passes on or reads is frozen.
        only: the only layers that may lose channels: a group stays prunable if all layers that write it are named.
            The layers that read it lose the inputs that go, whatever their names.

    Raises:
        UsageError: a pattern matches no layer.
    """
    check_patterns(model, keep, only)
    return replace(groups, all=tuple(_frozen(group, keep, only) for group in groups))


def check_patterns(model: nn.Module, keep: Sequence[str], only: Sequence[str]) -> None:
    """Raise unless every pattern matches a layer of the model.

    Raises:
        UsageError: as said; it names layers near the pattern.
    """
    names = [name for name, _ in model.named_modules() if name]
    for flag, patterns in (("--keep", keep), ("--only", only)):
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in names):
                raise UsageError(_no_match(flag, pattern, names, model))


def why_frozen(
    touched: Iterable[str], written_by: Iterable[str], keep: Sequence[str], only: Sequence[str]
) -> str | None:
    """The pattern that freezes something, in words; None if none does.

    Args:
        touched: the layers that it meets: one that is kept freezes it.
        written_by: those of them that must all be named by `only`, where that is given.
        keep: patterns.
        only: patterns.
    """
    names = list(touched)
    for pattern in keep:
        if any(_matches(name, pattern) for name in names):
            return f"{_KEPT} {pattern!r}"
    if not only:
        return None
    writers = sorted(written_by)
    others = [name for name in writers if not any(_matches(name, pattern) for pattern in only)]
    if not others:
        return None
    reason = f"{_NOT_NAMED} {', '.join(map(repr, only))}"
    if len(others) == len(writers):
        return reason
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"{reason}, which leaves out {', '.join(map(repr, others[:3]))}{more}"


def is_by_hand(reason: str | None) -> bool:
    """Whether a reason to be frozen is one of the user's patterns."""
    return reason is not None and reason.startswith((_KEPT, _NOT_NAMED))


def _frozen(group: ChannelGroup, keep: Sequence[str], only: Sequence[str]) -> ChannelGroup:
    if group.frozen_because is not None:
        return group
    touched, writers = _layers(group, ("writer", "through", "reader")), _layers(group, ("writer",))
    return replace(group, frozen_because=why_frozen(touched, writers, keep, only))


def _layers(group: ChannelGroup, roles: Sequence[Role]) -> set[str]:
    """The layer that writes the group first, and those that meet it in one of the roles."""
    return {group.name, *(piece.tensor.rpartition(".")[0] for piece in group.slices if piece.role in roles)}


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern names this layer, or a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def _no_match(flag: str, pattern: str, names: Sequence[str], model: nn.Module) -> str:
    near = difflib.get_close_matches(pattern.replace("*", "").strip("."), names, n=3, cutoff=0.5)
    known = f"Near it are {', '.join(map(repr, near))}" if near else f"Its first are {', '.join(map(repr, names[:3]))}"
    return f"{flag} {pattern!r} matches no layer of {type(model).__name__}. {known}. Give a name, or a pattern with *."
