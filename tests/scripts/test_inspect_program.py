"""The cost of compiled programs, as ``scripts/inspect_program.py`` reads it."""

import importlib
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from ddim_jax import parallel

ROOT = pathlib.Path(__file__).parents[2]
DEVICES, STEPS, SIDE = 4, 7, 5
SMALL = (
    f"--config={ROOT / 'configs' / 'digits.py'}:tiny",
    "--config.model.multipliers=(1,)",
    "--config.model.attention_resolutions=(8,)",
)

# What XLA's compiler for TPUs writes, shortened: it does not say how long a loop is.
TPU_PROGRAM = """\
HloModule jit_program

%fused (p.1: bf16[8,8]) -> bf16[8,8] {
  %p.1 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %add.1 = bf16[8,8]{1,0:T(8,128)(2,1)} add(%p.1, %p.1), backend_config={"estimated_cycles":"999"}
}

%body (b: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %x = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} fusion(%gte), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/while/body/\
UNet/up_0_block_1/conv_0/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"300"}}
  %sum = (f32[3]{0:T(128)}, /*index=1*/bf16[2,2]{1,0:T(8,128)(2,1)}) all-reduce-start(%x, %y), replica_groups={{0,1}}
  ROOT %done = (f32[3]{0:T(128)}, bf16[2,2]{1,0:T(8,128)(2,1)}) all-reduce-done(%sum)
}

%condition (c: (s32[], bf16[8,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (p: bf16[8,8]) -> bf16[8,8] {
  %loop = (s32[]{:T(128)}, bf16[8,8]{1,0:T(8,128)(2,1)}) while(%tuple), condition=%condition, body=%body
  ROOT %copy.2 = bf16[8,8]{1,0:T(8,128)(2,1)} copy(%out), backend_config={"window_config":{"estimated_cycles":"40"}}
}
"""


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("inspect_program")
    sys.path.remove(str(ROOT / "scripts"))


def test_loops_count_as_often_as_they_run(program):
    devices = jax.devices()[:DEVICES]

    def averages(start, x):
        def average(carry, row):
            return parallel.mean_over_devices(carry + row), None

        return jax.lax.scan(average, start, x)[0], parallel.mean_over_devices(jnp.sum(x))

    step = parallel.step_over_batch(averages, devices)
    start, x = jnp.zeros(SIDE), jnp.zeros((DEVICES, STEPS, SIDE))
    found = program.collectives(step.lower(start, x).compile().as_text())
    assert found == {"all-reduce": (STEPS + 1, 4 * (STEPS * SIDE + 1))}


def test_parts_of_a_tpu_program(program):
    executed = {each.name: each for each in program.instructions(TPU_PROGRAM)}
    assert {name: (each.cycles, each.times) for name, each in executed.items() if each.cycles} == {
        "x": (300, 10),
        "copy.2": (40, 1),
    }
    assert program.collectives(TPU_PROGRAM) == {"all-reduce": (10, 10 * (3 * 4 + 2 * 2 * 2))}
    assert program._layer(executed["x"]) == "conv"
    assert program._layer(executed["copy.2"]) == "(copy)"
    estimate = program._estimate(TPU_PROGRAM, "TPU v5 lite", by_hand=10**9, dtype="bfloat16")
    assert estimate["cycles"] == 3040
    assert estimate["layers"] == {"conv": 3000, "(copy)": 40}
    assert estimate["seconds"] == pytest.approx(3040 / 1.5e9)
    assert estimate["share_of_peak"] == pytest.approx(1e9 / (3040 / 1.5e9) / 197e12)


def test_command_reports_the_sampler(program, tmp_path, capsys):
    files = tmp_path / "program.json", tmp_path / "program.txt"
    options = ("--topology=cpu", "--devices=2", "--batch=3", "--program=sample", "--config.sample.steps=4")
    assert program.main([*SMALL, *options, f"--json={files[0]}", f"--hlo={files[1]}"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(files[0].read_text())
    assert (record["device"], record["devices"], record["images_per_device"]) == ("cpu", 2, 3)
    assert record["collectives"] == {}
    assert record["estimate"] is None
    assert record["memory"]["total"] > record["memory"]["arguments"] > 0
    config = program._read_config(SMALL, 1)
    assert record["flops_by_hand"] == 4 * program.flops_by_hand(config, "train", batch=1)
    assert (
        f"| operations, by hand (convolutions and matrix products) | {record['flops_by_hand'] / 1e9:.3f} GFLOP |"
        in printed
    )
    assert "sample, 3 images on each of 2 x cpu" in printed
    assert files[1].read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--topology=gpu:h100", "--topology=gpu:h100 is unknown; give cpu, local, or a TPU's, such as tpu:v5e:2x2"),
        ("--devices=1000", "--topology=local has 8 devices, not --devices=1000"),
        ("--config.sample.stepz=4", "stepz"),
    ],
)
def test_mistakes_are_one_line(program, capsys, option, complaint):
    assert program.main([*SMALL, option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inspect_program: error: ")
    assert complaint in line


def test_missing_compiler_for_tpus_is_one_line(program, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert program.main([*SMALL, "--topology=tpu:v5e:2x2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "inspect_program: error: --topology=tpu:... needs XLA's compiler for TPUs: pip install 'ddim_jax[tpu]'"
    ]
