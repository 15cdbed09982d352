"""One job at a time where two would spoil each other's files: a run in a workdir, parts of one ``.npz``, a data cache.

The job that has the files holds a claim on them (``claims.py``), a file ``NAME.claim-K`` beside them. Another one that
asks for them is told in one line who has them, and changes nothing. Where the owner is a process of this machine that
is gone, killed or not, the files are free at once; where it is on another machine, or stopped, once its claim was not
touched for three minutes, during which the other one watches. The processes of one run are one writer: process 0 has
the claim.

An owner that was only asleep meanwhile, suspended or cut off, finds out before it writes again (:meth:`Writing.check`).

Object stores (``gs://``) cannot touch a file, and not all can grant one to one job alone: there is no lock there, which
is said.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from etils import epath

from ddim_jax import parallel
from ddim_jax.claims import DEAD_AFTER_SECONDS, LOOK_SECONDS, Claim, Claims
from ddim_jax.errors import UserError, WriteError, write_error
from ddim_jax.files import make_folder
from ddim_jax.writers import say


class Writing:
    """What a job has that alone may write some files."""

    def __init__(self, files: str, folder: epath.PathLike, claim: Claim | None) -> None:
        """Knows the claim.

        Args:
            files: what the job writes, in words.
            folder: where they are.
            claim: on them; None where another process holds it for this one, or nobody can.
        """
        self._files = files
        self._folder = epath.Path(folder)
        self._claim = claim

    def check(self) -> None:
        """Sees that the files are still this job's; to be called before it writes.

        Raises:
            WriteError: the folder is gone, or another job took this one for dead and has the files now.
        """
        if self._claim is None:
            return
        try:
            lost = self._claim.lost
        except OSError as error:
            raise write_error(self._folder, error) from error
        if lost:
            raise WriteError(
                f"{self._files}: this job slept or was cut off from the disk for so long that another one took it for "
                "dead and has the files now, or somebody removed this one's claim on them; nothing more is written here"
            )


@contextlib.contextmanager
def one_writer(
    folder: epath.PathLike,
    name: str,
    files: str,
    remedy: str,
    of_each_process: bool = False,
    while_waiting: Callable[[], None] | None = None,
) -> Iterator[Writing]:
    """Yields once this job alone may write some files, and sees to it until the block ends.

    Args:
        folder: where the claim is made, and the folder if needed.
        name: of the files in that folder, the same in all jobs that write them.
        files: what they are, in words, for messages.
        remedy: what a job that is refused can do instead of waiting.
        of_each_process: each process of a run is a writer of its own; otherwise process 0 asks for all of them.
        while_waiting: called now and then while another job has the files, which is waited for then; None refuses.

    Raises:
        UserError: another job has the files, and is known to be alive.
        WriteError: the claim cannot be made.
    """
    if not of_each_process and not parallel.is_main_process():
        yield Writing(files, folder, None)
        return
    if "://" in os.fspath(folder):
        say(f"{folder} is no place where jobs can tell who else writes: see to it that no other job does")
        yield Writing(files, folder, None)
        return
    make_folder(folder, files, remedy)
    with _claim(Claims(folder), name, files, remedy, while_waiting) as claim:
        yield Writing(files, folder, claim)


def check_no_other_writer(folder: epath.PathLike, name: str, files: str, remedy: str) -> None:
    """Refuses a job at once that :func:`one_writer` would refuse later, once it has read its data.

    Raises:
        UserError: another job of this machine has the files.
    """
    if "://" in os.fspath(folder) or not parallel.is_main_process():
        return
    with contextlib.suppress(OSError):  # no folder: nobody has it
        claims = Claims(folder)
        if claims.runs_here(name):
            raise _refusal(claims, name, files, remedy)


def _claim(claims: Claims, name: str, files: str, remedy: str, while_waiting: Callable[[], None] | None) -> Claim:
    told = False
    while (claim := claims.take(name)) is None:
        alive = claims.runs_here(name) or claims.state(name) == "alive"
        if alive and while_waiting is None:
            raise _refusal(claims, name, files, remedy)
        if not told:
            told = True
            say(
                f"{files}: {_holder(claims, name)} has it; "
                + ("waiting for it" if alive else f"watching for up to {DEAD_AFTER_SECONDS:.0f} s whether it is alive")
            )
        if while_waiting is not None:
            while_waiting()
        time.sleep(LOOK_SECONDS)
    return claim


def _holder(claims: Claims, name: str) -> str:
    since = claims.since(name)
    return claims.holder(name) + (f", since {since}," if since else "")


def _refusal(claims: Claims, name: str, files: str, remedy: str) -> UserError:
    return UserError(
        f"{files}: {_holder(claims, name)} is at work there, and two would spoil each other's files; wait until it "
        f"ends, end it, or {remedy}"
    )
