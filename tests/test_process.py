"""Ctrl-C ends the program with one line and status 130, whatever it is at; in other programs it is left alone."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from runs import checkpoint_steps, completed, losses, reached, started

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
    process._asked.clear()


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


def test_the_first_asks_where_a_job_can_be_asked(program):
    process.end_at_once_on_interrupt()
    asked = []
    with process.interrupts_raised():
        with process.interrupt_asks(lambda: asked.append(signal.getsignal(signal.SIGINT))):
            signal.raise_signal(signal.SIGINT)
            # The second ends the program.
            assert asked == [process._end]
        assert signal.getsignal(signal.SIGINT) is process._raise
    assert process.was_asked_to_stop() and not process.is_interrupted()


def test_in_other_programs_nothing_asks(program, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    process.end_at_once_on_interrupt()
    with process.interrupts_raised(), process.interrupt_asks(lambda: None):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_training_that_is_interrupted_saves_its_step(tmp_path):
    with started(tmp_path / "run", "--config.train.steps=100000") as (run,):
        run.wait_for(lambda: reached(tmp_path / "run", 3))
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
    saved = checkpoint_steps(tmp_path / "run")[-1]
    assert f"stopped by SIGINT after saving step {saved}; start the same command again" in run.output
    assert losses(tmp_path / "run")[-1][0] == saved and "Traceback" not in run.output


@pytest.mark.slow
def test_a_job_that_saves_nothing_ends_without_traceback(tmp_path):
    completed(tmp_path / "run", "--config.train.steps=1")
    many = ("--mode=sample", "--config.sample.num=100000", "--config.sample.batch_size=4")
    with started(tmp_path / "run", "--config.train.steps=1", *many) as (run,):
        run.wait_for(lambda: any((tmp_path / "run").glob("sample/*/*/[0-9]*.png")))
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
    assert run.output.endswith("ddim_jax: interrupted\n") and "Traceback" not in run.output


def test_the_garbage_collector_passes_over_what_the_program_imports(monkeypatch):
    before = gc.get_freeze_count()
    with process.importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ddim_jax.main"])
    try:
        with process.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
