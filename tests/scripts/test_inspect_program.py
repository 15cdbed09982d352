"""The cost of compiled programs, as ``scripts/inspect_program.py`` reads it."""

import importlib
import importlib.util
import json
import pathlib
import subprocess
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


# What its compiler for GPUs writes, shortened: kernels of 3x3, 16 channels to 8, and a product, each run once.
GPU_PROGRAM = """\
HloModule jit_program

%fused (p.0: bf16[2,8,8,16], p.1: f32[100,16]) -> f32[2,16] {
  %p.0 = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %p.1 = f32[100,16]{1,0} parameter(1)
  %slice = f32[2,16]{1,0} slice(%p.1), slice={[0:2], [0:16]}
  %convert = f32[2,8,8,16]{3,2,1,0} convert(%p.0)
  %reduce = f32[2,16]{1,0} reduce(%convert, %zero), dimensions={1,2}, to_apply=%add
  ROOT %sum = f32[2,16]{1,0} add(%reduce, %slice)
}

%product (p.2: f32[2,16], p.3: f32[16,4]) -> f32[2,4] {
  %p.2 = f32[2,16]{1,0} parameter(0)
  %p.3 = f32[16,4]{1,0} parameter(1)
  ROOT %dot = f32[2,4]{1,0} dot(%p.2, %p.3), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[2,8,8,16], k: bf16[8,3,3,16], y: f32[100,16], w: f32[16,4]) -> f32[2,4] {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %k = bf16[8,3,3,16]{3,2,1,0} parameter(1)
  %y = f32[100,16]{1,0} parameter(2)
  %w = f32[16,4]{1,0} parameter(3)
  %conv = (bf16[2,8,8,8]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/UNet/conv_0/conv"}
  %out = bf16[2,8,8,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %by_input = (bf16[2,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%out, %k), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %by_kernel = (bf16[8,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %out), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %sums = f32[2,16]{1,0} fusion(%x, %y), kind=kInput, calls=%fused, metadata={op_name="jit(f)/UNet/norm_0/reduce_sum"}
  ROOT %gemm = f32[2,4]{1,0} fusion(%sums, %w), kind=kCustom, calls=%product
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
    executed = {each.name: each for each in program.Program(TPU_PROGRAM).instructions()}
    assert {name: (each.cycles, each.times) for name, each in executed.items() if each.cycles} == {
        "x": (300, 10),
        "copy.2": (40, 1),
    }
    assert program.collectives(TPU_PROGRAM) == {"all-reduce": (10, 10 * (3 * 4 + 2 * 2 * 2))}
    assert program.layer_of(executed["x"]) == "conv"
    assert program.layer_of(executed["copy.2"]) == "(copy)"
    estimate = program._estimate(TPU_PROGRAM, "TPU v5 lite", by_hand=10**9, dtype="bfloat16")
    assert estimate["cycles"] == 3040
    assert estimate["layers"] == {"conv": 3000, "(copy)": 40}
    assert estimate["seconds"] == pytest.approx(3040 / 1.5e9)
    assert estimate["share_of_peak"] == pytest.approx(1e9 / (3040 / 1.5e9) / 197e12)


def test_costs_of_a_gpu_program(program):
    peak = program.known_device("NVIDIA H100 80GB HBM3")
    kernels = {each.instruction.name: each for each in program.roofline.kernels(GPU_PROGRAM, peak)}
    image, kernel, result = 2 * 8 * 8 * 16 * 2, 8 * 3 * 3 * 16 * 2, 2 * 8 * 8 * 8 * 2
    convolution = 2 * (2 * 8 * 8 * 8) * (3 * 3 * 16)
    assert {name: (each.flop, each.bytes) for name, each in kernels.items()} == {
        "conv": (convolution, image + kernel + result),
        "by_input": (convolution, image + kernel + result),
        "by_kernel": (convolution, image + kernel + result),
        # Of y it reads the slice.
        "sums": (0, image + 2 * 16 * 4 + 2 * 16 * 4),
        "gemm": (2 * 2 * 16 * 4, 2 * 16 * 4 + 16 * 4 * 4 + 2 * 4 * 4),
    }
    assert {each.dtype for each in kernels.values() if each.flop} == {"bfloat16", "float32"}
    for each in kernels.values():
        compute = each.flop / (0.8 * getattr(peak, each.dtype) * 1e12)
        assert each.seconds == pytest.approx(max(compute, each.bytes / 3.35e12))
    found = program._roofline(GPU_PROGRAM, "NVIDIA H100 80GB HBM3", by_hand=3 * convolution, dtype="bfloat16")
    assert found["kernels"] == 5
    assert found["flop_counted"] == 3 * convolution + 256
    assert found["bytes_beside_convolutions"] == kernels["sums"].bytes + kernels["gemm"].bytes
    assert set(found["kinds"]) == {
        *("convolution", "convolution, gradient of its input", "convolution, gradient of its kernel"),
        *("sums, with what is fused into them", "matrix product, Triton"),
    }
    assert found["layers"]["norm: sums, with what is fused into them"]["kernels"] == 1
    assert program._roofline(GPU_PROGRAM, "NVIDIA Unheard-of", by_hand=1, dtype="bfloat16") is None


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "collectives"), [("h100", {}), ("h100x2", {"all-reduce"})])
def test_a_tiny_step_compiles_for_gpus_that_are_not_there(tmp_path, devices, collectives):
    """In a process of its own, for the compiler stays with the process."""
    if importlib.util.find_spec("jax_plugins") is None:
        pytest.skip("XLA's compiler for NVIDIA GPUs is not installed: pip install 'ddim_jax[cuda]'")
    file = tmp_path / "program.json"
    command = [sys.executable, ROOT / "scripts" / "inspect_program.py", *SMALL, "--batch=2", f"--json={file}"]
    subprocess.run([*command, f"--topology=cuda:{devices}"], check=True, capture_output=True, cwd=ROOT)
    found = json.loads(file.read_text())
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert set(found["collectives"]) == set(collectives)
    limits = found["roofline"]
    assert limits["flop_counted"] == pytest.approx(found["flops_by_hand"], rel=0.05)
    assert limits["kernels"] > limits["kinds"]["convolution"]["kernels"] > 0
    assert limits["bytes"] > limits["bytes_beside_convolutions"] > 0


def test_command_reports_the_sampler(program, tmp_path, capsys):
    files = tmp_path / "program.json", tmp_path / "program.txt"
    options = ("--topology=cpu", "--devices=2", "--batch=3", "--program=sample", "--config.sample.steps=4")
    assert program.main([*SMALL, *options, f"--json={files[0]}", f"--hlo={files[1]}"]) == 0
    printed = capsys.readouterr().out
    record = json.loads(files[0].read_text())
    assert (record["device"], record["devices"], record["images_per_device"]) == ("cpu", 2, 3)
    assert record["collectives"] == {}
    assert record["estimate"] is None
    assert record["roofline"] is None
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
        ("--topology=gpu:h100", "--topology=gpu:h100 is unknown; give cpu, local, a TPU's, such as tpu:v5e:2x2, or"),
        (
            "--topology=cuda:h1",
            "--topology=cuda:h1 is unknown; give one of a100, h100, h200, or several such as h100x8",
        ),
        ("--topology=cuda:h100x12", "--topology=cuda:h100x12: more than 8 devices must be a multiple of 8"),
        ("--devices=1000", "--topology=local has 8 devices, not --devices=1000"),
        ("--config.sample.stepz=4", "stepz"),
    ],
)
def test_mistakes_are_one_line(program, capsys, option, complaint):
    assert program.main([*SMALL, option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inspect_program: error: ")
    assert complaint in line


@pytest.mark.parametrize(
    ("topology", "complaint"),
    [
        ("tpu:v5e:2x2", "--topology=tpu:... needs XLA's compiler for TPUs: pip install 'ddim_jax[tpu]'"),
        ("cuda:h100", "--topology=cuda:... needs XLA's compiler for NVIDIA GPUs: pip install 'ddim_jax[cuda]'"),
    ],
)
def test_missing_compiler_is_one_line(program, capsys, monkeypatch, topology, complaint):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert program.main([*SMALL, f"--topology={topology}"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"inspect_program: error: {complaint}"]
