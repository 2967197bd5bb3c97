"""The restricted reader: files by torch itself, and files made to do harm."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jgraph._errors import InputError, ModuleFormatError, UnsafeModuleError
from jgraph.models._weights import read_torch_file

DATA = Path(__file__).parents[1] / "data"
NUMBERS = np.arange(12, dtype=np.float32)
# What make_torch_files.py in tests/parity gave to torch.save.
EXPECTED = {
    "single": NUMBERS,
    "transposed_view": NUMBERS.reshape(3, 4).T[1:],
    "double": np.array([[0.1, -2.5]]),
    "half": np.array([0.5, 65504.0], np.float16),
    "brain": np.array([1.0, 3.140625], ml_dtypes.bfloat16),
    "int64": np.array(-(2**40)),
    "int32": np.array([[7]], np.int32),
    "int16": np.array([-300], np.int16),
    "int8": np.array([-128, 127], np.int8),
    "uint8": np.array([0, 255], np.uint8),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.full((1, 2), 9.0, np.float32),
}


# Pickles put together by hand, so that the tests need no torch.


def literal(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def storage(key: object = "0", size: object = 6, kind: str = "torch.FloatStorage") -> bytes:
    fields = literal("storage") + named(kind) + literal(key) + literal("cpu") + literal(size)
    return b"(" + fields + b"tQ"


def tensor(
    shape: object = (2, 3), stride: object = (3, 1), offset: object = 0, backing: bytes = storage()
) -> bytes:
    fields = backing + literal(offset) + literal(shape) + literal(stride) + literal(False)
    hooks = named("collections.OrderedDict") + b")R"
    return named("torch._utils._rebuild_tensor_v2") + b"(" + fields + hooks + b"tR"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def state_dict(**tensors: bytes) -> bytes:
    items = b"".join(literal(name) + value for name, value in tensors.items())
    return pickled(b"}(" + items + b"u")


def legacy(
    body: bytes,
    keys: object = ("0",),
    data: bytes = struct.pack("<q6f", 6, *range(6)),
    system: object = None,
) -> bytes:
    system = {"little_endian": True} if system is None else system
    header = [0x1950A86A20F9469CFC6C, 1001, system]
    parts = [pickle.dumps(value, protocol=2) for value in header]
    keys = list(keys) if isinstance(keys, tuple) else keys
    return b"".join([*parts, body, pickle.dumps(keys, protocol=2), data])


def zipped(
    body: bytes,
    members: tuple[tuple[str, bytes], ...] = (("w/data/0", struct.pack("<6f", *range(6))),),
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("w/data.pkl", body)
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    def write_and_read(data: bytes, **options: int) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_torch_file(path, **options)

    return write_and_read


@pytest.mark.parametrize("name", ["tensors_zip.pth", "tensors_legacy.pth"])
def test_reads_what_torch_wrote(name):
    arrays = read_torch_file(DATA / name)
    assert list(arrays) == list(EXPECTED)
    for key, expected in EXPECTED.items():
        assert arrays[key].dtype == expected.dtype
        assert arrays[key].shape == expected.shape
        assert arrays[key].flags.c_contiguous
        assert arrays[key].flags.writeable
        np.testing.assert_array_equal(arrays[key], expected)


@pytest.mark.parametrize("container", [legacy, zipped])
def test_reads_what_the_tests_write(read, container):
    arrays = read(container(state_dict(a=tensor(), b=tensor((2,), (2,), 1))))
    np.testing.assert_array_equal(arrays["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(arrays["b"], [1, 3])


def test_reads_the_names_of_newer_pickles(read):
    new = pickled(b"\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93)R")
    assert read(zipped(new)) == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"weights must be a file, there is none at .*no\.pth"):
        read_torch_file(tmp_path / "no.pth")


@pytest.mark.parametrize("container", [legacy, zipped])
@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "torch.storage.UntypedStorage"])
def test_a_named_function_is_refused_by_name_and_not_run(read, container, name, monkeypatch):
    monkeypatch.setattr("posix.system", lambda _: pytest.fail("the file's command was run"))
    body = pickled(named(name) + b"(" + literal("true") + b"tR")
    with pytest.raises(UnsafeModuleError, match=rf"it names {name}; nothing of it was run"):
        read(container(body))


def test_a_function_named_by_the_stack_is_refused(read):
    body = pickled(literal("posix") + literal("system") + b"\x93" + literal(("true",)) + b"R")
    with pytest.raises(UnsafeModuleError, match=r"it names posix\.system"):
        read(legacy(body))


def test_a_function_in_the_header_is_refused(read):
    with pytest.raises(UnsafeModuleError, match=r"it names posix\.system"):
        read(pickled(named("posix.system") + literal(("true",)) + b"R"))


@pytest.mark.parametrize(
    ("body", "opcode"),
    [
        (b"(" + named("collections.OrderedDict") + b"o", "OBJ"),
        (named("collections.OrderedDict") + b")\x81", "NEWOBJ"),
        (b"(iposix\nsystem\n", "INST"),
        (b"\x82\x01", "EXT1"),
        (b"I7\n", "INT"),
        (b"]0", "POP"),
    ],
)
def test_other_opcodes_are_refused_by_name(read, body, opcode):
    with pytest.raises(UnsafeModuleError, match=rf"its pickle uses the opcode {opcode};"):
        read(legacy(pickled(body)))


def test_a_huge_memo_index_takes_no_memory(read):
    # Python's own unpickler would make a list of 2^32 places here.
    body = pickled(b"}r" + struct.pack("<I", 2**32 - 1))
    assert read(zipped(body)) == {}


def test_nested_tuples_as_a_key_are_refused_unhashed(read):
    # Its hash would take 2^60 steps.
    key = literal(()) + b"q\x00h\x00\x86" * 60
    with pytest.raises(ModuleFormatError, match="sets an item without a plain key"):
        read(legacy(pickled(b"}" + key + literal(1) + b"s")))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tensor((2, 4), (3, 1)), "tensor a reaches past its storage"),
        (tensor((6,), (1,), 1), "tensor a reaches past its storage"),
        (tensor((1,), (1,), 6), "tensor a reaches past its storage"),
        (tensor((2**40,), (0,)), "tensor a reaches past its storage"),
        (tensor((7,), (0,)), "tensor a reaches past its storage"),
        (tensor((2**70, 0), (1, 1)), "tensor a has an impossible shape"),
        (tensor((2, 3), (-3, 1)), "tensor a has an impossible shape"),
        (tensor((-2, 3), (3, 1)), "tensor a has an impossible shape"),
        (tensor((2, 3), (3, 1), -1), "tensor a has an impossible shape"),
        (tensor((2, 3), (3,)), "tensor a has an impossible shape"),
        (tensor((1,) * 33, (1,) * 33), "tensor a has an impossible shape"),
        (tensor((2.0, 3), (3, 1)), "tensor a has an impossible shape"),
        (tensor([2, 3], (3, 1)), "tensor a has an impossible shape"),
        (tensor((True,), (1,)), "tensor a has an impossible shape"),
        (literal(3), "entry 'a' is not a named tensor"),
        (storage(), "entry 'a' is not a named tensor"),
    ],
)
@pytest.mark.parametrize("container", [legacy, zipped])
def test_impossible_tensors_are_refused(read, container, bad, message):
    with pytest.raises(ModuleFormatError, match=message):
        read(container(state_dict(z=tensor(), a=bad)))


def test_a_large_stride_of_a_single_element_does_not_matter(read):
    arrays = read(zipped(state_dict(a=tensor((1, 3), (2**80, 1)))))
    np.testing.assert_array_equal(arrays["a"], [[0, 1, 2]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its pickle cannot be decoded|its pickle has no end"),
        (b"\x80\x02K\x07.", "does not begin like a PyTorch file"),
        (b"\x00" * 64, "its pickle cannot be decoded"),
        (legacy(state_dict(a=tensor()), system={"little_endian": False}), "are big-endian"),
        (legacy(state_dict(a=tensor()), system=3), "are big-endian"),
        (legacy(state_dict(a=tensor()), keys={}), "has no list of storages"),
        (legacy(state_dict(a=tensor()), keys=(0,)), "has no list of storages"),
        (legacy(state_dict(a=tensor()), keys=("1",)), "storage 1 is used by no tensor"),
        (legacy(state_dict(a=tensor()), keys=("0", "0")), "storage 0 .* listed twice"),
        (legacy(state_dict(a=tensor()), keys=()), "bytes are left over"),
        (legacy(state_dict(a=tensor()), keys=(), data=b""), "of its tensor a is cut short"),
        (legacy(state_dict(a=tensor())) + b"\x00", "bytes are left over behind its tensors"),
        (legacy(state_dict(a=tensor()))[:-1], "storage of its tensor a is cut short"),
        (legacy(state_dict(a=tensor())).replace(struct.pack("<q", 6), struct.pack("<q", 7)),
         "storage 0 is not as long as its tensors say"),
        (legacy(pickled(literal(3))), "it holds no dict of tensors"),
        (legacy(pickled(b"]" + literal(3) + b"a")), "it holds no dict of tensors"),
        (legacy(pickled(b"](" + literal(3) + b"e")), "it holds no dict of tensors"),
        (legacy(pickled(b"}" + literal(3) + tensor() + b"s")), "entry 3 is not a named tensor"),
        (legacy(pickled(b"](u")), "needs a dict where there is none"),
        (legacy(pickled(b"}(e")), "needs a list where there is none"),
        (legacy(pickled(b"}(" + literal("a") + b"u")), "sets an item without a plain key"),
        (legacy(pickled(b"R")), "takes a value that is not there"),
        (legacy(pickled(b"t")), "takes a value that is not there"),
        (legacy(pickled(b"q\x00")), "remembers a value that is not there"),
        (legacy(pickled(b"h\x00")), "recalls a value that is not there"),
        (legacy(pickled(literal(()) + literal(()) + b"R")), "builds something in an unknown way"),
        (legacy(pickled(literal("x") + b"Q")), "refers to a storage in an unknown way"),
        (legacy(state_dict(a=tensor(backing=storage(size=-1)))), "storage in an unknown way"),
        (legacy(state_dict(a=tensor(backing=storage(kind="collections.OrderedDict")))),
         "storage in an unknown way"),
        (zipped(state_dict(a=tensor()), members=()), "storage of its tensor a is cut short"),
        (zipped(state_dict(a=tensor(backing=storage(size=2**40)))), "of its tensor a is cut short"),
        (legacy(state_dict(a=tensor(backing=storage(size=2**80)))), "storage in an unknown way"),
        (zipped(b"", members=(("w/x/data.pkl", b""),)), "it holds 2 data.pkl instead of one"),
        (zipped(state_dict(), members=(("w/byteorder", b"big"),)), "its numbers are big-endian"),
        (zipped(state_dict(a=tensor()), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped(state_dict(a=tensor()))[:-30], "its zip archive is broken"),
        (zipped(state_dict(a=tensor())).replace(struct.pack("<f", 5), struct.pack("<f", 6)),
         "its zip archive is broken .*CRC"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_with_the_reason(read, data, message):
    with pytest.raises(ModuleFormatError, match=f"(?s){message}.*; fetch or save it again"):
        read(data)


def test_members_of_the_same_name_are_refused(read):
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped(state_dict(), members=(("w/data/0", b"a"), ("w/data/0", b"b")))
    with pytest.raises(ModuleFormatError, match="two of its members have the same name"):
        read(data)


def test_overlapping_members_are_refused(read):
    # Two entries of the directory that stand for the same bytes of the file.
    data = bytearray(zipped(state_dict(), members=(("w/data/0", b"\0" * 4000), ("w/data/1", b""))))
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 4000, 4000)
    with pytest.raises(ModuleFormatError, match="its members are longer than the file"):
        read(bytes(data))


def test_a_file_above_the_limit_is_refused(read):
    with pytest.raises(ModuleFormatError, match="it is larger than the limit of 100 bytes"):
        read(zipped(state_dict(a=tensor())), max_bytes=100)


def test_views_that_add_up_above_the_limit_are_refused(read):
    # Each view fits into its storage of 6000 bytes, but every tensor becomes an array of its own.
    wide = tensor((1500,), (1,), backing=storage(size=1500))
    data = zipped(
        state_dict(**{f"view{number}": wide for number in range(20)}),
        members=(("w/data/0", bytes(6000)),),
    )
    assert len(read(data, max_bytes=120_000)) == 20
    with pytest.raises(ModuleFormatError, match="tensors are larger than the limit of 119999"):
        read(data, max_bytes=119_999)


@pytest.mark.parametrize("name", ["tensors_zip.pth", "tensors_legacy.pth"])
def test_no_damaged_file_does_more_than_raise(read, name):
    whole = (DATA / name).read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(whole), 300, replace=False):
        changed = bytearray(whole)
        changed[position] ^= int(generator.integers(1, 256))
        for data in (bytes(changed), whole[:position]):
            try:
                arrays = read(data)
            except InputError:
                continue
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
