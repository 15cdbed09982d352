"""What is settled before JAX starts: where compiled programs are kept, and among how many devices a CPU is shared."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest

from ddim_jax import compilation, main, parallel
from ddim_jax.config import Config, ModelConfig, TrainConfig

_PROGRAM = """
import sys, jax
from ddim_jax.compilation import keep_compiled_programs
from ddim_jax.parallel import share_cpu
share_cpu(3)
keep_compiled_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.local_device_count(), jax.jit(lambda x: x + 1)(1))
"""


def run_program(setting, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    command = [sys.executable, "-c", _PROGRAM, setting]
    return subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def test_compiled_programs_are_kept_in_the_cache(tmp_path):
    assert run_program("auto", DDIM_JAX_CACHE=str(tmp_path / "cache")) == ["3", "2"]
    assert files(tmp_path / "cache" / "compiled")
    run_program(str(tmp_path / "chosen"), DDIM_JAX_CACHE=str(tmp_path / "other"))
    assert files(tmp_path / "chosen")
    assert not files(tmp_path / "other")


def test_the_environment_decides_about_both(tmp_path):
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"), "JAX_NUM_CPU_DEVICES": "2"}
    assert run_program(str(tmp_path / "chosen"), **environment) == ["2", "2"]
    assert files(tmp_path / "mine")
    assert not files(tmp_path / "chosen")


def test_no_programs_are_kept_when_nothing_is_set(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("changed JAX's settings"))
    compilation.keep_compiled_programs("")


def test_fake_devices_of_a_flag_count_as_decided(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("changed JAX's settings"))
    parallel.share_cpu(2)


def test_programs_for_many_threads_are_made_only_for_many_threads(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 4)

    def flags(given, devices):
        monkeypatch.setenv("XLA_FLAGS", given)
        parallel.share_cpu(devices)
        return os.environ["XLA_FLAGS"]

    assert flags("", 2) == ""
    assert flags("--a=1", 4) == "--a=1 --xla_cpu_enable_concurrency_optimized_scheduler=false"
    chosen = "--xla_cpu_enable_concurrency_optimized_scheduler=true"
    assert flags(chosen, 4) == chosen


@pytest.mark.parametrize(
    ("channels", "cores", "devices"), [(32, 2, 2), (32, 64, 8), (64, 6, 6), (128, 2, 2), (128, 64, 2)]
)
def test_large_networks_are_not_copied_for_each_core(channels, cores, devices):
    config = Config(model=ModelConfig(channels=channels))
    assert main.cpu_devices(config, cores) == devices
    assert main.cpu_devices(dataclasses.replace(config, train=TrainConfig(cpu_devices=5)), cores) == 5
