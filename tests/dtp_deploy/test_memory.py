"""Memory that training frees stays with the process as long as it trains, and no longer."""

from pathlib import Path

import pytest

from dtp_deploy import memory
from dtp_deploy.memory import freed_memory_kept

MEGABYTE = 1 << 20


def resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def test_freed_memory_stays_within_the_block_and_goes_back_at_its_end() -> None:
    before = resident_bytes()
    with freed_memory_kept():
        blocks = [bytearray(b"1") * (4 * MEGABYTE) for _ in range(32)]
        del blocks
        within = resident_bytes()
    assert within - before > 100 * MEGABYTE
    assert resident_bytes() - before < 28 * MEGABYTE


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        pass
