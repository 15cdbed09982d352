"""The command line: ``ddim_jax --config=CONFIG --workdir=DIR [--mode=MODE] [--config.GROUP.KEY=VALUE ...]``.

Flags, start-up of devices and processes, and the choice of the job; nothing else.
"""

from ddim_jax import process

# Before all other imports, since they take a while.
process.end_at_once_on_interrupt()

import ast
import contextlib
import difflib
import importlib
import importlib.resources
import logging
import os
import pathlib
import re
import select
import shutil
import sys
import textwrap
import traceback
import typing
from collections.abc import Collection, Sequence

from absl import flags
from ml_collections import config_flags

from ddim_jax.config import (
    Config,
    ConfigTree,
    beside_preset,
    check_key,
    check_path,
    documentation,
    from_config_dict,
    keys_of,
    shipped_configs,
    to_config_dict,
)
from ddim_jax.errors import UserError, failed_write, on_one_line, shown, write_error
from ddim_jax.huge_pages import restart_with_huge_pages
from ddim_jax.names import Mode, choices

# ``import`` cannot be the name of a module or function.
_JOBS = {"import": "import_weights"}

# More than any machine room has.
_MOST_PROCESSES = 2**20

# Characters of a value that a line has room for.
_SHOWN = 100

_PROCESS_FLAGS = ("coordinator", "num_processes", "process_id", "distributed", "wait_seconds")

# A job on a trained model, unless it measures images of others: the model is what the workdir says.
_ON_A_RUN: tuple[Mode, ...] = (
    *("sample", "trajectory", "interpolate", "reconstruct", "edit", "sweep", "evaluate", "likelihood"),
    *("tune", "average", "export"),
)

# They go on from where they were stopped, and say so.
_TRAINING: tuple[Mode, ...] = ("train", "distill")

_NO_CONFIG = "--config is missing: name a config, e.g. --config=digits, or a --workdir that holds a run"

_CONFIG_HELP = (
    "One of the package's configs by name, or a config file, perhaps with variants, e.g. digits:tiny or "
    "configs/digits.py:tiny; or the config.json of a run. Not given, it is that of the run in --workdir. "
    "--config.GROUP.KEY=VALUE changes a key (--mode=MODE --help lists those of a mode)"
)

# How ml_collections begins the errors that hide what a config file raised.
_HIDING = ("Error whilst parsing config file", "Configuration is not available")


def _run_job(mode: str, config: Config, workdir: str | None) -> bool:
    """Runs ``jobs/MODE.py``'s function MODE. It is imported here, so that a mistake in a flag is reported at once.

    Returns:
        Whether the job is complete; training is not where a signal stopped it.
    """
    name = _JOBS.get(mode, mode)
    with process.importing():
        job = getattr(importlib.import_module(f"ddim_jax.jobs.{name}"), name)
    with process.interrupts_raised():
        result = job(config, workdir)
    return mode not in _TRAINING or result is None


def _define_flags(argv: Sequence[str], tree: ConfigTree | None = None) -> flags.FlagValues:
    """The flags, unparsed; a set of its own for each call, so that :func:`run` can be called twice in one process.

    Args:
        argv: where to look for the config's keys.
        tree: a config that is read already, and no longer named in ``argv``; else --config names a file.
    """
    own = flags.FlagValues()
    if tree is None:
        config_flags.DEFINE_config_file("config", None, _CONFIG_HELP, flag_values=own, sys_argv=list(argv))
    else:
        config_flags.DEFINE_config_dict("config", tree, _CONFIG_HELP, flag_values=own, sys_argv=list(argv))
    flags.DEFINE_string("workdir", None, "Folder that the run writes and later jobs read", flag_values=own)
    flags.DEFINE_enum("mode", "train", choices(Mode), "What to do; train when not given", flag_values=own)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, when several processes run", flag_values=own)
    flags.DEFINE_integer("num_processes", None, "Number of processes", 1, _MOST_PROCESSES, flag_values=own)
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0", 0, _MOST_PROCESSES - 1, flag_values=own)
    flags.DEFINE_enum(
        "distributed", None, ["auto"], "auto: find the other processes (TPU pod, Slurm, MPI)", flag_values=own
    )
    flags.DEFINE_integer(
        "wait_seconds",
        300,
        "How long all processes may take to come",
        lower_bound=1,
        upper_bound=86400,
        flag_values=own,
    )
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status of training that SIGTERM or SIGHUP stopped, all saved, before its last step; for scripts that "
        "start it anew",
        lower_bound=0,
        upper_bound=255,
        flag_values=own,
    )
    return own


