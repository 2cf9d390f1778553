"""The peak memory of a part of a run, as the system counts it."""

import resource
from pathlib import Path

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Peak resident memory of this process since `start`, in bytes.

    Linux can forget the peak so far; where it does not allow that, the peak of the whole process is given.
    """

    def start(self) -> None:
        """Forget the peak so far."""
        try:
            _RESET.write_text("5")
        except OSError:
            return

    def bytes(self) -> int:
        """The peak since then."""
        try:
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
