"""Every hyper-parameter of a run, in one place."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from dtp_deploy.budget import Granularity
from dtp_deploy.errors import UsageError
from dtp_deploy.prune import MaskSettings
from dtp_deploy.prune.schedule import pruned_per_kept

Augment = Literal["none", "shift", "shift-flip"]


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of masks and training together. The defaults suit a network that was trained with SGD at 0.1.

    Attributes:
        epochs: passes over the training data, masks and fine-tuning together.
        mask_share: share of all steps in which masks are learned. Let r be the share of its units that every layer
            would keep if all kept the same and met the budget: where it is more than half, (1 - r) / r times that.
            With less to decide, more of the steps are for the network that is left.
        batch_size: samples a training step.
        learning_rate: the highest; a fifth of the one that trained the model is a good choice.
        warm_up: share of all steps in which the learning rate rises to its highest; it falls as a cosine after that,
            over the whole run, and does not restart when channels are removed.
        momentum: of Nesterov's SGD; it starts anew when channels are removed.
        weight_decay: of all parameters that are trained.
        clip_norm: largest norm of the gradient of the weights.
        distill: learn from the dense model's outputs too.
        distill_weight: share of the distillation in the loss.
        temperature: at which outputs are compared (Hinton et al., 2015).
        mixed_precision: models compute in bfloat16, and losses in float32, where the device is a CUDA one that is made
            for it.
        augment: what training images go through.
        batchnorm_batches: batches with which BatchNorm statistics are estimated anew after removal.
        seed: of everything random.
        masks: of the mask phase.
        granularity: what is pruned.
        keep: patterns of layers that stay as they are, see `dtp_deploy.graph.freeze`.
        only: patterns of the only layers that may lose channels or weights.
        allow_depth: residual blocks that are worth less than they cost may be removed as a whole.

    Raises:
        UsageError: a value is out of range.
    """

    epochs: int = 20
    mask_share: float = 0.6
    batch_size: int = 64
    learning_rate: float = 0.02
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 5.0
    distill: bool = True
    distill_weight: float = 0.5
    temperature: float = 4.0
    mixed_precision: bool = True
    augment: Augment = "none"
    batchnorm_batches: int = 20
    seed: int = 0
    masks: MaskSettings = field(default_factory=MaskSettings)
    granularity: Granularity = "channels"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    allow_depth: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"--epochs {self.epochs} is not allowed. Give 1 or more.")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} is not allowed. Give 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--lr {self.learning_rate} is not allowed. Give a number above 0, such as 0.02.")
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise UsageError(f"--granularity {self.granularity!r} is unknown. Give one of {known}.")
        self.masks.check_granularity(self.granularity)
        allowed = {
            "mask_share": (0 < self.mask_share < 1, "a number between 0 and 1"),
            "warm_up": (0 <= self.warm_up < 1, "a number from 0 to below 1"),
            "momentum": (0 <= self.momentum < 1, "a number from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number of 0 or more"),
            "clip_norm": (0 < self.clip_norm < math.inf, "a number above 0"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "distill_weight": (0 <= self.distill_weight <= 1, "a number from 0 to 1"),
            "batchnorm_batches": (self.batchnorm_batches >= 1, "1 or more"),
        }
        for name, (fits, what) in allowed.items():
            if not fits:
                raise UsageError(f"{name} is {getattr(self, name)}; give {what}.")
        if self.augment not in get_args(Augment):
            raise UsageError(f"--augment {self.augment!r} is unknown. Give one of {', '.join(get_args(Augment))}.")

    def mask_steps(self, total: int, ratio: float) -> int:
        """Steps of the mask phase; one step is left for fine-tuning where there are two.

        Args:
            total: steps in all, >= 1.
            ratio: share of the units that the budget leaves.
        """
        return max(1, min(round(self.mask_share * pruned_per_kept(ratio) * total), total - 1))

    def rate_at(self, progress: float) -> float:
        """Learning rate at a share of the whole run: linear warm-up, then a cosine to zero."""
        if progress < self.warm_up:
            return self.learning_rate * max(progress / self.warm_up, 0.01)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))