def parse(argv: Sequence[str]) -> tuple[Config, flags.FlagValues]:
    """Parses flags, reads the config file, applies the overrides, and checks all of it.

    Args:
        argv: program name and arguments.

    Raises:
        UserError: any of it cannot be used.
    """
    argv = [_with_home(argument) for argument in argv]
    named, argv = _take_flag(argv, "config")
    workdir, _ = _take_flag(argv, "workdir")
    for flag, path in (("config", named), ("workdir", workdir)):
        if path:
            _check_path(f"--{flag}", path)
    path, tree = None, None
    if named is None:
        tree = _tree_of_run(workdir)
        mode, _ = _take_flag(argv, "mode")
        teacher, _ = _take_flag(argv, "config.distill.teacher")
        if mode == "distill" and teacher and (tree is None or tree.distill.teacher != teacher):
            tree = _tree_of_teacher(teacher)
    elif named.endswith(".json"):
        tree = _tree_of_json(named)
    elif ".json:" in named:
        raise UserError(f"--config={named}: the config of a run has no variants; leave out what follows .json")
    else:
        path, variants = _find_config_file(named)
        argv = [argv[0], f"--config={path}{variants}", *argv[1:]]
    if path is not None or tree is not None:
        _check_override_keys(argv)
    try:
        own = _define_flags(argv, tree)
    except (flags.Error, ValueError) as error:
        # To find the config's keys it has to open what --flagfile names.
        raise UserError(f"--flagfile cannot be used: {_shortened(str(error).removeprefix('ERROR:: '))}") from error
    try:
        unused = own(list(argv))[1:]
        values = own.config
        # Where the file could not be read, asking for any attribute raises the reason.
        if values is not None and not hasattr(values, "to_dict"):
            raise TypeError(f"get_config() must return a ConfigDict, not {type(values).__name__}")
    except UserError:
        raise
    except KeyboardInterrupt as error:
        # Ctrl-C ends the program at once here; elsewhere it may be meant for whoever calls.
        if not process.ends_at_once():
            raise
        raise _config_file_error(path, error) from error
    except BaseException as error:
        # Flags are the user's, and so is the Python of the config file: whatever they raise is for the user to mend.
        if isinstance(error, flags.Error) and _HIDING[0] not in str(error):
            raise _flag_error(own, error) from error
        raise _config_file_error(path, error) from error
    if unused:
        raise UserError(f"unexpected argument '{unused[0]}': options look like --name=value")
    if values is None:
        raise UserError(_NO_CONFIG)
    if not own.workdir and own.mode != "describe":
        raise UserError("--workdir is missing: name the folder that the run writes")
    if own.workdir:
        _check_path("--workdir", own.workdir)  # a --flagfile may have it
    given = _given_keys(own)
    for key, known in keys_of(Config):
        value = values.get(key.split(".")[0], {}).get(key.split(".")[1]) if known.is_path and key in given else None
        if not isinstance(value, str) or "://" not in value:
            continue
        # What is imported may be at an address of the web, where folders cannot be.
        if not value.lower().startswith(("https://", "http://")) or key not in ("weights.path", "train.init_from"):
            _check_path(key, value)
        elif key == "train.init_from":
            raise UserError(f"{key}={value}: import it first, by --mode=import, and name that workdir")
    if own.mode == "distill":
        from ddim_jax.training.students import check_given

        check_given(given)
    of_run = own.mode in _ON_A_RUN and not (own.mode == "evaluate" and values.eval.images)
    if of_run and _has_config(own.workdir):
        return _config_on_run(values, own, given), own
    return from_config_dict(values, given), own


def _given_keys(own: flags.FlagValues) -> set[str]:
    """The config's keys that the command line gives, dotted."""
    return {name.removeprefix("config.") for name in own if name.startswith("config.") and own[name].present}


