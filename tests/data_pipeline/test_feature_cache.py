"""Features on disk: found again, sound after a kill, bounded, and never a reason to stop."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jgraph
from jgraph._errors import InputError
from jgraph.data import FeatureCache


def pictures(count):
    return [f"picture {i}".encode() for i in range(count)]


def rows(count, size=4):
    return np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache("recipe", tmp_path)


def check(found, expected):
    """Assert that all of `expected` was found, bit for bit."""
    assert sorted(found) == list(range(len(expected)))
    for i, row in enumerate(expected):
        np.testing.assert_array_equal(found[i], row)


def test_what_was_put_is_found_by_another(cache, tmp_path):
    keys = cache.keys(pictures(5))
    cache.put(keys[:3], rows(3))
    again = FeatureCache("recipe", tmp_path)
    check(again.get(again.keys(pictures(5))), rows(3))
    assert again.trouble is None


def test_another_recipe_or_picture_finds_nothing(cache, tmp_path):
    cache.put(cache.keys(pictures(1)), rows(1))
    other = FeatureCache("another recipe", tmp_path)
    assert other.get(other.keys(pictures(1))) == {}
    assert cache.get(cache.keys([b"another picture"])) == {}


def test_a_file_counts_by_its_bytes_not_by_its_name(cache, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"the same")
    first, second, third = cache.keys([tmp_path / "a.jpg", str(tmp_path / "b.jpg"), b"the same"])
    assert first == second == third
    (tmp_path / "a.jpg").write_bytes(b"changed")
    assert cache.keys([tmp_path / "a.jpg"]) != [first]


def test_what_is_no_readable_file_has_no_key_and_is_not_kept(cache, tmp_path):
    keys = cache.keys([tmp_path / "missing.jpg", np.zeros((2, 2), np.uint8), b"there"])
    assert keys[:2] == [None, None]
    cache.put(keys, rows(3))
    assert list(cache.get(keys)) == [2]


def test_the_place_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JGRAPH_CACHE", str(tmp_path / "own"))
    cache = FeatureCache("recipe")
    cache.put(cache.keys(pictures(1)), rows(1))
    assert (tmp_path / "own" / "features" / "features.sqlite").is_file()


def test_a_process_killed_while_it_writes_leaves_what_it_had_kept(tmp_path):
    script = """if True:
        import os, signal, sys
        import numpy as np
        from pathlib import Path
        from jgraph.data import FeatureCache
        cache = FeatureCache("recipe", Path(sys.argv[1]))
        keys = cache.keys([f"picture {i}".encode() for i in range(9000)])
        rows = np.random.default_rng(0).standard_normal((9000, 4)).astype(np.float32)
        cache.put(keys[:3], rows[:3])

        def dying():
            # More than SQLite keeps in memory, so that the file itself is half-written.
            for i, key in enumerate(keys[3:]):
                if i == 8000:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield key

        cache.put(dying(), np.repeat(rows[3:], 500, axis=1))
    """
    root = str(Path(jgraph.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "features.sqlite-journal").is_file(), "it wasn't writing when it died"
    cache = FeatureCache("recipe", tmp_path)
    keys = cache.keys(pictures(5))
    check(cache.get(keys), rows(3))
    cache.put(keys[3:], rows(5)[3:])
    check(cache.get(keys), rows(5))
    assert cache.trouble is None


def test_it_stays_within_its_bound_and_drops_what_was_used_least_recently(tmp_path, monkeypatch):
    monkeypatch.setenv("JGRAPH_FEATURES_GB", "0.0005")
    now = [1e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    cache = FeatureCache("recipe", tmp_path)
    keys, many = cache.keys(pictures(120)), rows(120, 1280)
    for start in range(0, 120, 10):
        cache.put(keys[start : start + 10], many[start : start + 10])
        assert (tmp_path / "features.sqlite").stat().st_size <= 0.5e6
        now[0] += 7200
        assert 0 in cache.get(keys[:1])  # used again and again, so it stays
    found = cache.get(keys)
    assert {0, *range(110, 120)} <= set(found)
    assert not set(range(10, 50)) & set(found)
    assert len(found) > 40


@pytest.mark.parametrize("limit", ["much", "-1", "nan"])
def test_the_bound_must_be_a_number(limit, monkeypatch):
    monkeypatch.setenv("JGRAPH_FEATURES_GB", limit)
    with pytest.raises(
        InputError, match=f"must be a number of gigabytes, such as 2, got '{limit}'"
    ):
        FeatureCache("recipe")


def test_a_damaged_entry_is_not_returned_and_can_be_put_again(cache, tmp_path):
    keys = cache.keys(pictures(3))
    cache.put(keys, rows(3))
    path = tmp_path / "features.sqlite"
    data = bytearray(path.read_bytes())
    data[data.index(rows(3)[1].tobytes())] ^= 1
    path.write_bytes(data)
    assert sorted(cache.get(keys)) == [0, 2]
    cache.put(keys[1:2], rows(3)[1:2])
    check(cache.get(keys), rows(3))


@pytest.mark.parametrize("damage", ["no database", "a page of zeros", "cut short"])
def test_a_damaged_file_starts_anew(cache, tmp_path, damage):
    keys = cache.keys(pictures(200))
    cache.put(keys, rows(200, 256))
    path = tmp_path / "features.sqlite"
    data = path.read_bytes()
    whole = {
        "no database": b"no database at all" * 1000,
        "a page of zeros": data[:16384] + bytes(len(data) - 16384),
        "cut short": data[: len(data) // 2],
    }
    path.write_bytes(whole[damage])
    assert len(cache.get(keys)) < 200
    for _ in range(2):  # the first may be what finds the damage
        cache.put(keys, rows(200, 256))
    check(cache.get(keys), rows(200, 256))
    assert cache.trouble is None


def test_without_a_place_to_write_it_says_so_and_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    cache = FeatureCache("recipe", tmp_path / "file" / "cache")
    keys = cache.keys(pictures(1))
    cache.put(keys, rows(1))
    assert cache.get(keys) == {}
    assert cache.trouble is not None
    assert "features.sqlite: Not a directory" in cache.trouble


def test_a_full_disk_is_trouble_and_no_error(cache, monkeypatch):
    keys = cache.keys(pictures(2))
    cache.put(keys[:1], rows(1))
    opened = FeatureCache._opened

    def full(self):
        connection = opened(self)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    monkeypatch.setattr(FeatureCache, "_opened", full)
    cache.put(keys, rows(2, 100_000))
    assert cache.trouble is not None
    assert "full" in cache.trouble
    monkeypatch.undo()
    cache.trouble = None
    assert list(cache.get(keys)) == [0]


def test_two_may_write_at_once(tmp_path):
    one, other = FeatureCache("recipe", tmp_path), FeatureCache("recipe", tmp_path)
    keys = one.keys(pictures(4))
    one.put(keys[:2], rows(4)[:2])
    with sqlite3.connect(tmp_path / "features.sqlite") as reader:
        reader.execute("SELECT COUNT(*) FROM features").fetchall()
        other.put(keys[2:], rows(4)[2:])
    reader.close()
    check(one.get(keys), rows(4))
