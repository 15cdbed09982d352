"""The command line: ``python -m ddim_jax.main --config=configs/NAME.py --workdir=DIR [--mode=MODE]``.

Flags, start-up of devices and processes, and the choice of the job; nothing else.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from ddim_jax import parallel
from ddim_jax.config import Config, check_key, from_config_dict
from ddim_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/digits.py", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that the run writes and later jobs read")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample", "describe"], "What to do")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, when several processes run")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0")
_DISTRIBUTED = flags.DEFINE_enum("distributed", None, ["auto"], "auto: find the other processes (TPU pod, Slurm, MPI)")


def _dispatch(mode: str, config: Config, workdir: str) -> None:
    """Runs one job. Jobs are imported here, so that a mistake in a flag is reported at once."""
    if mode == "train":
        from ddim_jax.jobs.train import train

        train(config, workdir)
    elif mode == "sample":
        from ddim_jax.jobs.sample import sample

        sample(config, workdir)
    else:
        from ddim_jax.jobs.describe import describe

        describe(config)


def _parse(argv: Sequence[str]) -> Config:
    """Parses flags, reads the config file, applies the overrides, and checks all of it.

    absl and ml_collections raise many types of errors here, and the config file is Python of the user's own: whatever
    it raises is for the user to mend.
    """
    for argument in argv[1:]:
        key = argument.lstrip("-").split("=")[0]
        if key.startswith("config.") and argument.startswith("-"):
            check_key(key.removeprefix("config."))
    try:
        extra = flags.FLAGS(list(argv))[1:]
        config_dict = _CONFIG.value
    except (UserError, SystemExit):
        raise
    except flags.Error as error:
        raise UserError(str(error)) from error
    except Exception as error:
        raise UserError(f"the config cannot be read: {type(error).__name__}: {error}") from error
    if extra:
        raise UserError(f"unexpected argument '{extra[0]}': options look like --name=value")
    if config_dict is None:
        raise UserError("--config is missing: name a config file, e.g. --config=configs/digits.py")
    if _WORKDIR.value is None and _MODE.value != "describe":
        raise UserError("--workdir is missing: name the folder that the run writes")
    return from_config_dict(config_dict)


def run(argv: Sequence[str] | None = None) -> int:
    """Parses flags, runs the job, and turns a user's mistake into one line.

    Args:
        argv: program name and arguments; ``sys.argv`` when None.

    Returns:
        The exit status: 0 for success, 2 for a user's mistake. Other errors propagate with their trace.
    """
    logging.basicConfig(level=logging.WARNING)
    try:
        config = _parse(sys.argv if argv is None else argv)
        parallel.initialize(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            automatic=_DISTRIBUTED.value == "auto",
            deterministic=config.train.deterministic,
        )
        _dispatch(_MODE.value, config, _WORKDIR.value)
    except UserError as error:
        print(f"ddim_jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
