"""The Python API, as a library user meets it."""

import base64
import dataclasses
import html
import io

import jax
import numpy as np
import pytest
from PIL import Image
from small import small_digits

import ddim_jax
from ddim_jax.config import with_sample, with_values
from ddim_jax.data.sources import DigitsSource
from ddim_jax.errors import UserError
from ddim_jax.images import load_png
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.train import train
from ddim_jax.models import parameter_count
from ddim_jax.sampling.programs import image_program


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    train(small_digits(), folder)
    return folder


@pytest.fixture(scope="module")
def pipe(workdir):
    return ddim_jax.load(workdir)


def test_what_is_loaded(pipe):
    assert isinstance(pipe, ddim_jax.Pipeline)
    assert pipe.step == 2
    assert pipe.config == small_digits()
    assert parameter_count(pipe.params) > 10_000
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(pipe.params))


def test_images_are_uint8_and_a_function_of_seed_and_index(pipe):
    images = pipe.sample(8, seed=3)
    assert images.shape == (8, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 8
    # Eight devices draw one image each, or leave some idle: one shape, so equal to the bit.
    np.testing.assert_array_equal(pipe.sample(8, seed=3), images)
    np.testing.assert_array_equal(
        np.concatenate([pipe.sample(4, seed=3), pipe.sample(4, seed=3, start=4)]),
        images,
    )
    np.testing.assert_array_equal(pipe.sample(1, seed=3, start=7), images[7:])
    assert not np.array_equal(pipe.sample(8, seed=4), images)


def test_what_is_compiled_is_of_its_own_network(pipe):
    """Though another pipeline was made of it, which shares what is compiled."""
    pipe.sample(2, steps=2)
    other = dataclasses.replace(pipe, config=with_values(pipe.config, {"diffusion.objective": "x0"}))
    alone = dataclasses.replace(other, _compiled={})
    np.testing.assert_array_equal(other.sample(2, steps=2), alone.sample(2, steps=2))


def test_the_api_draws_what_the_command_draws(pipe, workdir):
    folder = sample(pipe.config, workdir)
    images = pipe.sample(pipe.config.sample.num)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(load_png(folder / f"{index:06d}.png"), image)


def test_settings_change_how_images_are_drawn(pipe):
    default = pipe.sample(8)
    different = [
        {"steps": 2},
        {"eta": 1.0},
        {"sampler": "ddpm_large"},
        {"eta_per_step": [0.0, 1.0, 0.0, 0.5]},
    ]
    for settings in different:
        assert not np.array_equal(pipe.sample(8, **settings), default), settings
    np.testing.assert_array_equal(pipe.sample(8, eta_per_step=[0.0] * 4), default)
    np.testing.assert_array_equal(pipe.sample(8, eta=1), pipe.sample(8, sampler="ddpm_small"))
    np.testing.assert_array_equal(pipe.sample(np.int64(8), steps=np.int64(4), eta=np.float32(0)), default)


def test_what_is_given_replaces_lists_in_the_config(pipe):
    settings = dataclasses.replace(
        pipe.config.sample, eta_per_step=(1.0, 1.0, 1.0, 1.0), levels=(900, 500, 100, 50), num=3, start=5, indices=(6,)
    )
    listed = dataclasses.replace(pipe, config=dataclasses.replace(pipe.config, sample=settings))
    np.testing.assert_array_equal(listed.sample(8, steps=4, eta=0.0), pipe.sample(8))
    assert not np.array_equal(listed.sample(8), pipe.sample(8))
    np.testing.assert_array_equal(listed.sample(), listed.sample(1, start=6))


def test_batch_size_changes_no_image(pipe):
    images = pipe.sample(20, seed=1)
    for batch_size in (1, 2):
        assert np.mean(pipe.sample(20, seed=1, batch_size=batch_size) != images) < 1e-3


def compilations(run):
    """How many programs of more than an operation are compiled."""
    seen = []

    def listen(event, seconds, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(facts.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


def test_steps_eta_spacing_levels_and_seed_compile_nothing(pipe):
    digits = np.stack([DigitsSource()[i].image for i in range(4)])
    pipe = dataclasses.replace(pipe, _compiled={})
    mask = np.broadcast_to(np.arange(8) < 4, (8, 8))

    def everything(level=100, resamplings=1, **settings):
        pipe.sample(8, **settings)
        pipe.decode(pipe.encode(digits, **settings), **settings)
        pipe.recover(digits, level, **settings)
        pipe.inpaint(digits, mask, resamplings=resamplings, jump=1, **settings)
        pipe.trajectory([0, 1], 2, **settings)

    assert compilations(lambda: everything(steps=3, eta=0.0)) >= 6
    others = (
        {"steps": 5, "eta": 0.0}, {"steps": 4, "eta": 1.0}, {"spacing": "quad"}, {"levels": (900, 3)}, {"seed": 4},
        {"start": 9}, {"sampler": "ddpm_large"}, {"eta_per_step": (0.0, 1.0), "steps": 2}, {"level": 700},
        {"resamplings": 3},
    )  # fmt: skip
    for settings in others:
        assert compilations(lambda settings=settings: everything(**settings)) == 0, settings
    # A sampler that remembers more is another program, which serves all that remember as much.
    assert compilations(lambda: pipe.sample(8, sampler="ab2", eta=0.0)) == 1
    assert compilations(lambda: pipe.sample(8, sampler="ab2", eta=0.0, steps=7)) == 0


def test_a_program_is_made_once(pipe, monkeypatch):
    made = []

    def counted(config, *arguments):
        made.append(config.sample)
        return image_program(config, *arguments)

    pipe = dataclasses.replace(pipe, _compiled={})
    monkeypatch.setattr("ddim_jax.sampling.programs.image_program", counted)
    for num, start, seed, steps in ((8, 0, 9, 4), (5, 100, 9, 2), (1, 7, 10, 3)):
        pipe.sample(num, seed=seed, start=start, steps=steps, eta=0.375)
    assert len(made) == 1


def test_a_checkpoint_and_the_raw_parameters_can_be_chosen(workdir, pipe):
    assert ddim_jax.load(workdir, step=1).step == 1
    raw = ddim_jax.load(str(workdir), ema=False)
    different = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (raw.params, pipe.params)), strict=True)
    ]
    assert any(different)


