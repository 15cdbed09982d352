"""Signals that ask training to save and stop, without training."""

import os
import signal

import pytest

from ddim_jax import parallel
from ddim_jax.training.stop_signals import catch_stop_signals


@pytest.fixture
def handlers():
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_process_is_told_by_the_event(handlers, number):
    with catch_stop_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set() and stop.by == number.name
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with catch_stop_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.is_set()


def test_of_several_processes_jax_takes_sigterm_and_is_passed_sighup(handlers, monkeypatch):
    passed = []
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(os, "kill", lambda process, number: passed.append((process, number)))
    with catch_stop_signals() as stop:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.raise_signal(signal.SIGHUP)
    assert passed == [(os.getpid(), signal.SIGTERM)] and stop.by == "SIGHUP" and not stop.is_set()