def _config_on_run(values: ConfigTree, own: flags.FlagValues, given: Collection[str]) -> Config:
    """The config of a job on a trained model: what decided the training is the run's."""
    from ddim_jax.workdir import binding_values

    flag = typing.cast(typing.Any, own["config"])
    merged = values.copy_and_resolve_references()
    with merged.unlocked(), merged.ignore_type():
        for key, value in binding_values(own.workdir, flag.override_values).items():
            group, _, name = key.rpartition(".")
            (merged[group] if group else merged)[name] = value
    return from_config_dict(merged, given)


def _with_home(argument: str) -> str:
    """The argument with the user's home folder for ``~``, which a shell leaves as it is in ``--workdir=~/runs``."""
    name, equals, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if equals and name.lstrip("-") in ("config", "workdir") else argument


def _check_path(flag: str, path: str) -> None:
    """Refuses a path that nothing can lie at, before anything is done."""
    check_path(path, flag)
    scheme, separator, _ = path.partition("://")
    if not separator:
        return
    from etils import epath

    try:
        # Looks for the package that knows such addresses; without it this raises whatever that chooses to.
        epath.Path(path).exists()
    except ImportError as error:
        raise UserError(f"{flag}={path}: {error}; or name a folder of this machine") from error
    except KeyError as error:
        raise UserError(f"{flag}={path}: there is no file system for {scheme}://; name a folder") from error
    except Exception as error:
        # Their own errors, of the network or the account, have no common type.
        raise UserError(f"{flag}={path} cannot be reached: {type(error).__name__}: {error}") from error


def _take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The last value of a flag, None where it has none, and the arguments without it."""
    value, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, given = argument.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            rest.append(argument)
        elif equals:
            value = given
        else:
            try:
                value = next(arguments)
            except StopIteration:
                rest.append(argument)
    return value, rest


def _has_config(workdir: str | None) -> bool:
    """Whether a run has been started there; its module is imported here, since it is not needed to find a mistake."""
    from ddim_jax.workdir import config_path

    return bool(workdir) and config_path(workdir).exists()


def _tree_of_run(workdir: str | None) -> ConfigTree | None:
    """The config of the run in a workdir; None where there is none."""
    from ddim_jax.workdir import read_config

    return to_config_dict(read_config(workdir)) if workdir and _has_config(workdir) else None


def _tree_of_teacher(teacher: str) -> ConfigTree:
    """The config of the network that a student is to learn from."""
    _check_path("distill.teacher", teacher)
    from ddim_jax.training.teacher import config_of_teacher

    try:
        return to_config_dict(config_of_teacher(teacher))
    except UserError as error:
        raise UserError(f"distill.teacher={teacher}: {error}") from error


def _tree_of_json(path: str) -> ConfigTree:
    """The config that a run has written."""
    from etils import epath

    from ddim_jax.workdir import config_of_file

    # To epath a pipe is a file as well, which would wait for whoever writes to it.
    is_file = epath.Path(path).exists() if "://" in path else pathlib.Path(path).is_file()
    if not is_file:
        raise UserError(f"--config={path} is not a file; name the config.json of a run")
    try:
        return to_config_dict(config_of_file(epath.Path(path), "name the config.json of a run"))
    except UserError as error:
        raise UserError(f"--config={error}") from error


def _find_config_file(named: str) -> tuple[str, str]:
    """The Python file that --config names, by its path or as one of the package's, and ``:VARIANTS`` or nothing."""
    name, colon, variants = named.partition(":")
    shipped = shipped_configs()
    file = pathlib.Path(name)
    if file.is_file():
        if not os.access(file, os.R_OK):
            raise UserError(f"--config={name} cannot be read: ask its owner for the permission")
        return name, colon + variants
    if name in shipped:
        return str(shipped[name]), colon + variants
    there = [str(other) for other in sorted(file.parent.glob("*.py")) if other.is_file()]
    close = difflib.get_close_matches(name, there, n=1) or difflib.get_close_matches(file.stem, shipped, n=1)
    hint = f"did you mean {close[0]}?" if close else f"name a config file, or one of {', '.join(shipped)}"
    raise UserError(f"--config={name} is not a file; {hint}")


def _check_override_keys(argv: Sequence[str]) -> None:
    for argument in argv[1:]:
        name = argument.lstrip("-").split("=")[0].removeprefix("no")
        if argument.startswith("-") and name.startswith("config."):
            check_key(name.removeprefix("config."))


