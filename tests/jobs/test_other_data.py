"""Every job on a model of rectangles, of channels and types that no picture has."""

import dataclasses
import json
import os

import numpy as np
import pytest
from other_data import CONFIG, SHAPE, fields, make_workdir
from PIL import Image
from small import changed

import ddim_jax
from ddim_jax.data.reading import Images
from ddim_jax.errors import UserError
from ddim_jax.images import load_png, save_png
from ddim_jax.jobs import edit as edit_job
from ddim_jax.jobs import likelihood as likelihood_job
from ddim_jax.jobs import reconstruct as reconstruct_job
from ddim_jax.jobs.edit import edit
from ddim_jax.jobs.evaluate import evaluate
from ddim_jax.jobs.interpolate import interpolate
from ddim_jax.jobs.likelihood import likelihood
from ddim_jax.jobs.reconstruct import reconstruct
from ddim_jax.jobs.sample import sample
from ddim_jax.jobs.sweep import sweep
from ddim_jax.jobs.trajectory import trajectory
from ddim_jax.pipeline import Pipeline
from ddim_jax.sharded_map import ShardedMap

GREY_16 = changed(CONFIG, data__dtype="uint16", data__range=(), data__channels=1)
RGBA = changed(CONFIG, data__dtype="uint8", data__range=(), data__channels=4)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("other") / "run")


@pytest.fixture(scope="module")
def pipe(workdir):
    return ddim_jax.load(workdir)


@pytest.fixture
def real(monkeypatch):
    """Images for the jobs that begin with some."""
    images = fields(4)
    for job in (edit_job, reconstruct_job, likelihood_job):
        monkeypatch.setattr(
            job,
            "read_first_images",
            lambda data, split, path, num, key: Images(
                images[:num], np.zeros(len(images[:num]), np.int32), np.arange(len(images[:num]))
            ),
        )
    return images


def only_folder(workdir, mode):
    (folder,) = (workdir / mode).iterdir()
    return folder


def test_samples_are_arrays_of_the_datas_type_and_resume_by_what_is_missing(workdir, pipe, monkeypatch):
    config = changed(CONFIG, sample__num=5)
    folder = sample(config, workdir)
    images = pipe.sample(5)
    assert images.dtype == np.float32 and images.shape == (5, *SHAPE)
    for channel, (low, high) in enumerate(((-1, 3), (0, 500))):
        assert low <= images[..., channel].min() < images[..., channel].max() <= high
    for index, image in enumerate(images):
        np.testing.assert_array_equal(np.load(folder / f"{index:06d}.npy"), image)
    kept = (folder / "000000.npy").read_bytes()
    (folder / "000001.npy").unlink()
    whole = (folder / "000002.npy").read_bytes()
    (folder / "000002.npy").write_bytes(whole[:-4])
    np.save(folder / "000003.npy", np.zeros(SHAPE))  # of another type
    drawn = []
    chunks = ShardedMap.chunks
    monkeypatch.setattr(
        ShardedMap, "chunks", lambda self, given, items, **more: drawn.append(items) or chunks(self, given, items)
    )
    assert sample(config, workdir) == folder
    assert [items.index.tolist() for items in drawn] == [[1, 2, 3]]
    assert (folder / "000000.npy").read_bytes() == kept and (folder / "000002.npy").read_bytes() == whole
    assert json.loads((folder / "run.json").read_text())["images_computed"] == 3


def test_an_npz_has_the_type_too(workdir, pipe):
    folder = sample(changed(CONFIG, sample__num=2, sample__format="npz"), workdir)
    found = np.load(folder / "samples.npz")["arr_0"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pipe.sample(2))


def test_png_is_refused_where_it_cannot_hold_the_values(workdir):
    config = changed(CONFIG, sample__format="png", sample__num=7)
    with pytest.raises(UserError, match=r"^sample.format=png: no PNG file holds images of 2 channels and data.dtype="):
        sample(config, workdir)
    assert not list((workdir / "sample").glob("*n7*"))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "mode"), [(GREY_16, "I;16"), (RGBA, "RGBA")])
def test_png_files_of_16_bits_and_with_alpha(tmp_path, config, mode):
    workdir = make_workdir(tmp_path / "run", config)
    folder = sample(config, workdir)
    pipe = ddim_jax.load(workdir)
    images = pipe.sample(3)
    assert images.dtype == config.data.dtype
    for index, image in enumerate(images):
        path = folder / f"{index:06d}.png"
        np.testing.assert_array_equal(load_png(path), image)
        with Image.open(path) as picture:
            assert picture.mode == mode and picture.size == (8, 16)
    damaged = folder / "000001.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])
    sample(config, workdir)
    assert damaged.read_bytes() == whole
    assert load_png(folder / "grid.png").shape[-1] == (1 if config is GREY_16 else 3)
    as_arrays = changed(config, sample__format="npy")
    assert sample(as_arrays, workdir) == folder  # what is stored how names no folder
    np.testing.assert_array_equal(np.load(folder / "000002.npy"), images[2])


def test_images_do_not_depend_on_the_others(pipe):
    images = pipe.sample(6)
    np.testing.assert_array_equal(pipe.sample(1, start=4), images[4:5])
    np.testing.assert_array_equal(pipe.sample(indices=[5, 0]), images[[5, 0]])
    np.testing.assert_array_equal(pipe.decode(pipe.noise([2, 3])), images[2:4])


