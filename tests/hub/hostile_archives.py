"""Archives made to do harm: each a function from a good module to a bad archive of it."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Make = Callable[[Path, Path, Path], str]
"""From a good module, a folder to write into and a sandbox, to a handle."""

UNSAFE, BROKEN, CHANGED = "UnsafeModuleError", "ModuleFormatError", "ModuleIntegrityError"
MEGABYTE = 1 << 20


class Attack(NamedTuple):
    """How it is made, and the name of the error it must end in."""

    make: Make
    error: str


def files_of(module: Path) -> dict[str, bytes]:
    """Return the files of a module by name."""
    found = (path for path in module.rglob("*") if path.is_file())
    return {path.relative_to(module).as_posix(): path.read_bytes() for path in found}


# Zip.


def zipped(
    *more: tuple[str | zipfile.ZipInfo, bytes],
    first: bool = False,
    without: str = "",
    compression: int = zipfile.ZIP_DEFLATED,
) -> Make:
    """Return what makes a zip of the module with more entries, before or behind its own."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        own = [(name, data) for name, data in files_of(module).items() if name != without]
        path = folder / "net.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in [*more, *own] if first else [*own, *more]:
                if isinstance(name, str):
                    name = name.replace("SANDBOX", str(sandbox))
                    name = zipfile.ZipInfo(name)  # writestr's own would change it
                    name.compress_type = compression
                archive.writestr(name, data)
        return str(path)

    return make


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    """Return an entry of a file that is no plain one."""
    found = zipfile.ZipInfo(name)
    found.external_attr = mode << 16
    return found


LINK = stat.S_IFLNK | 0o777


def patched(make: Make, change: Callable[[bytearray], object]) -> Make:
    """Return what changes the bytes of an archive that was made."""

    def make_patched(module: Path, folder: Path, sandbox: Path) -> str:
        path = Path(make(module, folder, sandbox))
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return str(path)

    return make_patched


def _name(old: bytes, new: bytes) -> Callable[[bytearray], object]:
    assert len(old) == len(new)

    def change(data: bytearray) -> None:
        data[:] = data.replace(old, new)

    return change


def _flag(bit: int) -> Callable[[bytearray], object]:
    """Set a bit in every entry's flags, in its header and in the directory."""

    def change(data: bytearray) -> None:
        for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.find(magic)
            while at >= 0:
                data[at + place] |= bit
                at = data.find(magic, at + 4)

    return change


def _cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def _cut_early(data: bytearray) -> None:
    del data[600:]


def _crc(data: bytearray) -> None:
    at = data.find(b"weights.safetensors") + len(b"weights.safetensors")
    data[at + 20] ^= 0xFF


def _small_size(data: bytearray) -> None:
    """Say in the directory that the last entry unpacks to ten bytes."""
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)


def overlapping(module: Path, folder: Path, sandbox: Path) -> str:
    """A zip whose thousand entries are all the same packed bytes (Fifield 2019)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(MEGABYTE)
    data = packer.compress(zeros) + packer.flush()
    crc, size = zlib.crc32(zeros), len(zeros)
    sizes = struct.pack("<III", crc, len(data), size)
    body = struct.pack("<IHHHHH", 0x04034B50, 20, 0, 8, 0, 33) + sizes
    body += struct.pack("<HH", 5, 0) + b"a0000" + data
    directory = b""
    for number in range(1000):
        name = f"a{number:04}".encode()
        directory += struct.pack("<IHHHHHH", 0x02014B50, 20, 20, 0, 8, 0, 33) + sizes
        directory += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1000, 1000, len(directory), len(body), 0)
    path = folder / "net.zip"
    path.write_bytes(body + directory + end)
    return str(path)


def zipped_zeros(megabytes: int) -> Make:
    """Return what makes a zip of a file of zeros."""
    return lambda *places: zipped(("zeros", bytes(megabytes * MEGABYTE)))(*places)


def many_in_zip(module: Path, folder: Path, sandbox: Path) -> str:
    """Too many files, with a directory that is still short enough to be read."""
    return zipped(*((f"f{i}", b"") for i in range(2500)))(module, folder, sandbox)


def long_directory(module: Path, folder: Path, sandbox: Path) -> str:
    """A directory of a hundred megabytes."""
    comments = []
    for number in range(1600):
        found = zipfile.ZipInfo(f"f{number}")
        found.comment = b"x" * 65_535
        comments.append((found, b""))
    return zipped(*comments)(module, folder, sandbox)


# Tar.


def tarred(*more: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], first: bool = False) -> Make:
    """Return what makes a tar of the module with more members, before or behind its own."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        path = folder / "net.tar"
        own = []
        for name, data in files_of(module).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            own.append((member, data))
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for item in [*more, *own] if first else [*own, *more]:
                member, data = item if isinstance(item, tuple) else (item, b"")
                member = tarfile.TarInfo.frombuf(member.tobuf(tarfile.GNU_FORMAT), "utf-8", "")
                member.name = member.name.replace("SANDBOX", str(sandbox))
                member.linkname = member.linkname.replace("SANDBOX", str(sandbox))
                archive.addfile(member, io.BytesIO(data))
        return str(path)

    return make


