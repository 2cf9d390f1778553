"""Memory that training frees stays with the process as long as it trains, and no longer."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from dtp_deploy import memory
from dtp_deploy.memory import freed_memory_kept

MEGABYTE = 1 << 20


def resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def growth() -> tuple[int, int]:
    """How much more memory a process holds after it has used and freed 128 MiB: within the block, and after it."""
    before = resident_bytes()
    with freed_memory_kept():
        blocks = [bytearray(b"1") * (4 * MEGABYTE) for _ in range(32)]
        del blocks
        within = resident_bytes()
    return within - before, resident_bytes() - before


def test_freed_memory_stays_within_the_block_and_goes_back_at_its_end() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # this one may hold memory of other tests
        within, after = fresh.submit(growth).result()
    assert within > 100 * MEGABYTE
    assert after < 28 * MEGABYTE


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        pass
