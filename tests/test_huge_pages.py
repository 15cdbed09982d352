"""Asking for huge pages: when a process starts anew, and that the command does."""

import os
import pathlib
import subprocess
import sys

import pytest

from ddim_jax import huge_pages

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = ["/usr/bin/python", "-m", "ddim_jax.main", "--config=a b.py"]


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """What would have been executed, with its GLIBC_TUNABLES, on a system where asking helps."""
    made = []
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # set, so that what the code makes of it is undone
    monkeypatch.setattr(os, "execv", lambda path, argv: made.append((path, argv, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(sys, "orig_argv", ARGUMENTS)
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
    huge_pages._SETTING.write_text("always [madvise] never\n")
    return made


def test_the_same_command_starts_anew_once(restarts):
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert restarts == [(sys.executable, ARGUMENTS, "glibc.malloc.hugetlb=1")]


@pytest.mark.parametrize(
    "arguments", [["python3", "/venv/bin/ddim_jax", "--help"], ["python3", "-m", "ddim_jax", "--help"]]
)
def test_the_installed_command_starts_anew(restarts, monkeypatch, arguments):
    monkeypatch.setattr(sys, "orig_argv", arguments)
    huge_pages.restart_with_huge_pages("ddim_jax", "ddim_jax.main")
    assert restarts == [(sys.executable, arguments, "glibc.malloc.hugetlb=1")]


def test_the_process_goes_on_where_it_must_not_start_anew(restarts, monkeypatch):
    def refuse(path, argv):
        raise PermissionError

    monkeypatch.setattr(os, "execv", refuse)
    huge_pages.restart_with_huge_pages("ddim_jax.main")


def test_other_tunables_are_kept(restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert [tunables for _, _, tunables in restarts] == ["glibc.malloc.check=3:glibc.malloc.hugetlb=1"]


def test_who_has_decided_is_left_alone(restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert not restarts


def test_a_process_that_runs_something_else_is_left_alone(restarts, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook.py"])
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert not restarts


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_happens_where_the_kernel_does_not_wait_to_be_asked(restarts, setting):
    huge_pages._SETTING.unlink()
    if setting is not None:
        huge_pages._SETTING.write_text(setting)
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert not restarts


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2.5", None])
def test_nothing_happens_where_malloc_cannot_ask(restarts, monkeypatch, version):
    monkeypatch.setattr(os, "confstr", lambda name: version)
    huge_pages.restart_with_huge_pages("ddim_jax.main")
    assert not restarts


def test_the_command_runs_with_huge_pages_and_its_arguments(tmp_path):
    if not (huge_pages._kernel_waits_to_be_asked() and huge_pages._glibc_can_ask()):
        pytest.skip("huge pages cannot be asked for here")
    config = tmp_path / "my config.py"
    config.write_text("import os\n\ndef get_config():\n    raise ValueError(os.environ['GLIBC_TUNABLES'])\n")
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    result = subprocess.run(
        [sys.executable, "-m", "ddim_jax.main", f"--config={config}", "--mode=describe"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert result.returncode == 2
    assert "my config.py, line 4: ValueError: glibc.malloc.hugetlb=1" in result.stderr
