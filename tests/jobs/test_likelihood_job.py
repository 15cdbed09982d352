"""``--mode=likelihood`` on a small model: both methods, what is written, and runs that go on after a kill."""

import dataclasses
import json

import numpy as np
import pytest
from small import small_digits

from ddim_jax.config import LikelihoodConfig
from ddim_jax.errors import UserError
from ddim_jax.images import save_png
from ddim_jax.jobs import likelihood as job
from ddim_jax.jobs.likelihood import likelihood, summary
from ddim_jax.jobs.train import train
from ddim_jax.npz import NpzInParts

# ml_collections reads config files by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

NUM = 11
CONFIG = dataclasses.replace(
    small_digits(),
    likelihood=LikelihoodConfig(num=NUM, levels_per_image=8, steps=6),
)
CONFIG = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, num_classes=10),
    diffusion=dataclasses.replace(CONFIG.diffusion, num_levels=60, beta_start=1e-3, beta_end=0.3),
    sample=dataclasses.replace(CONFIG.sample, batch_size=1),  # 8 images at a time, on 8 devices
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood") / "run"
    train(CONFIG, folder)
    return folder


def changed(**settings):
    return dataclasses.replace(CONFIG, likelihood=dataclasses.replace(CONFIG.likelihood, **settings))


def seeded(seed, config=CONFIG):
    return dataclasses.replace(config, sample=dataclasses.replace(config.sample, seed=seed))