def test_a_workdir_may_lie_under_the_home_folder(workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert ddim_jax.load("~/run").step == 2


def test_no_data_is_opened(pipe, monkeypatch):
    def refuse(*_):
        raise AssertionError("the data set was opened")

    monkeypatch.setattr("ddim_jax.data.sources.open_source", refuse)
    monkeypatch.setattr("sklearn.datasets.load_digits", refuse)
    assert pipe.sample(1).shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("num", "settings", "message"),
    [
        (4, {"stepz": 3}, "'sample.stepz' does not exist; did you mean 'sample.steps'?"),
        (4, {"steps": 0}, "sample.steps=0: must"),
        (4, {"steps": 1001}, "sample.steps=1001: must"),
        (4, {"steps": "many"}, "sample.steps: expected int, got 'many'"),
        (4, {"steps": 2.5}, "sample.steps: expected int, got 2.5"),
        (4, {"eta": -1.0}, "sample.eta=-1.0: must lie in 0 ... 1000"),
        (4, {"eta": float("nan")}, "sample.eta: nan is not a finite number"),
        (4, {"sampler": "dddim"}, "sample.sampler: 'dddim' is not one of ddim"),
        (4, {"label": 3}, "sample.label=3: the model has no classes (model.num_classes=0); leave it out"),
        (4, {"eta_per_step": (0.1,)}, "eta has 1 values for 4 steps"),
        (4, {"ema": False}, "load(workdir, ema=...)"),
        (4, {"checkpoint": 1}, "load(workdir, step=...)"),
        (0, {}, "sample.num=0: must lie in 1 ... 2^31"),
        (4, {"start": -1}, "sample.start=-1: must lie in 0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(pipe, num, settings, message):
    with pytest.raises(UserError) as caught:
        pipe.sample(num, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def broken(pipe):
    """The model with one weight that is not a number."""
    variables = jax.tree.map(np.array, pipe.variables)
    jax.tree.leaves(variables)[0].flat[0] = np.nan
    return dataclasses.replace(pipe, variables=variables)


@pytest.mark.parametrize(
    ("run", "image"),
    [
        (lambda p, d: p.sample(2, start=5), 5),
        (lambda p, d: p.sample(indices=[9, 4]), 9),
        (lambda p, d: p.encode(d), 0),
        (lambda p, d: p.decode(p.noise([1, 2])), 0),
        (lambda p, d: p.interpolate([1], [2], points=2), 0),
        (lambda p, d: p.interpolate_grid([1, 2, 3, 4], side=2), 0),
        (lambda p, d: p.trajectory([3], moments=2), 3),
        (lambda p, d: p.recover(d, 500), 0),
        (lambda p, d: p.inpaint(d, np.ones((8, 8), bool), resamplings=1), 0),
    ],
)
def test_nan_is_never_a_picture(broken, run, image):
    digits = np.stack([DigitsSource()[i].image for i in range(2)])
    with pytest.raises(UserError, match=rf"NaN or infinity in place of image {image}\b.*try another checkpoint"):
        run(broken, digits)


def test_a_notebook_is_told_why_there_are_no_pictures(broken):
    assert "NaN or infinity in place of image 0" in broken._repr_html_()


def test_a_job_writes_no_picture_of_nan(broken, workdir, monkeypatch):
    monkeypatch.setattr("ddim_jax.pipeline.load", lambda *_, **__: broken)
    with pytest.raises(UserError, match="NaN or infinity in place of image 77"):
        sample(with_sample(broken.config, start=77, num=2), workdir)
    assert not list(workdir.glob("sample/*/00007*.png"))


def test_a_pipeline_shows_itself_in_short(pipe):
    pipe = dataclasses.replace(pipe)
    count = parameter_count(pipe.params)
    assert repr(pipe) == f"<Pipeline of {count:,} parameters after 2 steps; images of 8x8x1>"
    text = pipe._repr_html_()
    assert html.escape(repr(pipe)) in text
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].split('"')[0]))))
    np.testing.assert_array_equal(picture, np.asarray(ddim_jax.show(pipe.sample(4, steps=4, eta=0.0), columns=4)))