def _flag_error(own: flags.FlagValues, error: flags.Error) -> UserError:
    """Says what absl has against a flag, in the config's own words where it is one of the config's keys."""
    if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config."):
        return UserError(_NO_CONFIG)
    override = re.match(r"flag --(config\.([\w.]+))=(.*?): ", str(error), re.DOTALL)
    if override and override[1] in own:
        value = override[3] if len(override[3]) <= _SHOWN else f"{override[3][:_SHOWN]}..."
        return UserError(f"{override[2]}: expected {own[override[1]].flag_type()}, got '{value}'")
    return UserError(_shortened(str(error)))


def _shortened(text: str) -> str:
    return text if len(text) <= 6 * _SHOWN else f"{text[: 3 * _SHOWN]} ... {text[-3 * _SHOWN :]}"


def _config_file_error(path: str | None, error: BaseException) -> UserError:
    """Says what the config file raised, and in which of its lines."""
    while any(beginning in str(error) for beginning in _HIDING):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = frames[-1].lineno if frames else None
    reason = str(error)
    if isinstance(error, SyntaxError):
        line, reason = error.lineno, error.msg
    elif error.args and isinstance(error.args[0], KeyError):
        # A ConfigDict's error about an unknown key lists all the keys there are before it says which is meant.
        reason = " ".join(part.split(" Other fields present")[0] for part in error.args[0].args[0].splitlines())
    where = path if line is None else f"{path}, line {line}"
    if isinstance(error, SystemExit):
        reason = f"it ends the program (status {shown(error.code)}) instead of returning a config"
    return UserError(
        f"config file {where}: {type(error).__name__}: {reason}" if path else f"{type(error).__name__}: {reason}"
    )


def _help() -> str:
    own = _define_flags([])
    listed = "\n".join(
        f"  --{name}\n      {own[name].help}"
        for name in ("config", "workdir", "mode", *_PROCESS_FLAGS, "stopped_status")
    )
    modes = "\n".join(f"  {mode:<12} {_mode_help(mode)}" for mode in choices(Mode))
    first_line = (__doc__ or "").splitlines()[0]
    return f"{first_line}\n\n{listed}\n\nmodes (--mode=MODE --help lists the keys of one):\n\n{modes}"


def _help_of_mode(mode: str) -> str:
    """What a mode does, and the keys of the config that are its own, with defaults."""
    if mode not in choices(Mode):
        raise UserError(f"--mode={mode}: no such mode; choose from: {', '.join(choices(Mode))}")
    width = max(60, min(120, shutil.get_terminal_size().columns))
    lines = [f"--mode={mode}: {_mode_help(mode)}", ""]
    for group in documentation.GROUPS_OF_MODES[mode]:
        lines += [f"--config.{group}.KEY=VALUE", ""]
        for known in documentation.documented_keys(group):
            bounds = f"; {known.bounds}" if known.bounds else ""
            kind = f"{known.kind}{bounds}, default {known.default}"
            lines += _wrapped(f"{known.name}  ({kind})", width, "  ", "    ")
            lines += _wrapped(known.text, width, "      ", "      ")
        lines.append("")
    return "\n".join(lines[:-1])


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    # Names are pasted into commands: they stay whole.
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=False
    )


def _mode_help(mode: str) -> str:
    """What a mode does: the first line of its job's file, which is read as text, since importing a job imports JAX."""
    source = importlib.resources.files("ddim_jax.jobs").joinpath(f"{_JOBS.get(mode, mode)}.py").read_bytes()
    first_line = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return first_line.removeprefix(f"``--mode={mode}``: ").replace("``", "").rstrip(".")


def cpu_devices(config: Config, cores: int) -> int:
    """Devices to share a CPU among: ``train.cpu_devices``, or one for each core.

    Of a large network, of which each device holds a copy, no more than two.
    """
    return config.train.cpu_devices or min(cores, 8 if config.model.channels <= 64 else 2)


