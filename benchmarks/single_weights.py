"""Accuracy with single weights pruned, side by side: differentiable transportation and pruning by size.

    OMP_NUM_THREADS=1 python -m benchmarks.single_weights --data fashion.npz --stem-stride 2 --json rows.json

All start from the same base model and make the same number of steps along the same schedule with the same distillation;
seeds are paired. `dtp` is `WeightMasks` with its defaults; `dtp-fixed-scores` keeps its first scores, and
`dtp-rate-0.05` learns them ten times as fast. `magnitude` sets the smallest weights of all layers to zero
and fine-tunes, `lamp` those of the lowest LAMP score (Lee et al., 2021), from which `dtp` starts, too.
`gradual-magnitude` and `gradual-lamp` do so along the steps in which `dtp` learns, by the cubic schedule of Zhu and
Gupta (2017). Only `dtp` has a floor for each layer. A budget of 2:4 keeps two of every four, in the end.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.classifiers import CLASSIFIERS, accuracy, base_model
from benchmarks.rows import Row, in_points, run_missing
from dtp_deploy import parse_budget
from dtp_deploy.cost import count_parameters
from dtp_deploy.loading import Dataset, load_data
from dtp_deploy.prune import MaskSettings, WeightLayers, WeightMasks, find_weights, hold_zeros
from dtp_deploy.prune.sharing import BlockSharing, SharedBudget
from dtp_deploy.prune.weights import initial_scores
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer, reestimate_batchnorm

_SETTINGS = ("epochs", "base_epochs", "augment", "stem_stride")
"""Options that are the same for all rows of a call."""
_KEY = ("data", "model", "budget", "method", "seed", *_SETTINGS)
"""What tells one run from another."""
_EVERY = 10
"""Steps between two rounds of the gradual method."""

AfterStep = Callable[[], None]
_MASKS = {
    "dtp": MaskSettings(),
    "dtp-fixed-scores": MaskSettings(score_rate=0.0),
    "dtp-rate-0.05": MaskSettings(score_rate=0.05),
}
SCORES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "magnitude": lambda weights: torch.cat([weight.abs().double() for weight in weights]),
    "lamp": initial_scores,
}
METHODS = (*_MASKS, *SCORES, *(f"gradual-{name}" for name in SCORES))


def two_of_four(budget: str) -> bool:
    """Whether a budget is 2:4; otherwise it is a percentage of the parameters."""
    return budget == "2:4"


class ByScore:
    """The weights of a model with the highest scores, and zeros in place of all others.

    Args:
        model: changed in place.
        layers: of this model.
        ratio: of its weights that are left in the end; of 2:4 half.
        scores: of the weights of the layers, flat.
    """

    def __init__(
        self, model: nn.Module, layers: WeightLayers, ratio: float, scores: Callable[[list[Tensor]], Tensor]
    ) -> None:
        self.ratio, self.scores = ratio, scores
        self.weights = [layer.weight_of(model) for layer in layers.maskable]
        self.counts = [weight.numel() for weight in self.weights]
        self.sharing = BlockSharing(sum(self.counts)) if layers.granularity == "2:4" else None
        self.kept = [torch.ones_like(weight) for weight in self.weights]
        for weight, mask in zip(self.weights, self.kept, strict=True):
            # What is zero has no gradient, so that it has no part in clipping either.
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor if self.sharing is None else tensor.movedim(1, -1)

    @torch.no_grad()
    def choose(self, ratio: float) -> None:
        """Keep that share of the weights; of 2:4 the best two of every four, and more while the share is above half."""
        scores = self.scores([self._laid_out(weight).reshape(-1) for weight in self.weights])
        if self.sharing is not None:
            scores = scores.masked_fill(self.sharing.choose(scores), math.inf)
        kept = round(ratio * sum(self.counts))
        keep = SharedBudget(self.counts, kept, "global", 0.0).choose(scores)
        for mask, part in zip(self.kept, torch.split(keep, self.counts), strict=True):
            laid_out = self._laid_out(mask)
            laid_out.copy_(part.view(laid_out.shape))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zeros where they belong: momentum moves weights whatever their gradient."""
        for weight, mask in zip(self.weights, self.kept, strict=True):
            weight.mul_(mask)


def prune(method: str, model: nn.Module, layers: WeightLayers, budget: str, trainer: Trainer) -> AfterStep:
    """Prune a model in place, with or without training; returns what holds its zeros after every later step."""
    blocks = two_of_four(budget)
    if method in _MASKS:
        share = None if blocks else parse_budget("params", budget)
        masks = WeightMasks(model, layers, share, steps=trainer.mask_steps, settings=_MASKS[method])
        trainer.run(model, masks.steps, masks.step, forget=masks.zero_grad)
        hold_zeros(model, masks.harden())
        return lambda: None
    others = count_parameters(model) - layers.count
    kept = parse_budget("params", "100%" if blocks else budget).limit_for(float(count_parameters(model))) - others
    score = SCORES[method.removeprefix("gradual-")]
    by_score = ByScore(model, layers, 0.5 if blocks else math.floor(kept) / layers.count, score)
    if method.startswith("gradual-"):
        steps = trainer.mask_steps(by_score.ratio)

        def after_step() -> None:
            if trainer.step % _EVERY == 0:
                left = max(0.0, 1 - trainer.step / steps) ** 3
                by_score.choose(by_score.ratio + (1 - by_score.ratio) * left)
            by_score.apply()

        trainer.run(model, steps, after_step)
    by_score.choose(by_score.ratio)
    return by_score.apply


