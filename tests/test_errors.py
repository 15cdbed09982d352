"""What the machine cannot write: one line, whoever wraps it."""

import errno
import os

import pytest

from ddim_jax.errors import UserError, WriteError, failed_write, write_error
from ddim_jax.files import make_folder, whole_file, whole_folder, write_whole, writing


def system_error(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO])
def test_the_machines_failures_have_status_1_and_a_remedy(number):
    error = write_error("here", system_error(number), "or elsewhere")
    assert (type(error), error.status) == (WriteError, 1)
    assert str(error).startswith(f"here cannot be written: {os.strerror(number)}; ")
    assert "or elsewhere; what is whole there is kept" in str(error)


def test_a_place_that_cannot_be_is_the_users_mistake():
    error = write_error("here", system_error(errno.ENOTDIR))
    assert (type(error), error.status, str(error)) == (UserError, 2, "here cannot be written: Not a directory")


def wrapped(error, times=1):
    for _ in range(times):
        try:
            raise RuntimeError("a library's") from error
        except RuntimeError as outer:
            error = outer
    return error


def test_failures_are_found_in_what_libraries_make_of_them():
    full = system_error(errno.ENOSPC)
    assert failed_write(full) is full
    assert failed_write(wrapped(full, 3)) is full
    assert failed_write(ExceptionGroup("several", [ValueError(), wrapped(full)])) is full
    found = failed_write(ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [source='x']"))
    assert found is not None and found.errno == errno.ENOSPC
    assert failed_write(ValueError("something else")) is None
    # A file that is not there may be one to read.
    gone = system_error(errno.ENOENT)
    assert failed_write(wrapped(gone)) is None
    assert failed_write(wrapped(gone), was_writing=True) is gone


def test_a_circle_of_causes_ends():
    one, other = ValueError(), ValueError()
    one.__context__, other.__context__ = other, one
    assert failed_write(one) is None


def test_nothing_half_written_stays(tmp_path):
    with (
        pytest.raises(WriteError, match="a cannot be written: No space left"),
        whole_file(tmp_path / "a") as own,
    ):
        own.write_text("half")
        raise system_error(errno.ENOSPC)
    with (
        pytest.raises(WriteError, match="folder cannot be written: Disk quota"),
        whole_folder(tmp_path / "folder") as own,
    ):
        (own / "half").write_text("half")
        raise system_error(errno.EDQUOT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(WriteError, match="its folder was removed"):
        write_whole(tmp_path / "gone" / "a.txt", "a")
    assert list(tmp_path.iterdir()) == []


def test_what_the_network_fails_with_is_no_failure_to_write(tmp_path):
    with pytest.raises(ConnectionResetError), whole_file(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(OSError, match="a library's"), writing(tmp_path):
        raise OSError("a library's")


def test_places_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", "/proc/x"):
        with pytest.raises(UserError, match="cannot be written") as caught:
            make_folder(place)
        assert caught.value.status == 2
