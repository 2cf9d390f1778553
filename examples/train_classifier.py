"""Train a classifier and save its state_dict: a plain PyTorch script, for something to prune.

From the root of the repository:

    python examples/train_classifier.py --model examples.digits_cnn:make_model --data digits --epochs 20 --out digits.pt
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, TensorDataset

from dtp_deploy.loading.data import Dataset, load_data
from dtp_deploy.loading.factory import make_model


def augment(x: Tensor, shift: int, flip: bool) -> Tensor:
    """Shift each image of (N, C, H, W) by up to `shift` pixels, and mirror half of them if `flip`."""
    n, _, height, width = x.shape
    padded = pad(x, [shift] * 4)
    top, left = torch.randint(0, 2 * shift + 1, (2, n, 1))
    columns = left + torch.arange(width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    rows = top + torch.arange(height)
    images = torch.arange(n)[:, None, None]
    # Indexing around the channel axis puts that axis last.
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Top-1, a fraction."""
    model.eval()
    batches = DataLoader(TensorDataset(x, y), batch_size=500)
    return sum(int((model(xs).argmax(1) == ys).sum()) for xs, ys in batches) / len(y)


def train(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> None:
    """One epoch after another: SGD with Nesterov momentum, the learning rate falling to 0 along a cosine."""
    batches = DataLoader(TensorDataset(x, y), args.batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), args.learning_rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(batches))
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for xs, ys in batches:
            loss = cross_entropy(model(augment(xs, args.shift, args.flip)), ys)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(ys)
        print(f"epoch {epoch + 1}/{args.epochs}  loss {total / len(x):.4f}", flush=True)


def main() -> None:
    """Read the options, train, evaluate, save."""
    parser = argparse.ArgumentParser(description="Train a classifier and save its state_dict.")
    parser.add_argument("--model", required=True, metavar="PKG.MODULE:FACTORY")
    parser.add_argument("--data", required=True, help="'digits', or an .npz with x_train y_train x_val y_val")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--shift", type=int, default=1, help="augmentation: at most this many pixels")
    parser.add_argument("--flip", action="store_true", help="augmentation: mirror images (clothes, not digits)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    data = load_data(args.data)
    if not isinstance(data, Dataset):
        parser.error(
            f"--data {args.data}: this small script trains on data in memory: digits, fashion-mnist or an .npz"
        )
    x_train, y_train = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    model = make_model(args.model)
    train(model, x_train, y_train, args)
    top1 = accuracy(model, torch.from_numpy(data.x_val), torch.from_numpy(data.y_val))

    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(args.out)
    print(f"accuracy {100 * top1:.2f} on {len(data.y_val)} held-out images; weights in {args.out}")


if __name__ == "__main__":
    main()
