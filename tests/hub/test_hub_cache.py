"""The cache: whole entries, gone on with after a cut, offline, pruned."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jgraph as jg
from jgraph._cli import main
from jgraph._handles import Cache, Limits, UrlHandle, download
from jgraph._handles import _cache as cache_file


@pytest.fixture
def served(server, line, tmp_path):
    """The handle of a module's archive, on the server as /line.zip."""
    server.files["/line.zip"] = Path(jg.hub.push(line, tmp_path / "line.zip")).read_bytes()
    return server.handle_of("/line.zip")


def entries(cache):
    """What is in a cache, but for its locks."""
    return sorted(path.name for path in cache.glob("*") if path.name != "locks")


# Downloads.


def test_a_cut_download_goes_on(server, served):
    size = len(server.files["/line.zip"])
    server.cuts = [1000, 500]
    assert jg.hub.load(served).labels == ("up",)
    assert server.log == [
        "GET /line.zip",
        "GET /line.zip bytes=1000-",
        "GET /line.zip bytes=1500-",
    ]
    assert size > 1500


def test_the_next_process_goes_on(server, served, cache, monkeypatch):
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(jg.hub.ModuleFetchError, match=r"after 1000 of \d+ bytes; what has come is"):
        jg.hub.load(served)
    (unfinished,) = entries(cache)
    assert unfinished.startswith("unfinished-archive-")
    assert (cache / unfinished / "download").stat().st_size == 1000
    server.log.clear()
    assert jg.hub.load(served).labels == ("up",)
    assert server.log == ["GET /line.zip bytes=1000-"]
    assert entries(cache) == [unfinished.removeprefix("unfinished-")]


def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path, cache):
    server.files["/a"] = b"old" * 1000
    server.cuts = [1000, 0, 0, 0, 0]
    old, target = server.handle_of("/a"), tmp_path / "a"
    with pytest.raises(jg.hub.ModuleFetchError):
        download(parsed(old), target, Limits())
    server.files["/a"] = b"new" * 1000
    download(parsed(server.handle_of("/a")), target, Limits())
    assert target.read_bytes() == b"new" * 1000


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    server.files["/a"] = b"right" * 1000
    target = tmp_path / "a"
    target.write_bytes(b"wrong" * 100)  # without its ETag: the server can't tell
    download(parsed(server.handle_of("/a")), target, Limits())
    assert target.read_bytes() == b"right" * 1000
    assert server.log == ["GET /a bytes=500-", "GET /a"]


def test_a_part_as_long_as_the_file_is_thrown_away(server, tmp_path):
    server.files["/a"] = b"right"
    target = tmp_path / "a"
    target.write_bytes(b"longer than it")
    download(parsed(server.handle_of("/a")), target, Limits())
    assert target.read_bytes() == b"right"


def parsed(handle):
    url, _, sha256 = handle.partition("#sha256=")
    return UrlHandle(url, sha256)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"/line\.zip can't be fetched, 404 Not Found; check the address"),
        (403, "403 Forbidden; it isn't public: download it yourself, and give its path"),
        (401, "401 Unauthorized; it isn't public"),
        (500, "the server answers 500 Internal Server Error; what has come is kept, so try again"),
    ],
)
def test_what_a_server_refuses(server, served, cache, status, message):
    server.statuses["/line.zip"] = [status]
    with pytest.raises(jg.hub.ModuleFetchError, match=message):
        jg.hub.load(served)
    assert len(server.log) == (4 if status == 500 else 1)
    assert entries(cache) == []


def test_a_server_that_recovers(server, served):
    server.statuses["/line.zip"] = [503, 500, 200]
    assert jg.hub.load(served).labels == ("up",)


def test_nobody_there(cache):
    handle = f"http://127.0.0.1:9/line.zip#sha256={'0' * 64}"
    with pytest.raises(jg.hub.ModuleFetchError, match=r"Connection refused; what has come is kept"):
        jg.hub.load(handle)
    assert entries(cache) == []


def test_another_file_than_the_handle_says(server, served, cache):
    handle = served[:-64] + "0" * 64
    with pytest.raises(jg.hub.ModuleIntegrityError, match=r"must have the SHA-256 000.*ask its"):
        jg.hub.load(handle)
    assert entries(cache) == []


def test_limits_of_size_and_time(server, served, cache):
    for limits, error, message in (
        (Limits(bytes=1000), jg.hub.UnsafeModuleError, "at most 1000 bytes, got .* or more"),
        (Limits(seconds=-1.0), jg.hub.ModuleFetchError, "longer than -1 seconds"),
    ):
        with pytest.raises(error, match=message):
            jg.hub.load(served, limits=limits)
    assert not any((cache / name / "module").exists() for name in entries(cache))


