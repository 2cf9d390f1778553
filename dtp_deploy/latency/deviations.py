"""Why the widths in a plan are not those that the masks learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtp_deploy.graph import Groups
from dtp_deploy.prune import PruningPlan


def explain_deviations(
    learned: Mapping[str, int],
    plan: PruningPlan,
    preferred: Sequence[Sequence[int]] | None,
    groups: Groups,
    *,
    predicted: bool = False,
) -> list[str]:
    """One line for each kind of deviation: how many groups, and the one that was changed most.

    Args:
        learned: channels that the masks keep of every prunable group.
        plan: what was chosen. Of groups that went with a residual block nothing is said.
        preferred: the numbers of units that the target likes; None where it was not asked.
        groups: of the dense model.
        predicted: whether the latency was predicted, not measured.
    """
    if preferred is None:
        return []
    chosen = plan.widths()
    left = [(group, units) for group, units in zip(groups.prunable, preferred, strict=True) if chosen[group.name]]
    fixed = [group for group, units in left if len(units) == 1]
    moved = [group for group, _ in left if chosen[group.name] != learned[group.name] and group not in fixed]
    notes = []
    known = "predicted" if predicted else "measured"
    if moved:
        most = max(moved, key=lambda group: abs(chosen[group.name] - learned[group.name]) / group.width)
        notes.append(
            f"{len(moved)} of {len(groups.prunable)} groups have another width than the masks learned, to suit the "
            f"target and the {known} latency; the largest change is {most.name}: {learned[most.name]} to "
            f"{chosen[most.name]} of {most.width} channels."
        )
    if fixed:
        most = max(fixed, key=lambda group: group.width - learned[group.name])
        notes.append(
            f"{len(fixed)} of {len(groups.prunable)} groups keep their full width, as no smaller one is faster on the "
            f"target; the one that the masks cut most is {most.name}: {learned[most.name]} of {most.width} channels."
        )
    return notes
