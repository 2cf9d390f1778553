"""The memory of a part of a run: what the system and the device count, and what training keeps."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_MALLOPT = ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20))
"""M_MMAP_THRESHOLD (32 MiB, the most that glibc takes), M_TRIM_THRESHOLD and M_TOP_PAD, of glibc's malloc.h."""
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a CUDA device; 0 for any other, which needs nothing to be brought to it."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block freed memory stays with the process; at its end it goes back to the system.

    Every training step allocates and frees activations of some megabytes. glibc gives such blocks back at once, and the
    next step has all of their pages mapped and cleared anew (`benchmarks/RESULTS.md`). The thresholds stay set, since
    glibc cannot tell what they were. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    for parameter, value in _MALLOPT:
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        libc.malloc_trim(0)


class PeakMemory:
    """Peak memory of this process since `start`, in bytes: resident, and on its CUDA device.

    Linux can forget the resident peak so far; where it does not allow that, the peak of the whole process is given.
    """

    def start(self) -> None:
        """Forget the peaks so far."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            _RESET.write_text("5")
        except OSError:
            return

    def bytes(self) -> int:
        """The resident peak since then."""
        try:
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def gpu_bytes(self) -> int | None:
        """The peak of PyTorch's tensors on the present CUDA device since then; None where there is no such device."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