def run(arguments: argparse.Namespace, row: Row) -> Row:
    """One run, in a process of its own with one thread."""
    torch.set_num_threads(1)
    data, base = start(arguments, row["data"], row["model"])
    settings = Settings(
        epochs=row["epochs"], batch_size=64, learning_rate=0.02, augment=arguments.augment, seed=row["seed"]
    )
    before = time.perf_counter()
    torch.manual_seed(settings.seed)
    stream = data.train(settings.batch_size, settings.seed, settings.augment)
    trainer = Trainer(stream, CLASSIFICATION, settings, copy.deepcopy(base).requires_grad_(False))
    model = copy.deepcopy(base).requires_grad_(True)
    granularity = "2:4" if two_of_four(row["budget"]) else "weights"
    layers = find_weights(model, torch.zeros(1, *data.sample_shape), granularity)
    after_step = prune(row["method"], model, layers, row["budget"], trainer)
    fresh = data.train(settings.batch_size, settings.seed, settings.augment)
    reestimate_batchnorm(model, (inputs for inputs, _ in islice(fresh, settings.batchnorm_batches)))
    at_hardening = accuracy(model, data)
    trainer.run(model, trainer.total_steps, after_step)
    return row | {
        "accuracy": accuracy(model, data),
        "nonzero": _nonzero(model.parameters()),
        "accuracy_at_hardening": at_hardening,
        "seconds": time.perf_counter() - before,
    }


def start(arguments: argparse.Namespace, path: str, model: str) -> tuple[Dataset, nn.Module]:
    """The data, and the trained model."""
    data = load_data(path)
    if not isinstance(data, Dataset):
        raise SystemExit(f"--data {path}: give an .npz file, or digits")
    return data, base_model(
        model, data, arguments.stem_stride, arguments.base_epochs, arguments.augment, arguments.cache
    )


def _nonzero(parameters: Iterator[Tensor]) -> int:
    return sum(int(torch.count_nonzero(parameter)) for parameter in parameters)


def wanted(arguments: argparse.Namespace) -> list[Row]:
    """Rows to run, without their results."""
    return [
        dict(zip(_KEY, (arguments.data, *each, *(getattr(arguments, name) for name in _SETTINGS)), strict=True))
        for each in product(arguments.models, arguments.budgets, arguments.methods, range(arguments.seeds))
    ]


def table(rows: list[Row], methods: list[str]) -> str:
    """Accuracy by cell and method: points, mean and standard deviation over the seeds.

    >>> row = {"model": "vgg", "budget": "2:4", "method": "dtp", "seed": 0, "nonzero": 9}
    >>> print(table([row | {"accuracy": 0.5}, row | {"accuracy": 0.6, "seed": 1}], ["dtp"]))
    | model | budget | not zero | dtp |
    |---|---|---|---|
    | vgg | 2:4 | 9 | 55.00 ± 7.07 |
    """
    lines = ["| model | budget | not zero | " + " | ".join(methods) + " |", "|---|---|---|" + "---|" * len(methods)]
    for model, budget in dict.fromkeys((row["model"], row["budget"]) for row in rows):
        cell = [row for row in rows if (row["model"], row["budget"]) == (model, budget)]
        texts = []
        for method in methods:
            values = [100 * row["accuracy"] for row in cell if row["method"] == method]
            texts.append(in_points(values))
        counts = sorted({row["nonzero"] for row in cell})
        left = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        lines.append(f"| {model} | {budget} | {left} | {' | '.join(texts)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz in the format of compress, or digits")
    parser.add_argument("--models", nargs="+", choices=list(CLASSIFIERS), default=["resnet20"])
    parser.add_argument("--budgets", nargs="+", default=["2:4", "20%", "10%", "5%"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["dtp", *METHODS[len(_MASKS) :]])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--base-epochs", type=int, default=12)
    parser.add_argument("--augment", default="shift-flip")
    parser.add_argument("--stem-stride", type=int, choices=[1, 2], default=1, help="2 quarters what training costs")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy"), help="folder of the base models")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Run what is asked for and print it."""
    arguments = parse()
    torch.set_num_threads(1)
    for model in arguments.models:
        data, base = start(arguments, arguments.data, model)
        print(f"{model}: dense {100 * accuracy(base, data):.2f}, {_nonzero(base.parameters()):,} parameters not zero")
    rows = run_missing(wanted(arguments), partial(run, arguments), _KEY, arguments.workers, arguments.json)
    print("\n" + table(rows, arguments.methods))


if __name__ == "__main__":
    main()