def test_pictures_show_the_channels_that_are_chosen(pipe, workdir):
    images = pipe.sample(2)
    assert pipe.pictures(images).shape == (2, 16, 8, 1)
    expected = np.floor(np.clip((images[..., 1:].astype(np.float64)) / 500, 0, 1) * 255 + 0.5)
    other = Pipeline(changed(pipe.config, data__shown_channels=(1,)), pipe.model, pipe.variables, pipe.step)
    np.testing.assert_array_equal(other.pictures(images), expected)
    assert ddim_jax.show(pipe.pictures(images)).size == (2 * 64 + 6, 128 + 4)
    with pytest.raises(UserError, match=r"images have shape .*pipe.pictures\(images\) makes such"):
        ddim_jax.show(images)
    with pytest.raises(UserError, match=r"images are float64, but the model's are float32"):
        pipe.pictures(images.astype(np.float64))
    assert "images of 8x16x2" in repr(pipe) and "float32" in repr(pipe)
    assert "data:image/png;base64," in pipe._repr_html_()


def test_a_job_shows_the_channels_that_its_command_line_names(workdir):
    folders = []
    for channels in ((), (1,), (1, 0, 1)):
        sweep(changed(CONFIG, data__shown_channels=channels), workdir)
        folders.append(load_png(only_folder(workdir, "sweep") / "sweep.png"))
    assert not np.array_equal(folders[0], folders[1])
    assert np.ptp(folders[2][40:].astype(int), axis=-1).max() > 0


def test_a_grid_of_images_that_are_there_shows_the_channels_asked_for(workdir):
    grids, times = [], []
    for channels in ((), (1,), (1,), ()):
        path = sample(changed(CONFIG, data__shown_channels=channels, sample__num=2), workdir) / "grid.png"
        grids.append(path.read_bytes())
        times.append(os.stat(path).st_mtime_ns)
    assert grids[0] == grids[3] != grids[1] == grids[2]
    assert times[1] == times[2]


@pytest.mark.slow
def test_picture_jobs_draw_rectangles(workdir, real):
    interpolate(CONFIG, workdir)
    assert load_png(only_folder(workdir, "interpolate") / "pairs.png").shape == (128 + 4, 3 * 64 + 8, 1)
    trajectory(CONFIG, workdir)
    folder = only_folder(workdir, "trajectory")
    with Image.open(folder / "trajectory.gif") as animation:
        assert animation.size == (2 * 64 + 6, 64 + 4)
    reconstruct(CONFIG, workdir)
    folder = only_folder(workdir, "reconstruct")
    error = json.loads((folder / "errors.json").read_text())["3"]
    assert 0 < error < 0.5
    result = ddim_jax.load(workdir)
    back = result.decode(result.encode(real, steps=3), steps=3, clip="none")
    span = np.array([4, 500])
    np.testing.assert_allclose(error, np.mean(((back.astype(np.float64) - real) / span) ** 2), rtol=1e-3)


@pytest.mark.slow
def test_edits_are_arrays_of_the_datas_type(workdir, real, tmp_path):
    edit(CONFIG, workdir)
    (recovered,) = (workdir / "edit").glob("*recover*")
    assert np.load(recovered / "000000.npy").dtype == np.float32
    mask = np.zeros((16, 8, 1), np.uint8)
    mask[:6] = 255
    save_png(tmp_path / "mask.png", mask)
    edit(changed(CONFIG, edit__task="inpaint", edit__mask=str(tmp_path / "mask.png")), workdir)
    (inpainted,) = (workdir / "edit").glob("*inpaint*")
    result = np.load(inpainted / "000002.npy")
    np.testing.assert_array_equal(result[:6], real[2, :6])
    assert not np.array_equal(result[6:], real[2, 6:])


@pytest.mark.slow
def test_the_density_of_floats_is_measured_and_a_bound_is_refused(workdir, real):
    folder = likelihood(CONFIG, workdir)
    assert np.isfinite(json.loads((folder / "likelihood.json").read_text())["bits_per_dim"])
    with pytest.raises(UserError, match=r"^likelihood.method=bound: .*use likelihood.method=ode"):
        likelihood(changed(CONFIG, likelihood__method="bound"), workdir)


@pytest.mark.slow
def test_a_table_of_floats(workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("DDIM_JAX_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "real.npz", arr_0=fields(40))
    settings = dataclasses.replace(CONFIG.eval, reference=str(tmp_path / "real.npz"), keep_images=True)
    config = dataclasses.replace(CONFIG, eval=settings)
    folder = evaluate(config, workdir)
    (line,) = json.loads((folder / "table.json").read_text())["lines"]
    assert line["figures"]["pixels_frechet"]["mean"] > 0
    (row,) = (folder / "images").iterdir()
    np.testing.assert_array_equal(np.load(row / "000003.npy"), ddim_jax.load(workdir).sample(4)[3])
    # A folder of samples is measured as the model is.
    again = changed(config, eval__images=str(row), eval__keep_images=False)
    (other,) = json.loads((evaluate(again, tmp_path / "table") / "table.json").read_text())["lines"]
    mean = line["figures"]["pixels_frechet"]["mean"]
    assert other["figures"]["pixels_frechet"]["mean"] == pytest.approx(mean, rel=1e-5)
