"""Files of one array: whole or not there."""

import numpy as np
import pytest

from ddim_jax.errors import UserError
from ddim_jax.npy import array_form, load_array, save_array

IMAGE = np.random.default_rng(0).random((5, 7, 2)).astype(np.float32)


def test_an_array_comes_back_with_its_type(tmp_path):
    path = tmp_path / "000003.npy"
    save_array(path, IMAGE)
    assert array_form(path) == (IMAGE.shape, np.dtype(np.float32))
    np.testing.assert_array_equal(load_array(path), IMAGE)
    np.testing.assert_array_equal(np.load(path), IMAGE)
    assert [file.name for file in tmp_path.iterdir()] == ["000003.npy"]


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"0", lambda data: b"\x93NUMPX" + data[6:]]
)
def test_what_is_not_whole_is_none(tmp_path, damage):
    path = tmp_path / "000003.npy"
    save_array(path, IMAGE)
    path.write_bytes(damage(path.read_bytes()))
    assert array_form(path) is None
    with pytest.raises(UserError, match=r"000003\.npy cannot be read: it is no whole \.npy of numbers"):
        load_array(path)


def test_python_objects_and_missing_files_are_none(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    assert array_form(tmp_path / "objects.npy") is None and array_form(tmp_path / "missing.npy") is None
