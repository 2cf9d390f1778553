"""What a run shall do, checked as far as that costs nothing: before PyTorch is imported and any file is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dtp_deploy.artefact import check_output
from dtp_deploy.budget import Budget, BudgetKind, check_budgets, check_depth
from dtp_deploy.config import CompressConfig, ConfigFile, target_spec
from dtp_deploy.errors import UsageError
from dtp_deploy.target import TargetSpec, find_target

HALF = "50%"
"""The budget of who types none."""


@dataclass(frozen=True)
class Order:
    """One run of ``compress``.

    Attributes:
        config: what was given.
        checkpoint: the model's file, folder or name.
        out: folder to write.
        budgets: at least one; none for 2:4.
        target: with its options.
        resume: go on with a run that was cut off.
        config_path: the configuration file that was read; None if there was none.
        budget_is_default: whether nobody typed one.
    """

    config: CompressConfig
    checkpoint: str
    out: Path
    budgets: tuple[Budget, ...]
    target: TargetSpec
    resume: bool = False
    config_path: Path | None = None
    budget_is_default: bool = False


def make_order(config: CompressConfig, file: ConfigFile | None = None, *, resume: bool = False) -> Order:
    """Check what can be checked at once, and fill in what was not given.

    The budget is ``--latency 50%`` where the target can measure here or predict, and ``--macs 50%`` elsewhere; for
    single weights ``--params 50%``, and none for 2:4. The folder is named after the model.

    Raises:
        UsageError: the model is missing, the folder cannot be written, the target is unknown, a budget is no quantity.

    >>> make_order(CompressConfig(checkpoint="nets/small.pt", macs="30%"), ConfigFile()).out
    PosixPath('small-compressed')
    """
    file = file if file is not None else ConfigFile()
    if config.checkpoint is None:
        raise UsageError(
            'No model is given. Give its file, `dtp-deploy compress model.pt`, or a line checkpoint = "model.pt" in '
            "dtp-deploy.toml."
        )
    budgets = config.budgets()
    out = default_out(config.checkpoint) if config.out is None else Path(config.out)
    if not config.dry_run:
        check_output(out, config.force)
    spec = target_spec(config, file)
    target = find_target(spec)
    if config.per_layer and config.granularity == "2:4":
        raise UsageError(
            "--per-layer is of a budget, and --granularity 2:4 has none: it keeps half of the weights of every layer "
            "that can be 2:4. Leave it out."
        )
    default = not budgets and config.granularity != "2:4"
    if default:
        timed = target.availability().available or target.predicts
        by_measure: BudgetKind = "latency" if timed else "macs"
        budgets = (config.budget("params" if config.granularity == "weights" else by_measure, HALF),)
    check_budgets(config.granularity, budgets)
    if config.allow_depth:
        check_depth(config.granularity, budgets)
    if config.statistic != "p50" and all(budget.kind != "latency" for budget in budgets):
        raise UsageError(f"--statistic {config.statistic} is of a latency. Give --latency too, or leave it out.")
    return Order(config, config.checkpoint, out, budgets, spec, resume, file.path, default)


def default_out(checkpoint: str) -> Path:
    """The folder of a model whose user names none.

    >>> [str(default_out(name)) for name in ("nets/best.pt", "timm:resnet18", "small-compressed")]
    ['best-compressed', 'resnet18-compressed', 'small-compressed-compressed']
    """
    path = Path(checkpoint)
    name = path.stem if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".bin") else path.name
    return Path(f"{re.split('[:,]', name)[1] if ':' in name else name}-compressed")
