"""``--mode=distill``: students are workdirs like any other, and their runs are not harmed by kills."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import jax.monitoring
import numpy as np
import pytest
from runs import checkpoint_steps, completed, digest, final_state, half_written, losses, reached, started
from small import changed, plain_digits, small_digits

import ddim_jax
from ddim_jax import main
from ddim_jax.config import DistillConfig
from ddim_jax.images import png_shape
from ddim_jax.jobs.train import train
from ddim_jax.training.checkpoint import restore_trained
from ddim_jax.training.students import resumed_config
from ddim_jax.workdir import read_config
from ddim_jax.writers import MetricWriter

FEW = ("--config.distill.first_steps=4", "--config.distill.rounds=2", "--config.distill.updates=3")
QUICK = (*FEW, "--config.distill.measure_num=0", "--config.train.log_every=1", "--config.train.checkpoint_every=2")


def argv(workdir, teacher, *more):
    return ["--mode=distill", f"--workdir={workdir}", f"--config.distill.teacher={teacher}", *QUICK, *more]


def distilled(workdir, teacher, *more):
    assert main.run(["main", *argv(workdir, teacher, *more)]) == 0
    return workdir


def refused(capsys, workdir, teacher, *more):
    """The one line of a refusal, after which nothing is written."""
    before = sorted(pathlib.Path(workdir).rglob("*")) if pathlib.Path(workdir).exists() else None
    assert main.run(["main", *argv(workdir, teacher, *more)]) == 2
    after = sorted(pathlib.Path(workdir).rglob("*")) if pathlib.Path(workdir).exists() else None
    assert before == after
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ddim_jax: error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(changed(small_digits(), train__sample_num=4), workdir)
    return workdir


@pytest.fixture(scope="module")
def student(tmp_path_factory, teacher):
    return distilled(tmp_path_factory.mktemp("student") / "run", teacher)


def test_a_student_is_a_workdir_like_any_other(student, teacher, capsys):
    config, of_teacher = read_config(student), read_config(teacher)
    assert config.model == dataclasses.replace(of_teacher.model, dropout=0.0)
    assert (config.data, config.diffusion) == (of_teacher.data, of_teacher.diffusion)
    assert (config.sample.sampler, config.sample.steps, config.sample.spacing) == ("ddim", 1, "trailing")
    assert config.distill.teacher_step == 2
    assert len(config.distill.teacher_sha256) == 64
    pipe = ddim_jax.load(student)
    assert pipe.step == 6
    assert pipe.sample(2).shape == (2, 8, 8, 1)
    assert main.run(["main", "--mode=sample", f"--workdir={student}", "--config.sample.num=2"]) == 0
    assert main.run(["main", "--mode=describe", f"--workdir={student}"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"distilled from {teacher}, step 2, sha256 {config.distill.teacher_sha256[:12]}: progressive" in told
    assert "2 rounds of 3 steps, 4 steps become 1" in told


def test_checkpoints_hold_the_teacher_and_the_student_of_each_round(student, teacher):
    assert set(checkpoint_steps(student)) >= {0, 3, 6}
    of_teacher = restore_trained(teacher).state.ema_params
    first = restore_trained(student, 0).state
    for params in (first.params, first.ema_params):
        for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(of_teacher), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [step for step, _ in losses(student)] == [1, 2, 3, 4, 5, 6]
    assert png_shape(student / "samples" / "rounds.png") is not None


def test_the_learning_rate_falls_in_each_round(student):
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    rate = read_config(student).distill.learning_rate
    np.testing.assert_allclose(rates, 2 * [rate, rate * 2 / 3, rate / 3], rtol=1e-6)


@pytest.mark.slow
def test_one_program_serves_all_rounds(tmp_path, teacher):
    """Two rounds compile what one does."""

    def compiled(workdir, *more):
        events = []

        def listen(event, duration, **facts):
            if event == "/jax/core/compile/jaxpr_to_mlir_module_duration" and duration > 0.02:
                events.append(event)  # a program, no single operation

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            distilled(workdir, teacher, *more)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        return len(events)

    one = compiled(tmp_path / "one", "--config.distill.rounds=1")
    assert compiled(tmp_path / "two") == one > 0


@pytest.mark.parametrize("moment", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 4))])
def test_stopped_runs_go_on_bit_by_bit_without_their_teacher(tmp_path, teacher, student, monkeypatch, capsys, moment):
    """In the midst of a round, at its end, and in the first step of the next."""
    workdir = tmp_path / "run"
    gone = shutil.copytree(teacher, tmp_path / "teacher")
    write = MetricWriter.scalars

    def terminated(self, step, values):
        write(self, step, values)
        if step == moment:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricWriter, "scalars", terminated)
    distilled(workdir, gone)
    assert "stopped by SIGTERM" in capsys.readouterr().err
    monkeypatch.setattr(MetricWriter, "scalars", write)
    shutil.rmtree(gone)
    distilled(workdir, gone)
    assert "the teacher is not there any more" in capsys.readouterr().err
    assert digest(final_state(workdir)) == digest(final_state(student))
    assert losses(workdir) == losses(student)


@pytest.mark.slow
def test_more_rounds_go_on(tmp_path, teacher, student):
    workdir = tmp_path / "run"
    gone = shutil.copytree(teacher, tmp_path / "teacher")
    distilled(workdir, gone, "--config.distill.rounds=1")
    of_one_round = png_shape(workdir / "samples" / "rounds.png")
    shutil.rmtree(gone)
    distilled(workdir, gone, "--config.distill.rounds=2")
    assert digest(final_state(workdir)) == digest(final_state(student))
    config = read_config(workdir)
    assert (config.train.steps, config.sample.steps) == (6, 1)
    assert png_shape(workdir / "samples" / "rounds.png") != of_one_round


@pytest.mark.slow
def test_students_that_replaced_a_run_go_on_without_their_teacher(tmp_path, teacher):
    """The run's config says that it replaced another, and its sampler is the student's, which adds noise."""
    gone = shutil.copytree(teacher, tmp_path / "teacher")
    workdir = shutil.copytree(teacher, tmp_path / "run")
    flags = ("--config.distill.method=consistency", "--config.train.overwrite=true")
    distilled(workdir, gone, *flags, "--config.distill.rounds=1")
    assert main.run(["main", "--mode=distill", f"--workdir={workdir}"]) == 0
    shutil.rmtree(gone)
    distilled(workdir, gone, *flags)
    assert checkpoint_steps(workdir)[-1] == read_config(workdir).train.steps == 6


def test_jobs_on_a_student_take_any_config(student):
    """Whose own number of rounds would not go together with the student's steps."""
    config, _ = main.parse(["main", "--mode=sample", f"--workdir={student}", "--config=digits"])
    assert (config.distill.first_steps, config.distill.rounds) == (4, 2)


