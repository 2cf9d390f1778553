import pytest

from dtp_deploy_targets.engine_cache import FACTS, PLAN, Built, cache_folder, cached, key_of

BUILT = Built(b"plan", {"precision": "fp16"})


def never():
    raise AssertionError("it was built again")


def test_an_engine_is_built_once(tmp_path):
    assert cached("key", lambda: BUILT, tmp_path) == (BUILT, False)
    assert cached("key", never, tmp_path) == (BUILT, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


@pytest.mark.parametrize("damage", [PLAN, FACTS, "missing"])
def test_a_damaged_entry_is_built_again(tmp_path, damage):
    cached("key", lambda: BUILT, tmp_path)
    if damage == "missing":
        (tmp_path / "key" / PLAN).unlink()
    else:
        (tmp_path / "key" / damage).write_bytes(b"{")
    assert cached("key", lambda: BUILT, tmp_path) == (BUILT, False)
    assert cached("key", never, tmp_path) == (BUILT, True)


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        cached("key", never, tmp_path)
    assert not (tmp_path / "key").exists()


def test_a_folder_that_cannot_be_written_costs_only_the_next_build(tmp_path):
    (tmp_path / "file").write_text("")
    assert cached("key", lambda: BUILT, tmp_path / "file") == (BUILT, False)
    assert cached("key", lambda: BUILT, tmp_path / "file") == (BUILT, False)


def test_the_key_depends_on_the_model_and_on_every_condition(tmp_path):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    conditions = {"gpu": "x", "version": "11.4.0", "precision": "fp16"}
    keys = [key_of(first, **conditions), key_of(second, **conditions)]
    keys += [key_of(first, **conditions | {name: "other"}) for name in conditions]
    assert len(set(keys)) == len(keys)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(b"a")
    assert key_of(copy, **conditions) == keys[0]


def test_the_key_depends_on_what_prepared_the_model(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"model")
    before = key_of(tmp_path / "model.onnx", runtime="x")
    monkeypatch.setattr("dtp_deploy_targets.engine_cache.version", lambda name: "9.9.9")
    assert key_of(tmp_path / "model.onnx", runtime="x") != before


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dtp-deploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/dtp-deploy"
