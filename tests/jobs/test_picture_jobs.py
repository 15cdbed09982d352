"""Jobs that draw pictures with a trained model, and the same from Python."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ddim_jax
from ddim_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    EditConfig,
    InterpolateConfig,
    ModelConfig,
    ReconstructConfig,
    SampleConfig,
    SweepConfig,
    TrainConfig,
    TrajectoryConfig,
)
from ddim_jax.data.sources import DigitsSource
from ddim_jax.errors import RefutedError, UserError
from ddim_jax.images import as_rgb, enlarge, load_png, save_png
from ddim_jax.jobs import reconstruct as module
from ddim_jax.jobs.edit import edit, read_mask
from ddim_jax.jobs.interpolate import interpolate
from ddim_jax.jobs.reconstruct import mean_squared_error, reconstruct
from ddim_jax.jobs.sample import _grid_images, _picture, sample
from ddim_jax.jobs.sweep import sweep
from ddim_jax.jobs.train import train
from ddim_jax.jobs.trajectory import trajectory
from ddim_jax.model_job import work_bar
from ddim_jax.tables.published_figures import PublishedTable

CONFIG = Config(
    data=DataConfig(source="digits", image_size=8, channels=1),
    # PyTorch's initialisation: an almost untrained network should still do something.
    model=ModelConfig(
        channels=32,
        num_groups=8,
        multipliers=(1,),
        num_blocks=1,
        attention_resolutions=(),
        init="torch",
        num_classes=10,
    ),
    diffusion=DiffusionConfig(num_levels=60),
    train=TrainConfig(
        batch_size=8, steps=2, sample_every=0, sample_num=2, final_sample_steps=(), label_dropout=0.5, tensorboard=False
    ),
    sample=SampleConfig(num=3, steps=5),
    trajectory=TrajectoryConfig(num=2, moments=3),
    interpolate=InterpolateConfig(first=(0, 2), second=(1, 3), points=3, corners=(0, 1, 2, 3), side=3),
    reconstruct=ReconstructConfig(num=5, steps=(5, 30, 1000), shown=2),
    edit=EditConfig(level=20, num=3, resamplings=2, jump=2),
    sweep=SweepConfig(etas=(0.0, 1.0), steps=(2, 4, 1000), num=2),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "run"
    train(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def pipe(workdir):
    return ddim_jax.load(workdir)


@pytest.fixture(scope="module")
def digits():
    source = DigitsSource()
    return np.stack([source[i].image for i in range(5)])


def changed(group, **settings):
    return dataclasses.replace(CONFIG, **{group: dataclasses.replace(getattr(CONFIG, group), **settings)})


def only_folder(workdir, mode, marker=""):
    (folder,) = [path for path in (workdir / mode).iterdir() if marker in path.name]
    assert json.loads((folder / "run.json").read_text())["mode"] == mode
    return folder


def differing(one, other):
    assert one.shape == other.shape
    return np.mean(one != other)


def test_a_trajectory_begins_with_noise_and_ends_with_the_image(workdir, pipe):
    trajectory(CONFIG, workdir)
    folder = only_folder(workdir, "trajectory")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"x.png", "x0.png", "x_00.png", "x_03.png", "x0_02.png", "trajectory.gif", "run.json"}
    kept = pipe.trajectory([4, 7], moments=3)
    assert kept.steps.tolist() == [0, 2, 4]
    assert kept.x.shape == (2, 3, 8, 8, 1)
    assert differing(kept.final, pipe.sample(indices=(4, 7))) < 1e-2
    noise = pipe.noise([4, 7])
    np.testing.assert_array_equal(kept.x[:, 0], np.floor(np.clip(noise / 2 + 0.5, 0, 1) * 255 + 0.5))


def test_moments_are_those_of_the_whole_way(pipe):
    few, many = pipe.trajectory([0], moments=2), pipe.trajectory([0], moments=100)
    assert many.steps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(few.x0[:, 1], many.x0[:, 4])


def test_interpolation_ends_at_the_images_themselves(workdir, pipe):
    interpolate(CONFIG, workdir)
    folder = only_folder(workdir, "interpolate")
    assert {"pairs.png", "square.png"} <= {path.name for path in folder.iterdir()}
    # One class for all: along a row the label must not change.
    rows = pipe.interpolate([0, 2], [1, 3], 3, label=4)
    assert rows.shape == (2, 3, 8, 8, 1)
    assert differing(rows[:, 0], pipe.sample(indices=(0, 2), label=4)) < 1e-2
    assert differing(rows[:, -1], pipe.sample(indices=(1, 3), label=4)) < 1e-2
    square = pipe.interpolate_grid([0, 1, 2, 3], 3, label=4)
    corners = np.stack([square[0, 0], square[0, -1], square[-1, 0], square[-1, -1]])
    assert differing(corners, pipe.sample(indices=(0, 1, 2, 3), label=4)) < 1e-2


def test_encoding_and_decoding_come_back_the_closer_the_more_steps(workdir, pipe, digits, capsys):
    reconstruct(CONFIG, workdir)
    errors = json.loads((only_folder(workdir, "reconstruct") / "errors.json").read_text())
    err = capsys.readouterr().err
    # The paper has nothing of S = 5 and S = 30.
    assert [line.split()[-1] for line in err.splitlines() if line.split()[:1] in (["5"], ["30"])] == ["-", "-"]
    assert list(errors) == ["5", "30"]  # 1000 is more than the model's 60 levels
    assert errors["30"] < errors["5"]
    implicit = pipe.decode(pipe.encode(digits, steps=30, iterations=10), steps=30)
    assert mean_squared_error(digits, implicit) < min(errors["30"], 1e-4)


def test_errors_are_held_against_the_papers_where_they_may_be(workdir, monkeypatch, capsys):
    asked = changed("reconstruct", steps=(5, 30), check=True)
    with pytest.raises(UserError, match=r"are of cifar10, reconstruct.split=test, .*num=10000.*; the published"):
        reconstruct(asked, workdir)
    # A table made for these images and this model, in which S = 30 was much better.
    monkeypatch.setattr(module, "DDIM_TABLE_2_IMAGES", ("", "", 5))
    monkeypatch.setattr(module, "DDIM_TABLE_2", {5: (1.0, 0.1), 30: (0.0, 1e-9)})
    table = PublishedTable("of the test", (), ())
    monkeypatch.setitem(module.PUBLISHED, "ddim-table1-cifar10", table)
    with pytest.raises(RefutedError, match="worse than those of DDIM's table 2"):
        reconstruct(asked, workdir)
    said = capsys.readouterr().err
    assert "S = 5: reconstruction error" in said
    assert said.count(" is worse by ") == 1
    with pytest.raises(UserError, match=r"reconstruct\.steps of 5, 30"):
        reconstruct(changed("reconstruct", steps=(5, 31), check=True), workdir)


def test_recovering_from_little_noise_hardly_changes_an_image(workdir, pipe, digits):
    edit(CONFIG, workdir)
    folder = only_folder(workdir, "edit", "recover-t20")
    assert {"recover.png", "grid.png", "000000.png", "000002.png"} <= {path.name for path in folder.iterdir()}
    little, much = (pipe.recover(digits, level) for level in (1, 60))
    assert mean_squared_error(digits, little.recovered) < 0.01 < mean_squared_error(digits, much.recovered)
    np.testing.assert_array_equal(much.noised[0], pipe.recover(digits[:1], 60).noised[0])


def test_inpainting_keeps_what_is_known(workdir, pipe, digits, tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    save_png(tmp_path / "mask.png", mask[..., None].astype(np.uint8) * 255)
    edit(changed("edit", task="inpaint", mask=str(tmp_path / "mask.png")), workdir)
    folder = only_folder(workdir, "edit", "inpaint")
    np.testing.assert_array_equal(load_png(folder / "000001.png")[:, :4], digits[1, :, :4])
    result = pipe.inpaint(digits, mask, resamplings=2, jump=2)
    np.testing.assert_array_equal(result[:, :, :4], digits[:, :, :4])
    assert differing(result[:, :, 4:], digits[:, :, 4:]) > 0.3


def test_a_picture_from_a_file_is_cropped_and_resized(workdir, tmp_path):
    save_png(tmp_path / "wide.png", np.full((20, 40, 3), 128, np.uint8))
    edit(changed("edit", path=str(tmp_path / "wide.png"), level=3), workdir)
    folder = only_folder(workdir, "edit", "recover-t3-")
    assert load_png(folder / "000000.png").shape == (8, 8, 1)


@pytest.mark.parametrize("mode", ["edit", "reconstruct"])
def test_pictures_of_files_that_are_not_there_any_more_are_none_of_these(workdir, tmp_path, mode):
    config = dataclasses.replace(
        changed("edit", path=str(tmp_path), level=2),
        reconstruct=ReconstructConfig(path=str(tmp_path), num=5, steps=(2,), shown=2),
    )
    before = set((workdir / mode).glob("*"))
    for count in (3, 1):
        for number in range(count):
            save_png(tmp_path / f"{number}.png", np.full((8, 8, 1), 20 * count, np.uint8))
        for number in range(count, 3):
            (tmp_path / f"{number}.png").unlink(missing_ok=True)
        {"edit": edit, "reconstruct": reconstruct}[mode](config, workdir)
    folders = set((workdir / mode).glob("*")) - before
    assert sorted(json.loads((folder / "run.json").read_text())["images"] for folder in folders) == [1, 3]
    if mode == "edit":
        assert sorted(len(list(folder.glob("0*.png"))) for folder in folders) == [1, 3]


def test_a_sweep_draws_every_setting_from_the_same_noise(workdir):
    sweep(CONFIG, workdir)
    picture = load_png(only_folder(workdir, "sweep") / "sweep.png")
    assert picture.shape[1] > 2 * picture.shape[0] / 3
    assert json.loads((only_folder(workdir, "sweep") / "run.json").read_text())["indices"] == [0, 1]


def test_chosen_indices_and_counts_per_class(workdir, pipe):
    chosen = sample(changed("sample", indices=(11, 3)), workdir)
    assert {path.name for path in chosen.glob("0*.png")} == {"000003.png", "000011.png"}
    assert differing(load_png(chosen / "000011.png"), pipe.sample(start=11, num=1)[0]) < 1e-2
    with np.load(sample(changed("sample", indices=(11, 3), seed=1, format="npz"), workdir) / "samples.npz") as stored:
        assert stored["index"].tolist() == [11, 3]
        assert differing(stored["arr_0"], pipe.sample(indices=(11, 3), seed=1)) < 1e-2
    folder = sample(changed("sample", per_class=2), workdir)
    assert len(list(folder.glob("0*.png"))) == 20
    # A row for each class, with its name at the left: image 3 is of class 3, and so is image 13.
    picture = load_png(folder / "grid.png")
    assert picture.shape[0] == 10 * 68
    for column, index in enumerate((3, 13)):
        there = picture[3 * 68 + 2 :][:64, picture.shape[1] - (2 - column) * 68 + 2 :][:, :64]
        enlarged = enlarge(load_png(folder / f"{index:06d}.png")[None], 64)[0]
        np.testing.assert_array_equal(there, as_rgb(enlarged))


def test_more_classes_than_a_grid_has_room_for_are_shown_in_part():
    config = changed("sample", per_class=9)
    assert _grid_images(config, None) == 60
    assert _grid_images(changed("sample", per_class=2), None) == 20
    assert _grid_images(changed("sample", num=100), None) == 64
    many = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=1000))
    assert (
        _picture(many, np.arange(64), np.zeros((_grid_images(many, None), 8, 8, 1), np.uint8), None).shape[0] == 64 * 68
    )


def test_a_bar_says_that_it_compiles(monkeypatch, capsys):
    monkeypatch.setattr("ddim_jax.model_job._LEAST_SECONDS", 0.0)
    seen = []
    with work_bar(2, "drawing", "image") as bar:

        def traced(x):
            jax.monitoring.register_event_duration_secs_listener(listen)
            return x + 1

        def listen(event, seconds, **facts):
            seen.append(bar.desc)

        jax.jit(traced)(np.arange(3))
        jax.monitoring.unregister_event_duration_listener(listen)
        assert "drawing (compiling)" in seen
        assert bar.desc == "drawing"
    err = capsys.readouterr().err
    assert "drawing (compiling):   0% 0/2" in err
    assert ": :" not in err


@pytest.mark.parametrize("job", [trajectory, interpolate, edit])
def test_jobs_show_how_far_they_are(workdir, capsys, job):
    job(CONFIG, workdir)
    assert "100%" in capsys.readouterr().err


def test_guidance_pushes_away_from_the_unconditional_image(pipe):
    plain = pipe.sample(8, label=3).astype(float)
    same = pipe.sample(8, label=3, guidance_scale=1.0)
    np.testing.assert_array_equal(plain, same)
    guided = pipe.sample(8, label=3, guidance_scale=3.0).astype(float)
    assert differing(guided, plain) > 0.05
    # An interval that holds no visited level guides nothing.
    assert differing(pipe.sample(8, label=3, guidance_scale=3.0, guidance_levels=(2, 3)).astype(float), plain) < 1e-2


def test_a_preset_replaces_its_settings(pipe):
    settings = {"sampler": "ddpm_large", "spacing": "uniform", "clip": "rederive_eps", "eta": 0.0}
    np.testing.assert_array_equal(pipe.sample(2, preset="ddpm"), pipe.sample(2, **settings))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda p, d: p.recover(d, 61), r"level=61: a whole number in 1 \.\.\. 60"),
        (lambda p, d: p.recover(d, 0), r"level=0: "),
        (lambda p, d: p.inpaint(d, np.ones((9, 8), bool)), r"the mask has shape \(9, 8\).*resize the mask"),
        (lambda p, d: p.inpaint(d, np.ones((8, 8), bool), sampler="heun"), r"'heun' cannot inpaint"),
        (lambda p, d: p.encode(d[:, :4]), r"images have shape \(5, 4, 8, 1\), but the model's are \[n, 8, 8, 1\]"),
        (lambda p, d: p.encode(d, iterations=-1), r"iterations=-1"),
        (lambda p, d: p.sample(indices=(1, 1)), r"image 1 occurs more than once"),
        (lambda p, d: p.sample(2, levels=(3, 5)), r"level 5 comes after 3"),
        (lambda p, d: p.sample(2, levels=(61, 5)), r"level 61 .*does not exist"),
        (lambda p, d: p.sample(2, preset="dimm"), r"sample.preset: 'dimm' is not one of '', ddim-paper"),
        (lambda p, d: p.sample(2, sampler="unipc2", eta=0.5), r"sample.eta=0.5: .*adds no noise"),
        (lambda p, d: p.sample(2, guidance_levels=(5, 2)), r"sample.guidance_levels"),
        (lambda p, d: p.sample(2, eta=99.0), r"eta=99 is too large for step"),
    ],
)
def test_wrong_input_is_one_clear_line(pipe, digits, run, message):
    with pytest.raises(UserError, match=message) as caught:
        run(pipe, digits)
    assert "\n" not in str(caught.value)


def test_masks_that_cannot_be_used(tmp_path):
    save_png(tmp_path / "white.png", np.full((8, 8, 1), 255, np.uint8))
    save_png(tmp_path / "large.png", np.zeros((9, 8, 1), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    for path, message in {
        "": r"edit.mask: name the image file",
        str(tmp_path / "none.png"): r"none.png cannot be used: there is no such file",
        str(tmp_path / "white.png"): r"all white",
        str(tmp_path / "large.png"): r"is 8x9, but the model's images are 8x8",
        str(tmp_path / "text.png"): r"text.png cannot be used: not a PNG",
    }.items():
        with pytest.raises(UserError, match=message):
            read_mask(path, (8, 8))