def test_a_config_leaves_open_what_a_student_has_begun_with(student):
    begun = read_config(student)
    named = dataclasses.replace(DistillConfig(), teacher=begun.distill.teacher, first_steps=4, rounds=2)
    named = dataclasses.replace(named, measure_num=begun.distill.measure_num)
    left_open = dataclasses.replace(begun, distill=named, data=dataclasses.replace(begun.data, mean=(), std=()))
    assert resumed_config(left_open, begun) == begun


@pytest.mark.slow
def test_a_teacher_that_has_changed_is_refused(tmp_path, teacher, capsys):
    copy, workdir = shutil.copytree(teacher, tmp_path / "teacher"), tmp_path / "student"
    distilled(workdir, copy, "--config.distill.rounds=1")
    capsys.readouterr()
    shutil.rmtree(copy)
    other = dataclasses.replace(changed(small_digits(), train__sample_num=4), seed=1)
    train(other, copy)
    capsys.readouterr()
    line = refused(capsys, workdir, copy)
    assert "has changed since this student began" in line
    assert "name another --workdir" in line


REFUSALS = [
    (("--config.distill.first_steps=6",), "cannot be halved distill.rounds=2 times; use a multiple of 4"),
    (("--config.sample.sampler=ddpm_large",), "this sampler adds noise to them"),
    (("--config.sample.eta=1",), "this sampler adds noise to them"),
    (("--config.model.channels=64",), "is another network than the config's: model.channels (there 16, here 64)"),
    (("--config.distill.objective=eps",), "needs a student that predicts one of v, x0, flow"),
    (("--config.distill.guidance_scale=2",), "guidance needs a teacher that draws from conditions"),
    (("--config.train.learning_rate=1e-3",), "train.learning_rate says nothing to --mode=distill; use distill.lea"),
    (("--config.train.steps=9",), "train.steps says nothing to --mode=distill; use distill.updates and distill.rounds"),
    (("--config.distill.teacher_step=1000",), "no checkpoint of step 1000"),
    (("--config.sample.clip=keep_eps",), "two of the teacher's steps are none of DDIM's; use rederive_eps or none"),
    (("--config.eval.steps=(1,2)",), "eval.steps says nothing to --mode=distill; use distill.measure_num, or"),
    (("--config.distill.huber=1",), "distill.huber=1.0: says nothing to distill.method=progressive"),
    (("--config.distill.measure_num=3", "--config.eval.extractor=pixels"), "more than so many images, on both sides"),
    (
        ("--config.distill.method=consistency", "--config.distill.objective=x0"),
        "distill.method=consistency needs a student that predicts one of v, flow, eps",
    ),
    (
        ("--config.distill.method=easy_consistency", "--config.distill.guidance_scale=2"),
        "never asks the teacher, so that its guidance cannot be learned",
    ),
]


