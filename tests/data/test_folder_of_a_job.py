"""A folder that a job wrote, as a source of images."""

import numpy as np
import pytest

from ddim_jax.config import Config
from ddim_jax.data.sources import FolderSource
from ddim_jax.images import save_png
from ddim_jax.workdir import write_run_record


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "jobs" / "one"
    folder.mkdir(parents=True)
    for name in ("000000", "000001", "012345", "grid", "recover", "000001 copy"):
        save_png(folder / f"{name}.png", np.zeros((8, 8, 1), np.uint8))
    return folder


def names(folder):
    source = FolderSource(str(folder))
    return [source.where(index).rpartition("/")[2] for index in range(len(source))]


def test_pictures_that_sum_up_others_are_no_images_of_a_job(folder):
    write_run_record(folder, Config(), mode="sample")
    assert names(folder) == ["000000.png", "000001.png", "012345.png"]
    assert names(folder.parent) == names(folder)


@pytest.mark.parametrize("record", ["", "{", "[]", '{"mode": "sample"}'])
def test_a_record_of_another_program_says_nothing(folder, record):
    (folder / "run.json").write_text(record)
    assert len(names(folder)) == 6


def test_without_a_record_all_are_images(folder):
    assert len(names(folder)) == 6