def test_redirects(server, served, cache):
    server.redirects["/there"] = f"{server.url}/line.zip"
    there = served.replace("/line.zip", "/there")
    assert jg.hub.load(there).labels == ("up",)
    for place in ("http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        server.redirects["/away"] = place
        away = f"{server.url}/away#sha256={'1' * 64}"
        with pytest.raises(
            jg.hub.ModuleFetchError, match=r"/away leads elsewhere|can't be fetched"
        ):
            jg.hub.load(away)
    assert len(entries(cache)) == 1


# Offline.


def test_offline_takes_what_is_there(server, served, monkeypatch):
    jg.hub.load(served)
    server.log.clear()
    monkeypatch.setenv("JGRAPH_HUB_OFFLINE", "1")
    assert jg.hub.load(served).labels == ("up",)
    assert server.log == []


def test_offline_names_what_is_not_there(server, served, cache, monkeypatch):
    monkeypatch.setenv("JGRAPH_HUB_OFFLINE", "1")
    with pytest.raises(jg.hub.ModuleNotCachedError) as error:
        jg.hub.load(served)
    assert served in str(error.value)
    assert str(cache) in str(error.value)
    assert server.log == []
    monkeypatch.setenv("JGRAPH_HUB_OFFLINE", "0")
    assert jg.hub.load(served).labels == ("up",)


# The cache.


def test_a_damaged_entry_is_found_and_removed(server, served, cache, capsys):
    folder = jg.hub.load(served).folder
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(jg.hub.ModuleIntegrityError) as error:
        jg.hub.load(served)
    command = str(error.value).rpartition("made anew: jgraph ")[2]
    assert command == f"hub cache --remove '{served}'"
    assert main(["hub", "cache", "--remove", served]) == 0
    assert jg.hub.load(served).labels == ("up",)
    assert capsys.readouterr().out.startswith("removed 1 modules, ")
    (folder / "more.txt").write_text("x")
    with pytest.raises(jg.hub.ModuleIntegrityError, match=r"has others: more\.txt; remove them"):
        jg.hub.load(served)


def test_a_damaged_entry_of_an_archive_is_named_as_it_is_listed(line, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jg.hub.push(line, "line.zip")
    (jg.hub.load("line.zip").folder / "README.md").write_text("other")
    with pytest.raises(jg.hub.ModuleIntegrityError, match=f"--remove '{tmp_path / 'line.zip'}'"):
        jg.hub.load("line.zip")
    assert main(["hub", "cache", "--remove", str(tmp_path / "line.zip")]) == 0
    assert jg.hub.load("line.zip").labels == ("up",)


def test_a_read_only_cache(served, cache, monkeypatch):
    jg.hub.load(served)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(cache_file.filelock.FileLock, "acquire", refuse)
    assert jg.hub.load(served).labels == ("up",)


def test_an_interrupt_leaves_the_part_that_came(served, cache, monkeypatch):
    from jgraph._handles import _http

    def interrupt(answer, file, *rest):
        file.write(answer.read1(700))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_http, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jg.hub.load(served)
    assert len(entries(cache)) == 1
    assert Cache().entries() == []
    assert jg.hub.load(served).labels == ("up",)


def test_who_holds_the_lock_for_too_long_is_named(served, cache, monkeypatch):
    monkeypatch.setattr(cache_file, "_LOCK_SECONDS", 0.0)
    key = f"archive-{served[-64:]}"
    with Cache()._locked(key), pytest.raises(jg.hub.ModuleFetchError, match="another process has"):
        jg.hub.load(served)


def test_two_processes_fetch_once(server, served, cache):
    server.cuts = [1000]
    code = f"import jgraph as jg; print(jg.hub.load({served!r}).labels)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=100)[0] for process in both] == ["('up',)\n"] * 2
    assert server.log == ["GET /line.zip", "GET /line.zip bytes=1000-"]
    assert len(entries(cache)) == 1


def test_the_cache_is_listed_and_pruned(server, served, line, cache, tmp_path, capsys):
    old = Path(jg.hub.load(served).folder).parent
    archive = jg.hub.push(line, tmp_path / "other.tar")
    jg.hub.load(archive)
    month_ago = time.time() - 30 * 86400
    os.utime(old / "entry.json", (month_ago, month_ago))
    assert main(["hub", "cache"]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.endswith(archive)
    assert second.endswith(f"{time.strftime('%Y-%m-%d', time.localtime(month_ago))}  {served}")
    assert total.startswith("2 modules, ")
    assert total.endswith(str(cache))

    unfinished = cache / "unfinished-x"
    unfinished.mkdir()
    (unfinished / "download").write_text("x")
    for path in (unfinished / "download", unfinished):
        os.utime(path, (month_ago, month_ago))
    assert main(["hub", "cache", "--prune", "31"]) == 0
    assert len(entries(cache)) == 3
    assert main(["hub", "cache", "--prune", "29"]) == 0
    assert entries(cache) == [f"archive-{jg._handles.sha256_of(Path(archive))}"]
    assert main(["hub", "cache", "--all"]) == 0
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--remove", "nothing"], "'nothing' isn't in the cache"),
        (["--prune", "-1"], "DAYS must be at least 0, got -1"),
        (["--prune", "x"], "must be a number, got 'x'"),
        (["--all", "--remove", "x"], "not allowed with argument"),
    ],
)
def test_what_the_cache_refuses(cache, argv, message, capsys):
    assert main(["hub", "cache", *argv]) == 2
    assert message in capsys.readouterr().err


def test_entries_that_are_damaged_are_not_listed(cache):
    for name, text in {"a": "{", "b": "[]", "c": json.dumps({"other": 1})}.items():
        (cache / name).mkdir(parents=True)
        (cache / name / "entry.json").write_text(text)
    assert Cache().entries() == []