@pytest.mark.parametrize(("flags", "expected"), REFUSALS, ids=[flags[0][9:] for flags, _ in REFUSALS])
def test_refusals(tmp_path, teacher, capsys, flags, expected):
    assert expected in refused(capsys, tmp_path / "run", teacher, *flags)


def test_a_teacher_in_the_workdir_itself(tmp_path, teacher, capsys):
    """Even to be set aside: the student could not be told from it later."""
    copy = shutil.copytree(teacher, tmp_path / "copy")
    for named in (copy, copy / "checkpoints" / "2"):
        line = refused(capsys, copy, named, "--config.train.overwrite=true")
        assert "is the workdir of the student itself" in line


def test_a_teacher_at_an_address_that_nobody_knows(tmp_path, capsys):
    assert "distill.teacher=nowhere://teacher: there is no" in refused(capsys, tmp_path / "run", "nowhere://teacher")


def test_a_teacher_that_is_none(tmp_path, capsys):
    assert "no workdir of a trained or imported network" in refused(capsys, tmp_path / "run", tmp_path / "nothing")
    assert main.run(["main", "--mode=distill", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--config is missing" in capsys.readouterr().err


def test_training_refuses_the_workdir_of_a_student(student, capsys):
    assert main.run(["main", f"--workdir={student}"]) == 2
    assert "is a student's, which --mode=distill trains" in capsys.readouterr().err


def test_distillation_refuses_the_workdir_of_a_run(tmp_path, teacher, capsys):
    copy = shutil.copytree(teacher, tmp_path / "copy")
    assert "holds a run of another config" in refused(capsys, copy, teacher)


@pytest.mark.slow
def test_a_student_can_be_a_teacher(tmp_path, student, capsys):
    """Of the steps that it has learned; after its first round these are two."""
    flags = ("--config.distill.rounds=1", "--config.distill.first_steps=2")
    assert "which draws in 1 steps: distill.first_steps=2 asks it for" in refused(
        capsys, tmp_path / "run", student, *flags
    )
    workdir = distilled(tmp_path / "run", student, *flags, "--config.distill.teacher_step=3")
    assert read_config(workdir).distill.teacher_step == 3
    assert read_config(workdir).distill.first_steps == 2
    assert "resuming at step 3 of 3" in (distilled(workdir, f"{student}/", *flags) and capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["easy_consistency", "consistency"])
def test_consistency_models_draw_in_any_number_of_steps(tmp_path, teacher, method, monkeypatch):
    """Stopped and started again, they are the same."""
    flags = (f"--config.distill.method={method}", "--config.distill.huber=0.01")
    reference = distilled(tmp_path / "reference", teacher, *flags)
    config = read_config(reference)
    assert (config.sample.sampler, config.sample.steps, config.eval.steps) == ("consistency", 2, (1, 2, 4))
    pipe = ddim_jax.load(reference)
    assert all(len(pipe.sample(2, steps=steps)) == 2 for steps in (1, 4))
    assert png_shape(reference / "samples" / "rounds.png") is not None
    write, workdir = MetricWriter.scalars, tmp_path / "run"

    def terminated(self, step, values):
        write(self, step, values)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricWriter, "scalars", terminated)
    distilled(workdir, teacher, *flags)
    monkeypatch.setattr(MetricWriter, "scalars", write)
    distilled(workdir, teacher, *flags)
    assert digest(final_state(workdir)) == digest(final_state(reference))


@pytest.mark.slow
def test_a_teacher_of_eps_teaches_v_first(tmp_path, teacher):
    """Then an imported one does as well: only its workdir matters."""
    of_eps = tmp_path / "teacher"
    train(
        changed(plain_digits(), diffusion__schedule="linear", diffusion__objective="eps", train__sample_num=4), of_eps
    )
    workdir = distilled(tmp_path / "run", of_eps)
    config = read_config(workdir)
    assert config.diffusion.objective == "v"
    assert config.distill.teacher_objective == "eps"
    assert checkpoint_steps(workdir)[-1] == config.train.steps == 9  # a round more
    assert len(ddim_jax.load(workdir).sample(2)) == 2


OF_EDM = {
    "diffusion__schedule": "edm",
    "diffusion__time_sampling": "lognormal",
    "diffusion__sigma_data": 0.75,
    "data__mean": (0.305,),
    "data__std": (0.375,),
    "sample__sampler": "edm",
    "sample__spacing": "linspace",
}
OF_FLOW = {
    "diffusion__schedule": "flow",
    "diffusion__objective": "flow",
    "diffusion__time_sampling": "logitnormal",
    "sample__spacing": "linspace",
}
OF_KERAS = {
    "model__name": "residual_unet",
    "model__attention_resolutions": (),
    "diffusion__schedule": "offset_cosine",
    "diffusion__objective": "eps",
    "diffusion__time_sampling": "continuous",
    "diffusion__loss": "mae",
}
OF_PICTURES = {
    "data__condition": "downsample",
    "data__condition_factor": 2,
    "model__condition": ("image",),
    "train__condition_dropout": (0.1,),
}


KINDS = {
    "edm": (OF_EDM, "progressive"),
    "flow": (OF_FLOW, "consistency"),
    "keras": (OF_KERAS, "progressive"),
    "pictures": (OF_PICTURES, "consistency"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("told", "method"), KINDS.values(), ids=KINDS.keys())
def test_teachers_of_all_kinds(tmp_path, told, method):
    """Real levels, pure noise, batch norms and continuous time, and pictures that images are drawn from."""
    other = tmp_path / "teacher"
    train(changed(small_digits(), train__sample_num=4, train__batch_size=8, **told), other)
    workdir = distilled(tmp_path / "run", other, f"--config.distill.method={method}")
    config = read_config(workdir)
    assert config.diffusion.objective == ("v" if told is OF_KERAS else config.distill.teacher_objective)
    assert all(np.isfinite(loss) for _, loss in losses(workdir))
    pipe = ddim_jax.load(workdir)
    condition = np.zeros((2, 4, 4, 1), np.uint8) if told is OF_PICTURES else None
    assert len(pipe.sample(2, condition=condition)) == 2


@pytest.mark.slow
def test_guidance_is_learned_for_good(tmp_path, capsys):
    """Unless nothing is said of it, that of the teacher; and then the student can not be guided."""
    told = changed(
        small_digits(), model__num_classes=10, train__label_dropout=0.2, train__sample_num=4, sample__guidance_scale=2.0
    )
    guided = tmp_path / "teacher"
    train(told, guided)
    workdir = distilled(tmp_path / "run", guided)
    config = read_config(workdir)
    assert config.distill.guidance_scale == 2
    assert config.sample.guidance_scale == 1
    assert "guided at 2" in capsys.readouterr().err
    assert len(ddim_jax.load(workdir).sample(2, label=3)) == 2
    argv_ = ["main", "--mode=sample", f"--workdir={workdir}", "--config.sample.guidance_scale=3"]
    assert main.run(argv_) == 2
    assert "the student has learned a guidance of 2.0" in capsys.readouterr().err
    between = distilled(
        tmp_path / "between", guided, "--config.distill.guidance_scale=3", "--config.distill.guidance_levels=(100,600)"
    )
    assert read_config(between).distill.guidance_levels == (100, 600)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_any_moment_it_ends_the_same(tmp_path, teacher, devices):
    """SIGKILL in the midst of rounds, while a checkpoint is written, and between rounds."""

    def own(workdir):
        return argv(workdir, teacher, "--config.distill.updates=8", "--config.train.batch_size=4")

    reference, workdir = tmp_path / "reference", tmp_path / "run"
    completed(reference, own=own(reference), devices=devices)
    for number, moment in enumerate((3, 8, 12)):
        with started(workdir, own=own(workdir), devices=devices) as (run,):
            run.wait_for(lambda moment=moment: reached(workdir, moment))
            if number == 1:
                run.wait_for(lambda: bool(half_written(workdir)) or reached(workdir, 9))
            run.process.kill()
    completed(workdir, own=own(workdir), devices=devices)
    assert digest(final_state(workdir)) == digest(final_state(reference))
    assert losses(workdir) == losses(reference)


@pytest.mark.slow
def test_devices_and_processes_share_a_batch(tmp_path, teacher):
    """Eight devices, and two processes of one, learn what one device does, but for rounding."""
    ends = []
    for name, shares in (("one", {}), ("devices", {"devices": 8}), ("processes", {"processes": 2})):
        workdir = tmp_path / name
        completed(workdir, own=argv(workdir, teacher, "--config.train.batch_size=8"), **shares)
        assert png_shape(workdir / "samples" / "rounds.png") is not None
        ends.append(np.asarray(losses(workdir)))
    np.testing.assert_allclose(ends[1], ends[0], rtol=2e-3)
    np.testing.assert_allclose(ends[2], ends[0], rtol=2e-3)
