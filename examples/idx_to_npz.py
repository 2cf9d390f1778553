"""Turn the four gzipped IDX files of MNIST or Fashion-MNIST into one .npz that `dtp-deploy compress` reads.

    python examples/idx_to_npz.py /path/to/fashion-mnist fashion.npz

The .npz holds x_train, x_val (uint8, N x 1 x 28 x 28) and y_train, y_val (uint8, N); the 10,000 test images are
x_val.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "t10k")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of bytes in a gzipped IDX file: 0 0 8 rank, `rank` sizes as big-endian uint32, the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes. Give the files as they were published.")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape.tolist())


def convert(folder: Path, out: Path) -> None:
    """Write `out` from the IDX files in `folder`.

    Raises:
        FileExistsError: `out` is already there; it is left as it is.
    """
    x_train, x_val = (read_idx(folder / f"{split}-images-idx3-ubyte.gz")[:, None] for split in SPLITS)
    y_train, y_val = (read_idx(folder / f"{split}-labels-idx1-ubyte.gz") for split in SPLITS)
    with out.open("xb") as file:
        np.savez_compressed(file, x_train=x_train, y_train=y_train, x_val=x_val, y_val=y_val)


def main() -> None:
    """Read the two paths and convert."""
    parser = argparse.ArgumentParser(description="Gzipped IDX files of a folder -> one .npz.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    args = parser.parse_args()
    try:
        convert(args.folder, args.out)
    except FileExistsError:
        sys.exit(f"{args.out} exists and is not overwritten. Give another name, or remove it.")
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
