"""A few images for jobs: of a folder or file by a key of their own, which messages then name."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddim_jax.config import DataConfig
from ddim_jax.data.first_images import read_first_images
from ddim_jax.errors import UserError

# What a model was trained on: a folder that is gone, which nobody needs to read other images.
DATA = DataConfig(source="folder", path="gone", split="train[:50%]", image_size=8)


def save(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return str(path)


def test_a_file_and_a_folder_of_any_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(3):
        save(tmp_path / "images" / f"{number}.png", number, (20 + number, 16))
    of_file = read_first_images(DATA, "", str(tmp_path / "images" / "2.png"), 5, "edit.path")
    np.testing.assert_array_equal(of_file.image, np.full((1, 8, 8, 3), 2))
    np.testing.assert_array_equal(read_first_images(DATA, "", "~/images/2.png", 5, "edit.path").image, of_file.image)
    for num, expected in ((0, [0, 1, 2]), (2, [0, 1]), (9, [0, 1, 2])):
        images = read_first_images(DATA, "", str(tmp_path / "images"), num, "edit.path")
        assert images.image[:, 0, 0, 0].tolist() == images.index.tolist() == expected


def test_a_rectangle_is_cut_from_the_centre(tmp_path: Path) -> None:
    """Of an image of other proportions the largest part is kept that has those of the model."""
    columns = np.repeat(np.arange(16, dtype=np.uint8)[None], 8, axis=0)
    Image.fromarray(columns).save(tmp_path / "wide.png")
    data = DataConfig(source="folder", path="gone", image_size=(8, 4), channels=1)
    images = read_first_images(data, "", str(tmp_path / "wide.png"), 1, "edit.path").image
    np.testing.assert_array_equal(images[0, :, :, 0], columns[:, 6:10])


@pytest.mark.parametrize("key", ["edit.path", "likelihood.path"])
def test_messages_name_the_key_that_was_given(tmp_path: Path, key: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for name in ("bad/a.png", "text.png"):
        (tmp_path / name).write_text("no image")
    for name, message in {
        "nowhere": "does not exist; name a folder of images or an image file",
        "empty": "has no images; looked for",
        "text.png": "cannot be used: not a PNG",
        "bad": f": {tmp_path}/bad/a.png: not a PNG",
    }.items():
        path = str(tmp_path / name)
        with pytest.raises(UserError, match=f"^{key}={re.escape(repr(path))} ?{re.escape(message)}") as caught:
            read_first_images(DATA, "", path, 2, key)
        assert "data.path" not in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_path_the_data_sets_own_key_is_named_and_the_other() -> None:
    with pytest.raises(UserError, match=r"^data\.path='gone' is not a folder.*; or name other images by edit\.path$"):
        read_first_images(DATA, "", "", 2, "edit.path")
