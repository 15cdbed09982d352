"""Arrays in files that appear whole: what a program finds that goes on where another was killed."""

import io
import struct
import zipfile

import numpy as np
import pytest
from etils import epath

from ddim_jax import npz
from ddim_jax.errors import UserError
from ddim_jax.npz import NpzInParts, array_names, load_arrays, load_if_whole, save_arrays


def batch(*indices):
    return {"index": np.array(indices, np.int64), "value": np.array(indices) * 10.0}


@pytest.fixture
def store(tmp_path):
    store = NpzInParts(epath.Path(tmp_path) / "all.npz")
    for indices in ((0, 1), (2, 3), (4,)):
        store.add(batch(*indices))
    return store


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:90] + b"x" + data[91:]]
)
def test_a_damaged_part_counts_as_missing(store, tmp_path, damage):
    path = tmp_path / "parts" / "000002-0.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert sorted(store.indices()) == [0, 1, 4]
    store.add(batch(3))
    store.add(batch(2))
    np.testing.assert_array_equal(store.finish(np.arange(5))["value"], [0, 10, 20, 30, 40])
    assert not (tmp_path / "parts").exists()


def test_an_item_in_two_parts_counts_once_and_others_than_asked_for_are_left_out(store, tmp_path):
    save_arrays(tmp_path / "parts" / "000001-1.npz", {"index": np.array([3, 1, -7]), "value": np.array([3.5, 1.5, 0])})
    save_arrays(tmp_path / "parts" / "000009-0.npz", batch(9))
    assert store.indices().tolist() == [-7, 0, 1, 2, 3, 4, 9]
    found = store.finish(np.array([4, 3, 1]))
    assert found["index"].tolist() == [4, 3, 1]
    assert found["value"].tolist() == [40, 3.5, 10]  # of the file whose name comes first


@pytest.mark.parametrize(
    "stranger",
    [
        {"value": np.zeros(1)},
        {"index": np.array([4])},
        {"index": np.array([4]), "value": np.zeros((1, 2))},
        {"index": np.array([4]), "value": np.zeros(2)},
        {"index": np.array([4]), "value": np.array(0.0)},
        {"index": np.array([[4]]), "value": np.zeros(1)},
        {"index": np.array([4.0]), "value": np.zeros(1)},
        {"index": np.array(["4"]), "value": np.zeros(1)},
        {"index": np.array([4]), "value": np.zeros(1), "more": np.zeros(1)},
    ],
)
def test_parts_of_another_form_are_nothing_of_ours(store, tmp_path, stranger):
    save_arrays(tmp_path / "parts" / "000004-0.npz", stranger)
    assert store.indices().tolist() == [0, 1, 2, 3]
    save_arrays(tmp_path / "parts" / "000000-0.npz", stranger)
    whole = NpzInParts(epath.Path(tmp_path) / "all.npz", shapes={"value": ()})
    assert whole.indices().tolist() == [2, 3]


def test_an_item_that_vanishes_is_named(store, tmp_path):
    (tmp_path / "parts" / "000004-0.npz").unlink()
    with pytest.raises(UserError, match=r"all.npz: item 4 is not there any more"):
        store.finish(np.arange(5))


def test_a_whole_file_that_lacks_items_is_added_to(store, tmp_path):
    store.finish(np.arange(4))
    assert store.indices().tolist() == [0, 1, 2, 3]
    store.add(batch(4))
    assert store.finish(np.arange(5))["value"].tolist() == [0, 10, 20, 30, 40]
    assert store.indices().tolist() == [0, 1, 2, 3, 4]


def test_files_of_other_names_are_left_out(store, tmp_path):
    part = tmp_path / "parts" / "000002-0.npz"
    (tmp_path / "parts" / "000002-0 copy.npz").write_bytes(part.read_bytes())
    assert sorted(store.indices()) == [0, 1, 2, 3, 4]


def test_a_damaged_whole_file_is_made_again(store, tmp_path):
    store.finish(np.arange(5))
    path = tmp_path / "all.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(store.indices()) == 0
    store.add(batch(0, 1, 2, 3, 4))
    store.finish(np.arange(5))
    assert sorted(store.indices()) == [0, 1, 2, 3, 4]


def test_what_a_killed_program_left(tmp_path):
    assert load_if_whole(tmp_path / "missing.npz") is None
    save_arrays(tmp_path / "saved.npz", {"a": np.arange(3)})
    assert load_if_whole(tmp_path / "saved.npz")["a"].tolist() == [0, 1, 2]
    (tmp_path / "saved.npz").write_bytes(b"")
    assert load_if_whole(tmp_path / "saved.npz") is None