def _check_environment() -> None:
    """Refuses a number of CPU devices that JAX would hang or end in a traceback at."""
    known = dict(keys_of(Config))["train.cpu_devices"].range
    given = os.environ.get("JAX_NUM_CPU_DEVICES", "-1")  # which JAX takes for none given
    try:
        number = int(given)
    except ValueError:
        number = None
    if number is None or not (number == -1 or (known is not None and known.holds(number))):
        raise UserError(f"JAX_NUM_CPU_DEVICES={shown(given)}: {known}; leave it unset to let train.cpu_devices decide")


def _report(error: BaseException) -> int:
    """Prints what went wrong, what is not ours or Ctrl-C as one line; returns the exit status."""
    if isinstance(error, KeyboardInterrupt) or process.is_interrupted():
        print(process.INTERRUPTED, file=sys.stderr)
        return process.INTERRUPTED_STATUS
    if not isinstance(error, UserError) and (failure := failed_write(error)) is not None:
        error = write_error(failure.filename or "what the run prints, or one of its files,", failure)
    if isinstance(error, UserError):
        with contextlib.suppress(OSError):  # what is printed may go to the disk that is full
            print(f"ddim_jax: error: {on_one_line(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
        return error.status
    if isinstance(error, MemoryError):
        reason = str(error) or "there is no more"
        print(
            f"ddim_jax: error: out of memory: {reason}; ask for less at a time, or end other programs", file=sys.stderr
        )
        return 1
    traceback.print_exception(error)
    return 1


def _output_is_closed() -> bool:
    """Whether nobody reads what is printed any more; the rest of it then goes nowhere, without complaint."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a notebook's has no number
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(events & select.POLLERR for _, events in poll.poll(0)):
                closed = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
    return closed


class _LogLines(logging.Formatter):
    """Lines of the log: names of files that stand in ours cannot break them, or steer the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return on_one_line(line) if record.name.startswith("ddim_jax") else line


def run(argv: Sequence[str] | None = None) -> int:
    """Parses flags, runs the job, and turns a user's mistake into one line.

    Args:
        argv: program name and arguments; ``sys.argv`` when None.

    Returns:
        The exit status: 0 for success, 1 when another process of the run was lost, a file could not be written or no
        memory is left, 2 for a user's mistake, 130 after Ctrl-C, also where training has saved its step because of it,
        141 when whoever read the output has closed it (``| head``), and what ``--stopped_status`` says, else 0, where
        SIGTERM or SIGHUP stopped training. Other errors propagate.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLines(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    argv = sys.argv if argv is None else argv
    try:
        if {"-h", "--help"} & set(argv[1:]):
            mode, _ = _take_flag(argv, "mode")
            print(_help_of_mode(mode) if mode else _help(), flush=True)
            return 0
        config, own = parse(argv)
        # Some libraries refuse to work as long as absl's own flags are unparsed.
        flags.FLAGS.mark_as_parsed()
        _check_environment()
        # Imports JAX, which takes a while.
        with process.importing():
            from ddim_jax import parallel
            from ddim_jax.compilation import keep_compiled_programs
            from ddim_jax.writers import say

        keep_compiled_programs(config.train.compilation_cache)
        parallel.share_cpu(cpu_devices(config, parallel.usable_cores()))

        parallel.initialize(
            own.coordinator,
            own.num_processes,
            own.process_id,
            automatic=own.distributed == "auto",
            deterministic=config.train.deterministic,
            stop_together=own.mode in _TRAINING,
            wait_seconds=own.wait_seconds,
        )
        if parallel.is_main_process():
            for key, (of_preset, ours) in beside_preset(config, _given_keys(own)).items():
                say(f"{key}={ours!r}, as given, instead of the {of_preset!r} of sample.preset={config.sample.preset}")
        with parallel.failing_fast(_report):
            complete = _run_job(own.mode, config, own.workdir)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return 141
    except (UserError, KeyboardInterrupt, MemoryError) as error:
        return _report(error)
    except Exception as error:
        # C code that is interrupted may raise anything.
        if not process.is_interrupted() and failed_write(error) is None:
            raise
        return _report(error)
    if complete:
        return 0
    return process.INTERRUPTED_STATUS if process.was_asked_to_stop() else own.stopped_status


def command() -> int:
    """The program ``ddim_jax``, or ``python -m ddim_jax``: :func:`run`, with huge pages where that is faster."""
    restart_with_huge_pages(*process.PROGRAMS)
    return run()


if __name__ == "__main__":
    sys.exit(command())
