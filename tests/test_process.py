"""Ctrl-C ends the program with one line and status 130, whatever it is at; in other programs it is left alone."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from runs import Run, arguments

from ddim_jax import main, process

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def program(monkeypatch):
    """This process as the program."""
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ddim_jax.main"])
    yield
    signal.signal(signal.SIGINT, previous)
    process._received.clear()


class InterruptedWhenDeleted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_it_raises_in_a_job_alone(program):
    process.end_at_once_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is process._end
    with pytest.raises(KeyboardInterrupt), process.interrupts_raised():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is process._end
    assert process.is_interrupted()


def test_it_is_not_lost_where_nothing_can_be_raised(program):
    process.end_at_once_on_interrupt()
    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), process.interrupts_raised():
        InterruptedWhenDeleted()
        gc.collect()
        time.sleep(60)
    assert sys.unraisablehook is hook


def test_what_is_raised_from_then_on_is_its_doing(program, capsys):
    process.end_at_once_on_interrupt()
    with pytest.raises(ImportError), process.interrupts_raised():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("Encountered an error while initializing the extension.") from error
    assert main._report(ImportError("of C code")) == 130
    assert capsys.readouterr().err == "ddim_jax: interrupted\n"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_who_has_decided_is_left_alone(program, handler):
    signal.signal(signal.SIGINT, handler)
    process.end_at_once_on_interrupt()
    with process.interrupts_raised():
        assert signal.getsignal(signal.SIGINT) is handler


def test_other_programs_are_left_alone(program, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    process.end_at_once_on_interrupt()
    with process.interrupts_raised():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments_of_python", "is_it"),
    [
        (["-m", "ddim_jax.main", "--help"], True),
        (["-X", "dev", "-u", "-m", "ddim_jax"], True),
        (["-mddim_jax"], True),
        (["/venv/bin/ddim_jax", "--help"], True),
        (["-m", "pytest", "ddim_jax"], False),
        (["-m"], False),
        (["-c", "import ddim_jax.main", "ddim_jax"], False),
        ([], False),
    ],
)
def test_only_what_python_runs_is_the_program(monkeypatch, arguments_of_python, is_it):
    monkeypatch.setattr(sys, "orig_argv", ["python", *arguments_of_python])
    assert process.is_program(*process.PROGRAMS) == is_it


@pytest.mark.parametrize("module", ["ddim_jax", "ddim_jax.main"])
def test_before_the_job_the_program_ends_at_once(tmp_path, module):
    config = tmp_path / "config.py"
    # As C code that swallows what is raised in it.
    config.write_text(
        "import os, signal, time\n\ndef get_config():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        time.sleep(60)\n"
        "    except BaseException:\n        print('swallowed')\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", module, f"--config={config}", "--mode=describe"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "ddim_jax: interrupted\n")


@pytest.mark.slow
def test_training_ends_without_traceback(tmp_path):
    run = Run(arguments(tmp_path / "run", "--config.train.steps=100000"), tmp_path / "log", 1)
    run.wait_for(lambda: "training:" in run.output)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.output.endswith("ddim_jax: interrupted\n") and "Traceback" not in run.output