@pytest.mark.parametrize("compressed", [False, True])
def test_whatever_is_damaged_is_one_line(tmp_path, compressed):
    """Zip archives and what is compressed in them fail in many ways, each with an exception of its own."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, index=np.arange(5), value=np.eye(3))
    whole = file.getvalue()
    directory = whole.index(b"PK\x01\x02")
    changes = [(directory + 6, 255), (directory + 8, 1), (directory + 10, 99)]  # version, encryption, compression
    generator = np.random.default_rng(0)
    changes += [(int(generator.integers(len(whole))), int(generator.integers(256))) for _ in range(200)]
    path = epath.Path(tmp_path) / "all.npz"
    refused = 0
    for place, value in changes:
        damaged = bytearray(whole)
        damaged[place] = value
        path.write_bytes(damaged)
        for read in (load_arrays, array_names):
            try:
                read(path)
            except UserError as error:
                refused += 1
                assert "all.npz cannot be read: " in str(error)
        load_if_whole(path)
        NpzInParts(path).indices()
    assert refused > 100


def test_a_flipped_bit_in_any_byte_is_noticed_or_does_nothing(tmp_path):
    """In the headers of the arrays and of the archive too: a shape, a name, a number of members."""
    path = tmp_path / "arrays.npz"
    arrays = {"a": np.arange(10, dtype=np.float32), "b": np.array("text"), "c": np.int64(3)}
    save_arrays(path, arrays)
    content = path.read_bytes()
    noticed = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place + place // 8) % 8
        path.write_bytes(damaged)
        found = load_if_whole(path)
        noticed += found is None
        if found is not None:
            assert found.keys() == arrays.keys()
            assert all(found[name].tobytes() == np.asarray(value).tobytes() for name, value in arrays.items())
            assert all(found[name].dtype == np.asarray(value).dtype for name, value in arrays.items())
    assert noticed > len(content) / 2


def archive(path, member, method=zipfile.ZIP_STORED, change=bytes):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as written:
        written.writestr("a.npy", member)
    path.write_bytes(change(file.getvalue()))
    return path


def member(shape="(4,)", descr="'<f4'", data=bytes(16)):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def in_headers(local, directory, value):
    """Writes a field into both headers of the one member."""

    def change(data):
        changed = bytearray(data)
        for start in (local, data.index(b"PK\x01\x02") + directory):
            changed[start : start + len(value)] = value
        return bytes(changed)

    return change


def test_hand_made_members_are_read(tmp_path):
    assert load_arrays(archive(tmp_path / "x.npz", member()))["a"].tolist() == [0, 0, 0, 0]
    assert load_arrays(archive(tmp_path / "x.npz", member(), zipfile.ZIP_DEFLATED))["a"].shape == (4,)


def test_arrays_of_all_kinds_that_numpy_saves_are_read(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.uint8),
        "number": np.array(3.5),
        "text": np.array("a text"),
        "true": np.array([True, False]),
        "long": np.zeros(300_000, np.uint8),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        read = load_arrays(tmp_path / "x.npz")
        assert list(read) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


@pytest.mark.parametrize(
    "content",
    [
        member("(1000000000000,)"),
        member("(1000000, 1000000, 1000000)"),
        member("(3,)"),
        member("(-4,)"),
        member("(0, 1000000000000000, 1000000000000000)"),
        member(descr="'|O'"),
        member(descr="'|V0'"),
        member(descr="[('a', '<f4')]"),
        member(descr="('<f4', (1000000000,))"),
        member("(" * 5000),
        b"",
        b"no array",
    ],
)
def test_headers_that_claim_what_is_not_there_take_no_memory(tmp_path, monkeypatch, content):
    monkeypatch.setattr(np, "ndarray", lambda *_, **__: pytest.fail("took memory"))
    with pytest.raises(UserError, match=r"x.npz cannot be read: it is no whole .npz of arrays"):
        load_arrays(archive(tmp_path / "x.npz", content))


@pytest.mark.parametrize(
    "change",
    [
        in_headers(8, 10, b"\x08\x00"),  # said to be deflated
        in_headers(8, 10, b"\x63\x00"),  # a method that nobody knows
        in_headers(6, 8, b"\x01\x00"),  # said to be encrypted
        in_headers(14, 16, b"\x00\x00\x00\x01"),  # another checksum
        in_headers(22, 24, b"\xff\xff\xff\x7f"),  # said to be long
        in_headers(18, 20, b"\xff\xff\xff\x7f"),  # said to be packed into more than there is
    ],
)
def test_members_that_numpy_never_writes(tmp_path, change):
    with pytest.raises(UserError, match=r"x.npz cannot be read: it is no whole .npz of arrays"):
        load_arrays(archive(tmp_path / "x.npz", member(data=bytes(range(16))), change=change))


def test_what_is_packed_in_other_ways_is_not_unpacked(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(UserError, match=r"it is no whole .npz of arrays"):
            load_arrays(archive(tmp_path / "x.npz", member(), method))


def test_a_short_file_that_would_fill_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_LONG_BYTES", 2**20)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**21, np.uint8))
    with pytest.raises(UserError, match=r"it is no whole .npz of arrays"):
        load_arrays(tmp_path / "x.npz")