def test_a_pipeline_shown_again_draws_nothing(pipe, monkeypatch):
    text = pipe._repr_html_()
    monkeypatch.setattr(type(pipe), "sample", lambda *_, **__: pytest.fail("drawn again"))
    assert pipe._repr_html_() == text


def test_a_large_model_on_a_cpu_is_not_drawn_for_a_notebook(pipe, monkeypatch):
    pipe = dataclasses.replace(pipe)
    monkeypatch.setattr("ddim_jax.pipeline._SHOWN_WEIGHTS_TIMES_PIXELS", 0)
    assert pipe._repr_html_() == f"<p>{html.escape(repr(pipe))}</p>"


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_as_a_pillow_image(channels):
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((64, 64, channels), np.uint8)
    shown = ddim_jax.show(images)  # three in a row
    assert shown.mode == {1: "L", 3: "RGB"}[channels]
    assert shown.size == (3 * 66 + 2, 2 * 66 + 2)
    pixels = np.asarray(shown).reshape(shown.height, shown.width, channels)
    np.testing.assert_array_equal(pixels[2 + 66 : 66 + 66, 2 + 66 : 66 + 66], images[4])
    assert ddim_jax.show(images[0]).size == (68, 68)
    # A row of ``interpolate`` is a row.
    assert ddim_jax.show(images.reshape(1, 6, 64, 64, channels)).size == (6 * 66 + 2, 68)
    assert ddim_jax.show(images, columns=2).size == (2 * 66 + 2, 3 * 66 + 2)
    with pytest.raises(UserError, match="columns=0: "):
        ddim_jax.show(images, columns=0)


def test_progress_is_shown_where_it_is_wanted(pipe, capsys, monkeypatch):
    pipe = dataclasses.replace(pipe, _compiled={})
    pipe.sample(2, eta=0.8125)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("ddim_jax.pipeline._SILENT_SECONDS", 0.0)
    pipe.sample(2, eta=0.8125, progress=True)
    assert "drawing: 100%" in (shown := capsys.readouterr().err) and "compiling" not in shown
    pipe.sample(2, clip="keep_eps", progress=True)
    assert "drawing: compiling the program" in capsys.readouterr().err
    monkeypatch.setattr("ddim_jax.writers.is_watched", lambda: True)
    pipe.sample(2, eta=0.6875)
    assert "drawing: 100%" in capsys.readouterr().err
    pipe.sample(2, eta=0.6875, progress=False)
    assert capsys.readouterr().err == ""