def member(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    """Return a plain file."""
    found = tarfile.TarInfo(name)
    found.size = len(data)
    return found, data


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    """Return a link, a device or a pipe."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, to
    return found


def raw(*blocks: bytes, packed: bool = False) -> Make:
    """Return what writes blocks as they are; a number's worth of zeros may follow a header."""

    def make(module: Path, folder: Path, sandbox: Path) -> str:
        path = folder / ("net.tar.gz" if packed else "net.tar")
        with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, 0) if packed else file as to:
            for block in blocks:
                to.write(block)
        return str(path)

    return make


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a member's header that says any size."""
    found = tarfile.TarInfo(name)
    found.size, found.type = size, kind
    return found.tobuf(tarfile.GNU_FORMAT)


def zeros(megabytes: int) -> list[bytes]:
    """Return zeros without the memory of them."""
    return [bytes(MEGABYTE)] * megabytes


def negative(module: Path, folder: Path, sandbox: Path) -> str:
    """A member of -1024 bytes, which leads a reader around in a circle."""
    block = bytearray(header("a", 0))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return raw(bytes(block), bytes(1024))(module, folder, sandbox)


def sparse(module: Path, folder: Path, sandbox: Path) -> str:
    """A terabyte of which nothing is there."""
    text = b""
    for key, value in {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "big",
        "GNU.sparse.size": str(1 << 40),
        "GNU.sparse.map": "0,0",
    }.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + 2
        text += str(length + (length > 99)).encode() + line
    block = header("x", len(text), tarfile.XHDTYPE)
    padding = bytes(-len(text) % 512)
    return raw(block, text, padding, header("big", 0), bytes(1024))(module, folder, sandbox)


