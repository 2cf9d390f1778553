"""The cache: what is whole and ours is believed, everything else is measured again."""

import errno
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dtp_deploy.latency.cache import MeasurementCache, cache_folder

KEY = {"layer": {"op": "Conv", "kernel": [3, 3]}, "widths": [[1, 2]]}


@pytest.fixture
def cache(tmp_path: Path) -> MeasurementCache:
    return MeasurementCache({"device": "a"}, tmp_path / "cache")


def only_file(cache: MeasurementCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_what_was_written_is_read(cache: MeasurementCache) -> None:
    assert cache.read("layer", KEY) is None
    cache.write("layer", KEY, [0.1, 2.5])
    assert cache.read("layer", KEY) == [0.1, 2.5]
    assert cache.problem is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace("2.5", "2.6"),
        lambda text: text.replace('"a"', '"b"'),
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: "\x00\x00",
    ],
    ids=["truncated", "empty", "other JSON", "other value", "other device", "other format", "no text"],
)
def test_a_damaged_entry_is_rebuilt(damage, cache: MeasurementCache) -> None:
    cache.write("layer", KEY, [0.1, 2.5])
    path = only_file(cache)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    assert cache.read("layer", KEY) is None
    cache.write("layer", KEY, [0.1, 2.5])
    assert cache.read("layer", KEY) == [0.1, 2.5]


def test_an_entry_of_another_device_is_not_found_nor_believed_in_place(cache: MeasurementCache, tmp_path: Path) -> None:
    other = MeasurementCache({"device": "b"}, tmp_path / "other")
    other.write("layer", KEY, [9.9])
    cache.write("layer", KEY, [0.1])
    only_file(cache).write_bytes(only_file(other).read_bytes())
    assert cache.read("layer", KEY) is None
    assert MeasurementCache({"device": "b"}, cache.folder).read("layer", KEY) is None


def test_a_full_disk_is_no_error_and_leaves_nothing(cache: MeasurementCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("layer", KEY, [1.0])
    original = Path.replace

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.write("layer", KEY, [2.0])
    monkeypatch.setattr(Path, "replace", original)
    assert cache.read("layer", KEY) == [1.0]
    assert only_file(cache).suffix == ".json"
    assert cache.problem == f"Latency tables could not be kept in {cache.folder} (No space left on device)."


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = MeasurementCache({}, tmp_path / "file" / "cache")
    cache.write("layer", KEY, [1.0])
    assert cache.read("layer", KEY) is None
    assert cache.problem is not None


def test_a_reader_sees_whole_entries_while_several_write(cache: MeasurementCache) -> None:
    values = [[float(number)] * 5000 for number in range(4)]
    cache.write("layer", KEY, values[0])

    def write(number: int) -> None:
        for _ in range(20):
            cache.write("layer", KEY, values[number])

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        while not all(writer.done() for writer in writers):
            assert cache.read("layer", KEY) in values
    assert only_file(cache).suffix == ".json"
    assert cache.problem is None


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DTP_DEPLOY_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert MeasurementCache({}).folder == tmp_path / "chosen" / "latency"
    monkeypatch.delenv("DTP_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dtp-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dtp-deploy"


def test_an_entry_says_in_full_what_it_is_of(cache: MeasurementCache) -> None:
    cache.write("layer", KEY, [1.0])
    assert json.loads(only_file(cache).read_text())["key"] == {
        "format": 2,
        "device": {"device": "a"},
        "kind": "layer",
        **KEY,
    }
    assert tempfile.gettempdir() not in only_file(cache).read_text()
