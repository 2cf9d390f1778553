"""Arrays from an ``.npz`` file. Pickled objects in it are refused and never unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import InputError
from dtp_deploy.loading.arrays import MEMBERS
from dtp_deploy.loading.wording import cause

_WRITE_NPZ = "Write it with np.savez(path, x_train=..., y_train=..., x_val=..., y_val=...)."


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `MEMBERS` in the file, as they are in it.

    Raises:
        InputError: the file is no ``.npz``, damaged, lacks an array, or needs code to load.
    """
    with path.open("rb") as stream:  # opened here, because np.load leaves a file open that it cannot read
        try:
            archive = np.load(stream, allow_pickle=False)
        except Exception as error:
            raise InputError(f"--data {path} is truncated or no .npz file ({cause(error)}). {_WRITE_NPZ}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"--data {path} holds a single array, not an .npz archive. {_WRITE_NPZ}")
        with archive:
            return {member: _read_member(path, archive, member) for member in MEMBERS}


def _read_member(path: Path, archive: Mapping[str, npt.NDArray[Any]], member: str) -> npt.NDArray[Any]:
    if member not in archive:
        raise InputError(f"--data {path} has no array {member}; it needs {', '.join(MEMBERS)}. {_WRITE_NPZ}")
    try:
        return archive[member]
    except Exception as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"--data {path} is refused: {member} holds pickled objects, which need code to load; nothing was run. "
                "Save it as an array of numbers."
            ) from error
        raise InputError(
            f"--data {path}: {member} is truncated or damaged ({cause(error)}). Copy or save the file again."
        ) from error