def test_few_programs_serve_all_numbers_of_images(pipe, monkeypatch):
    pipe = dataclasses.replace(pipe, _compiled={})
    sizes = []

    def counted(config, *arguments):
        sizes.append(1)
        return image_program(config, *arguments)

    monkeypatch.setattr("ddim_jax.sampling.programs.image_program", counted)
    fifty = pipe.sample(50, eta=0.4375, batch_size=0)
    for num in (33, 40, 64):  # on eight devices: 5 to 8 each
        np.testing.assert_array_equal(pipe.sample(num, eta=0.4375, batch_size=0)[:50], fifty[:num])
    assert len(sizes) == 1
    assert np.mean(pipe.sample(20, eta=0.4375, batch_size=0) != fifty[:20]) < 1e-3
    assert len(sizes) == 2


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda p, d: p.encode(d / 255), "images are float64 in 0 ... "),
        (lambda p, d: p.recover(d / 127.5 - 1, 100), "for pixels in [-1, 1] that is"),
        (lambda p, d: p.inpaint(d / 255, np.ones((8, 8), bool)), "for pixels in [0, 1] that is"),
        (lambda p, d: p.inpaint(d, [[0.5] * 8] * 8), "the mask is float64 in 0.5 ... 0.5"),
        (lambda p, d: p.inpaint(d, np.ones((8, 8), bool), jump=0), "jump=0: "),
        (lambda p, d: p.inpaint(d, np.ones((8, 8), bool), resamplings=1.5), "resamplings=1.5: "),
        (lambda p, d: p.encode(np.moveaxis(d, -1, 1)), "channels come last"),
        (lambda p, d: p.encode(d, iterations=1.5), "iterations=1.5: "),
        (lambda p, d: p.encode(d, labels=[0, 1, 2, 3]), "the model has no classes"),
        (lambda p, d: p.decode(np.full(d.shape, np.nan)), "latents[0] holds NaN or infinity"),
        (lambda p, d: p.decode(d), "latents are uint8"),
        (lambda p, d: p.recover(d, 100.0), "level=100.0: a whole number in 1 ... 1000 is meant"),
        (lambda p, d: p.noise([-1]), "indices[0]=-1: "),
        (lambda p, d: p.noise([1.5]), "indices are float64"),
        (lambda p, d: p.noise([]), "indices is empty"),
        (lambda p, d: p.sample(indices=[]), "indices is empty"),
        (lambda p, d: p.sample(4, indices=[7, 3]), "num=4 and 2 indices: give one of the two"),
        (lambda p, d: p.sample(2, indices=3), "indices=3: a list of image indices is meant"),
        (lambda p, d: p.sample(2, progress="no"), "progress='no': True or False is meant"),
        (lambda p, d: p.sample(2, steps=d), "sample.steps: expected int, got [["),
        (lambda p, d: p.sample(2, levels=[2**70]), "sample.levels=(1180591620717411303424,): must lie"),
        (lambda p, d: p.sample(2, sampler=d), "is not one of ddim"),
        (lambda p, d: p.trajectory(2), "indices=2: a list of image indices is meant, e.g. [2]"),
        (lambda p, d: p.trajectory([0], moments=0), "moments=0: "),
        (lambda p, d: p.interpolate([0, 1], [2]), "second: found 1 image indices, but 2 are meant"),
        (lambda p, d: p.interpolate([], []), "first is empty"),
        (lambda p, d: p.interpolate([0], [1], points=1), "points=1: "),
        (lambda p, d: p.interpolate_grid([0, 1, 2]), "corners: found 3 image indices, but 4 are meant"),
        (lambda p, d: p.interpolate_grid([0, 1, 2, 3], side=2.0), "side=2.0: "),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_line(pipe, run, message):
    digits = np.stack([DigitsSource()[i].image for i in range(4)])
    with pytest.raises(UserError) as caught:
        run(pipe, digits)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_that_no_model_has(workdir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no workdir mnist-smal; did you mean 'mnist-small'"):
        ddim_jax.load("mnist-smal")
    with pytest.raises(UserError, match=r"load\(3\): the path of a workdir is meant, or one of mnist-small, "):
        ddim_jax.load(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="step='newest': the step of a checkpoint is meant, or 'best'"):
        ddim_jax.load(workdir, step="newest")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"step=1.5: a whole number of 0 or more"):
        ddim_jax.load(workdir, step=1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="step="):
        ddim_jax.load(workdir, step=np.ones(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="ema='false': True or False is meant"):
        ddim_jax.load(workdir, ema="false")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"load_weights\(None\): the path"):
        ddim_jax.load_weights(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"config='digits': a ddim_jax.config.Config is meant"):
        ddim_jax.load_weights("a.npz", config="digits")  # pyright: ignore[reportArgumentType]


def test_a_workdir_that_cannot_be_loaded(workdir, tmp_path):
    with pytest.raises(UserError, match=r"no config.json in workdir"):
        ddim_jax.load(tmp_path)
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"no checkpoint in workdir"):
        ddim_jax.load(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 7 in .*; there are: 1, 2"):
        ddim_jax.load(workdir, step=7)


def test_the_package_has_no_other_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = ddim_jax.lod
