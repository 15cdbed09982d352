"""Work on chunks of images by several threads: what comes out does not show which thread was first."""

import logging
import time

import numpy as np
import pytest

from ddim_jax import writers
from ddim_jax.config import DataConfig
from ddim_jax.data.reading import Chunk, cut_into_chunks, map_chunks, report_left_out
from ddim_jax.data.sources import Example
from ddim_jax.data.transforms import ImageError

SKIP = DataConfig(threads=4, on_error="skip")


def example(row: int) -> Example:
    """The number of the row; every row that ends in 3 is bad, and the first chunk takes longest."""
    time.sleep(0.01 if row < 5 else 0)
    if row % 10 == 3:
        raise ImageError("the image is bad", f"row {row}")
    return Example(np.full((1, 1, 1), row, np.uint8), row)


def run(work, config: DataConfig = SKIP, num: int = 23):
    return map_chunks(work, cut_into_chunks(num, 5), example, config, writers.progress(num, "", "", show=False))


def test_chunks_cover_all_rows_once() -> None:
    assert cut_into_chunks(7, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert cut_into_chunks(0, 3) == []


def test_results_come_in_order_and_errors_by_row() -> None:
    results, errors = run(lambda chunk: [(row, read.label) for row, read in chunk])
    assert [row for result in results for row, _ in result] == [row for row in range(23) if row % 10 != 3]
    assert all(row == label for result in results for row, label in result)
    assert {row: str(error) for row, error in errors.items()} == {
        3: "row 3: the image is bad",
        13: "row 13: the image is bad",
    }
    assert errors[3].reason == "the image is bad"


def test_the_first_error_in_the_order_ends_the_work_after_its_chunk() -> None:
    finished: list[range] = []

    def work(chunk: Chunk) -> None:
        for _ in chunk:
            pass
        finished.append(chunk.rows)

    with pytest.raises(ImageError, match=r"^row 3: the image is bad$"):
        run(work, DataConfig(threads=4, on_error="fail"))
    assert range(0, 5) in finished


def test_an_error_of_the_work_itself_is_not_taken_for_an_image() -> None:
    def work(chunk: Chunk) -> None:
        for row, _ in chunk:
            if row == 7:
                raise ImageError("raised by the work")

    with pytest.raises(ImageError, match="raised by the work"):
        run(work)


def test_the_report_counts_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    first = ImageError("the image is bad", "row 3")
    with caplog.at_level(logging.WARNING, "ddim_jax.data.reading"):
        report_left_out(2, 23, first)
    assert [record.getMessage() for record in caplog.records] == [
        "left out 2 of 23 images; the first: row 3: the image is bad"
    ]
    with pytest.raises(ImageError, match=r"^none of 2 images can be used; the first: row 3: the image is bad$"):
        report_left_out(2, 2, first)