ARCHIVES: dict[str, Attack] = {
    "zip_slip": Attack(zipped(("../escaped", b"x")), UNSAFE),
    "zip_slip_inside": Attack(zipped(("programs/../../../escaped", b"x")), UNSAFE),
    "zip_absolute": Attack(zipped(("SANDBOX/escaped", b"x")), UNSAFE),
    "zip_backslash": Attack(zipped(("..\\escaped", b"x")), UNSAFE),
    "zip_drive": Attack(zipped(("C:/escaped", b"x")), UNSAFE),
    "zip_folder_slip": Attack(zipped(("../../folder/", b"")), UNSAFE),
    "zip_link": Attack(zipped((entry("notes", LINK), b"/etc/passwd")), UNSAFE),
    "zip_link_followed": Attack(
        zipped((entry("out", LINK), b"../../.."), ("out/escaped", b"x"), first=True), UNSAFE
    ),
    "zip_device": Attack(zipped((entry("null", stat.S_IFCHR | 0o666), b"")), UNSAFE),
    "zip_nul_in_name": Attack(
        patched(zipped(("net.md_exe", b"x")), _name(b"net.md_exe", b"net.md\0exe")), UNSAFE
    ),
    "zip_twice": Attack(
        patched(zipped(("READMY.md", b"x")), _name(b"READMY.md", b"README.md")), UNSAFE
    ),
    "zip_two_cases": Attack(zipped(("readme.MD", b"x")), UNSAFE),
    "zip_long_name": Attack(zipped(("a" * 300, b"x")), UNSAFE),
    "zip_long_path": Attack(zipped(("a/" * 2000 + "a", b"x")), UNSAFE),
    "zip_device_name": Attack(zipped(("con.txt", b"x")), UNSAFE),
    "zip_name_with_dot": Attack(zipped(("module.json.", b"x")), UNSAFE),
    "zip_hidden": Attack(zipped((".bashrc", b"x")), UNSAFE),
    "zip_below_a_file": Attack(zipped(("README.md/x", b"x")), UNSAFE),
    "zip_bomb": Attack(zipped_zeros(150), UNSAFE),
    "zip_bomb_that_lies": Attack(patched(zipped_zeros(100), _small_size), BROKEN),
    "zip_overlapping": Attack(overlapping, UNSAFE),
    "zip_many_files": Attack(many_in_zip, UNSAFE),
    "zip_long_directory": Attack(long_directory, UNSAFE),
    "zip_lzma": Attack(zipped(compression=zipfile.ZIP_LZMA), BROKEN),
    "zip_encrypted": Attack(patched(zipped(), _flag(1)), BROKEN),
    "zip_cut": Attack(patched(zipped(), _cut), BROKEN),
    "zip_wrong_crc": Attack(patched(zipped(compression=zipfile.ZIP_STORED), _crc), BROKEN),
    "zip_extra_file": Attack(zipped(("setup.py", b"x")), CHANGED),
    "zip_missing_file": Attack(zipped(without="README.md"), CHANGED),
    "zip_no_manifest": Attack(zipped(without="module.json"), BROKEN),
    "tar_slip": Attack(tarred(member("../escaped")), UNSAFE),
    "tar_absolute": Attack(tarred(member("SANDBOX/escaped")), UNSAFE),
    "tar_link": Attack(tarred(special("notes", tarfile.SYMTYPE, "/etc/passwd")), UNSAFE),
    "tar_link_followed": Attack(
        tarred(special("out", tarfile.SYMTYPE, "../../.."), member("out/escaped"), first=True),
        UNSAFE,
    ),
    "tar_hard_link": Attack(
        tarred(special("notes", tarfile.LNKTYPE, "SANDBOX/victim"), member("notes"), first=True),
        UNSAFE,
    ),
    "tar_device": Attack(tarred(special("null", tarfile.CHRTYPE)), UNSAFE),
    "tar_pipe": Attack(tarred(special("pipe", tarfile.FIFOTYPE)), UNSAFE),
    "tar_sparse": Attack(sparse, UNSAFE),
    "tar_negative": Attack(negative, UNSAFE),
    "tar_twice": Attack(tarred(member("README.md")), UNSAFE),
    "tar_two_cases": Attack(tarred(member("Module.JSON"), first=True), UNSAFE),
    "tar_many_files": Attack(tarred(*(member(f"f{i}", b"") for i in range(2500))), UNSAFE),
    "tar_says_too_much": Attack(raw(header("a", 1 << 40), bytes(1024)), UNSAFE),
    "tar_bomb": Attack(
        raw(header("zeros", 150 * MEGABYTE), *zeros(150), bytes(1024), packed=True), UNSAFE
    ),
    "tar_bomb_in_parts": Attack(
        raw(
            *(x for i in range(15) for x in (header(f"z{i}", 10 * MEGABYTE), *zeros(10))),
            bytes(1024),
            packed=True,
        ),
        UNSAFE,
    ),
    "tar_header_bomb": Attack(
        raw(header("x", 150 * MEGABYTE, tarfile.XHDTYPE), *zeros(150), packed=True), UNSAFE
    ),
    "tar_name_bomb": Attack(
        raw(header("x", 150 * MEGABYTE, tarfile.GNUTYPE_LONGNAME), *zeros(150), packed=True),
        UNSAFE,
    ),
    "tar_cut": Attack(patched(tarred(), _cut_early), BROKEN),
    "gzip_cut": Attack(
        patched(raw(header("a", 5000), bytes(range(256)) * 20, packed=True), _cut), BROKEN
    ),
    "no_archive": Attack(raw(b"#!/bin/sh\n", bytes(2000)), BROKEN),
    "no_bytes": Attack(raw(), BROKEN),
}
