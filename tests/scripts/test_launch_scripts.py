"""The scripts that start several processes, with stand-ins for the launchers and for Python."""

import os
import pathlib
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture
def launch(tmp_path):
    """Runs a script; returns its result and the calls of the stand-ins, an argument a line."""

    def run(script, *arguments, python="exit 0", **variables):
        stand_ins = {
            "python": python,
            "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
            "scontrol": "",
            "gcloud": "",
        }
        for name, text in stand_ins.items():
            stand_in = tmp_path / "bin" / name
            stand_in.parent.mkdir(exist_ok=True)
            note = f'printf "%s\\n" "$@" >> "{tmp_path}/{name}"'
            stand_in.write_text(f"#!/usr/bin/env bash\n{note}\n{text}\n")
            stand_in.chmod(0o755)
        result = subprocess.run(
            [SCRIPTS / script, *arguments],
            env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result, {
            name: (tmp_path / name).read_text().splitlines() for name in stand_ins if (tmp_path / name).exists()
        }

    return run


@pytest.mark.parametrize(
    "script", [path.name for path in SCRIPTS.glob("*.sh") if path.name != "try_lowest_versions.sh"]
)
def test_a_script_without_arguments_prints_its_usage(launch, script):
    result, calls = launch(script)
    assert (result.returncode, result.stdout, calls) == (2, "", {})
    assert result.stderr.startswith("usage: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "process", "ends_with", "requeued"),
    [(0, 0, 0, False), (75, 0, 0, True), (75, 1, 0, False), (1, 0, 1, False), (143, 1, 143, False)],
)
def test_slurm_queues_a_stopped_job_again_once(launch, status, process, ends_with, requeued):
    result, calls = launch(
        "launch_slurm.sh", "a b.py", "runs/x", "--config.seed=1",
        python=f"exit {status}", SLURM_PROCID=str(process), SLURM_JOB_ID="123",
    )  # fmt: skip
    assert result.returncode == ends_with, result.stderr
    assert calls["python"] == [
        *("-m", "ddim_jax.main", "--config=a b.py", "--workdir=runs/x", "--distributed=auto"),
        *("--stopped_status=75", "--config.seed=1"),
    ]
    assert calls.get("scontrol") == (["requeue", "123"] if requeued else None)


def test_the_shell_that_slurm_signals_too_outlives_the_run(launch):
    result, calls = launch(
        "launch_slurm.sh", "c.py", "runs/x",
        python="kill -TERM $PPID; sleep 0.2; exit 75", SLURM_PROCID="0", SLURM_JOB_ID="123",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert calls["scontrol"] == ["requeue", "123"]


@pytest.mark.parametrize("more", [[], ["--config.sample.steps=(1, 2)"]])
def test_a_tpu_pod_gets_the_arguments_and_no_others(launch, more):
    result, calls = launch("launch_tpu_pod.sh", "pod", "zone", "c.py", "gs://b/x", *more)
    assert result.returncode == 0, result.stderr
    (command,) = [call for call in calls["gcloud"] if call.startswith("--command=")]
    words = subprocess.run(
        ["bash", "-c", f'cd() {{ :; }}; python() {{ printf "%s\\n" "$@"; }}; {command.removeprefix("--command=")}'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["-m", "ddim_jax.main", "--config=c.py", "--workdir=gs://b/x", "--distributed=auto", *more]


def addresses(calls):
    return [word.removeprefix("--coordinator=") for word in calls["python"] if word.startswith("--coordinator=")]


# A stand-in that is asked for a port as for a process.
PROCESS = "[[ $1 == -c ]] && { echo 4321; exit; }; id=${*: -1}; id=${id#--process_id=}; "


@pytest.mark.parametrize(("variables", "port"), [({}, 4321), ({"PORT": "1234"}, 1234)])
def test_processes_meet_at_a_free_port_or_a_given_one(launch, variables, port):
    result, calls = launch("launch_processes.sh", "3", "--config=c.py", "--workdir=x", python=PROCESS, **variables)
    assert result.returncode == 0, result.stderr
    assert addresses(calls) == [f"localhost:{port}"] * 3
    assert calls["python"].count("--num_processes=3") == 3
    assert [calls["python"].count(f"--process_id={i}") for i in range(3)] == [1, 1, 1]


def test_the_first_bad_status_is_returned_and_survivors_are_ended(launch):
    python = (
        PROCESS + '((id == 1)) && { sleep 0.3; exit 7; }; trap "exit 5" TERM; for i in {1..300}; do sleep 0.1; done'
    )
    started = time.monotonic()
    result, _ = launch("launch_processes.sh", "2", "--config=c.py", "--workdir=x", python=python)
    assert result.returncode == 7, result.stderr
    assert time.monotonic() - started < 20


def test_a_survivor_that_heeds_no_signal_is_killed(launch):
    python = PROCESS + '((id == 1)) && exit 7; trap "" TERM; for i in {1..300}; do sleep 0.1; done'
    result, _ = launch("launch_processes.sh", "2", "--config=c.py", "--workdir=x", python=python, GRACE="1")
    assert result.returncode == 7, result.stderr


def test_who_is_asked_to_end_may_finish(launch):
    # The launcher is signalled by one of its processes; the other takes a while to save.
    python = (
        PROCESS + 'trap "sleep 1; exit 75" TERM; ((id == 1)) && kill -TERM $PPID; for i in {1..300}; do sleep 0.1; done'
    )
    result, _ = launch("launch_processes.sh", "2", "--config=c.py", "--workdir=x", python=python, GRACE="0")
    assert result.returncode == 75, result.stderr


@pytest.mark.parametrize("count", ["0", "-1", "two", "1e3"])
def test_a_count_that_is_none(launch, count):
    result, calls = launch("launch_processes.sh", count, "--config=c.py", "--workdir=x")
    assert (result.returncode, calls) == (2, {}) and f"not '{count}'" in result.stderr
