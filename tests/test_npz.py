"""Arrays in files that appear whole: what a program finds that goes on where another was killed."""

import io

import numpy as np
import pytest
from etils import epath

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