def values_in(folder):
    with np.load(folder / "likelihood.npz") as stored:
        return dict(stored)


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_bound_of_digits(workdir, capsys):
    folder = likelihood(CONFIG, workdir)
    result, values = read(folder, "likelihood.json"), values_in(folder)
    assert {path.name for path in folder.iterdir()} == {"likelihood.json", "likelihood.npz", "run.json"}
    assert folder.name.startswith("step2-bound-small-K8-n11-")
    np.testing.assert_array_equal(values["index"], np.arange(NUM))
    bits = values["bits_per_dim"]
    np.testing.assert_allclose(bits, values["prior"] + values["kl"] + values["decoder"], rtol=1e-6)
    assert result["images"] == NUM and result["method"] == "bound"
    assert result["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-6)
    assert result["standard_error"] == pytest.approx(bits.std(ddof=1) / np.sqrt(NUM), rel=1e-5)
    assert sum(result["terms"].values()) == pytest.approx(result["bits_per_dim"], rel=1e-6)
    assert 0 < result["terms"]["prior"] < 1e-2
    assert 1 < result["bits_per_dim"] < 100  # after two steps of training
    record = read(folder, "run.json")
    assert (record["mode"], record["images_computed"], record["network_evaluations_per_image"]) == ("likelihood", 11, 9)
    assert f"{result['bits_per_dim']:.4f} ± " in capsys.readouterr().err


def test_the_flow_and_the_bound_are_of_the_same_order(workdir):
    by_flow, by_bound = (
        read(likelihood(config, workdir), "likelihood.json")
        for config in (changed(method="ode", num=8), changed(levels_per_image=0, num=8))
    )
    assert by_flow["terms"] == {}
    assert 1 < by_flow["bits_per_dim"] < 2 * by_bound["bits_per_dim"]
    assert by_bound["bits_per_dim"] < 10 * by_flow["bits_per_dim"]


@pytest.mark.slow
def test_random_probes_estimate_the_exact_divergence_of_a_network(workdir):
    by_probes, exact = (
        values_in(likelihood(changed(method="ode", num=16, probes=8, divergence=divergence), workdir))["bits_per_dim"]
        for divergence in ("hutchinson", "exact")
    )
    difference = by_probes - exact
    assert abs(difference.mean()) < 4 * difference.std() / 4
    np.testing.assert_allclose(by_probes, exact, rtol=0.1)


def test_a_killed_run_computes_what_is_missing(workdir, monkeypatch):
    whole = values_in(likelihood(seeded(1), workdir))
    saved = NpzInParts.add

    def save_one(store, values):
        saved(store, values)
        raise KeyboardInterrupt

    # Another folder for the same values: all of a data set that is as long.
    config = seeded(1, changed(num=0))
    images = job.read_first_images
    monkeypatch.setattr(
        job, "read_first_images", lambda data, split, path, num, key: images(data, split, path, min(num, NUM), key)
    )
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(NpzInParts, "add", save_one)
        likelihood(config, workdir)
    (folder,) = (path for path in (workdir / "likelihood").iterdir() if (path / "parts").exists())
    assert not (folder / "likelihood.json").exists()
    assert likelihood(config, workdir) == folder
    assert read(folder, "run.json")["images_computed"] == 3
    assert not (folder / "parts").exists()
    resumed = values_in(folder)
    for name, of_images in whole.items():
        np.testing.assert_allclose(resumed[name], of_images, rtol=1e-6)
    # A third run finds all, and leaves everything as it is.
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    likelihood(config, workdir)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_images_value_does_not_depend_on_the_batch(workdir):
    config = changed(num=3)
    few = values_in(likelihood(config, workdir))
    larger = dataclasses.replace(config, sample=dataclasses.replace(config.sample, batch_size=3))
    many = values_in(likelihood(dataclasses.replace(larger, likelihood=CONFIG.likelihood), workdir))
    np.testing.assert_allclose(few["bits_per_dim"], many["bits_per_dim"][:3], rtol=1e-5)


def test_labels_matter_and_guidance_does_not(workdir, tmp_path):
    """The same two pictures, the second one once of class 1 and once of class 0."""
    picture = np.arange(0, 256, 4, np.uint8).reshape(8, 8, 1)
    for root, classes in (("apart", "01"), ("together", "00")):
        for name, label in zip("ab", classes, strict=True):
            (tmp_path / root / label).mkdir(parents=True, exist_ok=True)
            save_png(tmp_path / root / label / f"{name}.png", picture)
    config = changed(path=str(tmp_path / "apart"))
    guided = dataclasses.replace(config, sample=dataclasses.replace(config.sample, guidance_scale=3.0))
    apart, same, together = (
        values_in(likelihood(config, workdir))["bits_per_dim"]
        for config in (config, guided, changed(path=str(tmp_path / "together")))
    )
    np.testing.assert_array_equal(apart, same)
    assert apart[0] == together[0]
    assert abs(apart[1] - together[1]) > 1e-4


def test_files_that_were_replaced_are_other_images(workdir, tmp_path):
    """As many of the same names."""
    found = []
    for grey in (10, 200):
        for name in "ab":
            save_png(tmp_path / f"{name}.png", np.full((8, 8, 1), grey, np.uint8))
        found.append(values_in(likelihood(changed(path=str(tmp_path)), workdir))["bits_per_dim"])
    assert (found[0] != found[1]).all()


def test_an_image_alone_has_no_standard_error(workdir):
    folder = likelihood(changed(num=1), workdir)
    assert read(folder, "likelihood.json")["standard_error"] is None


def test_a_summary_is_made_in_float64():
    values = {"index": np.arange(3), "bits_per_dim": np.float32([1e8, 1e8 + 8, 1e8 + 16]), "kl": np.float32([1, 2, 4])}
    assert summary(values) == {
        "bits_per_dim": 1e8 + 8,
        "standard_error": pytest.approx(8 / np.sqrt(3)),
        "terms": {"kl": pytest.approx(7 / 3)},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels_per_image": 1000}, r"likelihood.levels_per_image=1000: choose from 1 to \d+, or 0 for all levels"),
        ({"method": "ode", "steps": 1000}, r"likelihood.steps=1000: choose from 1 to \d+"),
        ({"method": "ode", "steps": 0}, r"likelihood.steps=0"),
        ({"path": "/nowhere"}, r"nowhere"),
    ],
)
def test_mistakes_are_one_clear_line(workdir, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        likelihood(changed(**settings), workdir)
    assert "\n" not in str(caught.value)


def test_classes_that_the_network_does_not_know(workdir, tmp_path):
    for name in range(11):
        (tmp_path / f"{name:02d}").mkdir()
        save_png(tmp_path / f"{name:02d}" / "0.png", np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"image 10 is of class 10, but the model has classes 0 to 9"):
        likelihood(changed(path=str(tmp_path)), workdir)


def test_values_that_are_not_finite(workdir, monkeypatch):
    monkeypatch.setattr(
        job, "likelihood_program", lambda config, model: lambda variables, items: {"bits_per_dim": items[1].index / 0.0}
    )
    with pytest.raises(UserError, match=r"bits per dimension of image 0 are nan: .*sample.checkpoint"):
        likelihood(changed(num=5), workdir)
