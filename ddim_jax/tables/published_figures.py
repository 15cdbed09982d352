"""Published tables as data: which rows they have, what was measured there, and what must hold to compare with them.

A row says how a published number was made, not only its sampler and S: the subsequence, and what is done to the
predicted image. Rows without figures were measured by nobody that we could cite; they are here to be measured. A table
says the rest: how many images were measured, by which network, compared with what, and which model it is about.

A figure stands here to the digit that its source prints.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NUM_IMAGES = 50_000

# Largest difference from a published figure that still agrees with it, as a share of it. What is known of the spread:
# DDIM's author measured 4.26 where the paper has 4.16 (ermongroup/ddim, issue 3), pesser 3.246 and 3.212 with the same
# weights in two frameworks, and DDPM's Inception score was printed as 9.46 +- 0.11.
TOLERANCES: Mapping[str, float] = {"fid": 0.05, "is_mean": 0.025, "precision": 0.03, "recall": 0.03}

_TRAINING_IMAGES = "the training images"


class Protocol(NamedTuple):
    """How the figures of a table were measured.

    Attributes:
        num: images of each row.
        extractor: see ``eval.extractor``.
        resize: see ``eval.resize``; empty for extractors that take images as they are.
        reference: what they are compared with, in words; the training images unless it says otherwise, in which case
            ``eval.reference`` has to name them.
    """

    num: int = NUM_IMAGES
    extractor: str = "inception"
    resize: str = "tf1"
    reference: str = _TRAINING_IMAGES

    @property
    def is_of_training_images(self) -> bool:
        """Whether the reference is all images that the model was trained on."""
        return self.reference == _TRAINING_IMAGES


class PublishedRow(NamedTuple):
    """A row of a table.

    Attributes:
        sampler: see ``sample.sampler``.
        eta: of ``ddim``; 0 for other samplers.
        spacing: see ``sample.spacing``.
        clip: see ``sample.clip``.
        steps: S.
        figures: published figures by the names that ours have, e.g. ``fid``; empty where there are none.
        source: who published them, and where.
    """

    sampler: str
    eta: float
    spacing: str
    clip: str
    steps: int
    figures: Mapping[str, float]
    source: str


class PublishedTable(NamedTuple):
    """A table of one data set.

    Attributes:
        title: what it is.
        data_names: the ``data.name`` of models that the figures can stand beside; empty for a table without figures,
            whose rows are for any model.
        rows: in the order of the table.
        model: what the published model is, by keys of the config, as far as it has to be that one for its figures.
        protocol: how they were measured.
        tolerances: by figure, the largest difference that agrees, as a share of what was published.
        lowest_of: what was published is the least of so many seeds; 1 for a single one.
    """

    title: str
    data_names: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    model: Mapping[str, Any] = {}
    protocol: Protocol = Protocol()
    tolerances: Mapping[str, float] = TOLERANCES
    lowest_of: int = 1

    def differs_from(self, model: Mapping[str, Any]) -> str:
        """Says in what a model is not the published one; empty if it is.

        Args:
            model: values by the config's keys.
        """
        other = {key: value for key, value in self.model.items() if model.get(key) != value}
        wanted = ", ".join(f"{key}={value}" for key, value in other.items())
        here = ", ".join(f"{model.get(key)}" for key in other)
        return f"the published model has {wanted}, this one {here}" if other else ""


_DDIM = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021"
_DDPM = "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020"
_IMPROVED = "Nichol, Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021, table 2"
_GUIDED = "https://github.com/openai/guided-diffusion, table in its README"
_EDM = "Karras, Aittala, Aila, Laine, NeurIPS 2022, the least of three times 50,000 images"
_DIFFUSION_MODELS_PYTORCH = "xyfJASON, diffusion-models-pytorch, results measured with torch-fidelity"


def _ddim_rows(
    etas: Mapping[float, Sequence[float]], steps: Sequence[int], spacing: str, source: str
) -> tuple[PublishedRow, ...]:
    """Makes rows of DDIM's code (``generalized_steps``), which does not clip: by eta, the FID of each S."""
    return tuple(
        PublishedRow("ddim", eta, _spacing(spacing, number), "none", number, {"fid": fid}, source)
        for eta, fids in etas.items()
        for number, fid in zip(steps, fids, strict=True)
    )


def _sigma_hat_rows(fids: Sequence[float], steps: Sequence[int], spacing: str, source: str) -> tuple[PublishedRow, ...]:
    """Makes rows of the paper's sigma-hat: in its code (``ddpm_noisy_steps``) DDPM's larger variance, with clipping."""
    return tuple(
        PublishedRow("ddpm_large", 0.0, _spacing(spacing, number), "rederive_eps", number, {"fid": fid}, source)
        for number, fid in zip(steps, fids, strict=True)
    )


def _spacing(spacing: str, steps: int) -> str:
    """Returns the spacing: a thousand steps of a thousand levels are all, where the code's quadratic list has 688."""
    return "uniform_published" if (spacing, steps) == ("quad_published", 1000) else spacing


def _rows(
    sampler: str,
    eta: float,
    spacing: str,
    clip: str,
    figures: Mapping[int, Mapping[str, float]],
    source: str = "",
) -> tuple[PublishedRow, ...]:
    """Makes rows of one sampler from figures by S."""
    return tuple(
        PublishedRow(sampler, eta, spacing, clip, steps, of_steps, source if of_steps else "")
        for steps, of_steps in figures.items()
    )


# The model of DDPM, and so of DDIM.
_DDPM_MODEL = {
    "diffusion.schedule": "linear",
    "diffusion.num_levels": 1000,
    "diffusion.objective": "eps",
    "model.num_classes": 0,
}


def _edm_table(title: str, num_classes: int, fid: float) -> PublishedTable:
    """Makes the table of EDM's deterministic sampler on CIFAR-10: 18 steps of Heun, 35 evaluations."""
    return PublishedTable(
        title,
        ("cifar10",),
        _rows("edm", 0.0, "linspace", "none", {18: {"fid": fid}}, _EDM),
        {"diffusion.schedule": "edm", "model.num_classes": num_classes},
        lowest_of=3,
    )


_TABLE_1_STEPS = (10, 20, 50, 100, 1000)
_TABLE_3_STEPS = (10, 20, 50, 100)

PUBLISHED: dict[str, PublishedTable] = {
    # Appendix D.2: quadratic subsequences for CIFAR-10, uniform ones for the others. The paper does not say what its
    # column S = 1000 visits; its sigma-hat there has DDPM's own figure, 3.17, which is that of all levels.
    "ddim-table1-cifar10": PublishedTable(
        "DDIM, table 1: CIFAR-10",
        ("cifar10",),
        (
            *_ddim_rows(
                {
                    0.0: (13.36, 6.84, 4.67, 4.16, 4.04),
                    0.2: (14.04, 7.11, 4.77, 4.25, 4.09),
                    0.5: (16.66, 8.35, 5.25, 4.46, 4.29),
                    1.0: (41.07, 18.36, 8.01, 5.78, 4.73),
                },
                _TABLE_1_STEPS,
                "quad_published",
                f"{_DDIM}, table 1",
            ),
            *_sigma_hat_rows(
                (367.43, 133.37, 32.72, 9.99, 3.17), _TABLE_1_STEPS, "quad_published", f"{_DDIM}, table 1"
            ),
        ),
        _DDPM_MODEL,
    ),
    "ddim-table1-celeba": PublishedTable(
        "DDIM, table 1: CelebA",
        ("celeb_a", "celeba"),
        (
            *_ddim_rows(
                {
                    0.0: (17.33, 13.73, 9.17, 6.53, 3.51),
                    0.2: (17.66, 14.11, 9.51, 6.79, 3.64),
                    0.5: (19.86, 16.06, 11.01, 8.09, 4.28),
                    1.0: (33.12, 26.03, 18.48, 13.93, 5.98),
                },
                _TABLE_1_STEPS,
                "uniform_published",
                f"{_DDIM}, table 1",
            ),
            *_sigma_hat_rows(
                (299.71, 183.83, 71.71, 45.20, 3.26), _TABLE_1_STEPS, "uniform_published", f"{_DDIM}, table 1"
            ),
        ),
        _DDPM_MODEL,
    ),
    # What the table calls DDPM is eta = 1. The 1000-step DDPM is that of the DDPM paper, which drew LSUN with the small
    # variance and clipping.
    "ddim-table3-bedroom": PublishedTable(
        "DDIM, table 3: LSUN bedroom",
        ("lsun/bedroom",),
        (
            *_ddim_rows(
                {0.0: (16.95, 8.89, 6.75, 6.62), 1.0: (42.78, 22.77, 10.81, 6.81)},
                _TABLE_3_STEPS,
                "uniform_published",
                f"{_DDIM}, table 3",
            ),
            *_rows("ddpm_small", 0.0, "uniform", "rederive_eps", {1000: {"fid": 6.36}}, _DDPM),
        ),
        _DDPM_MODEL,
    ),
    "ddim-table3-church": PublishedTable(
        "DDIM, table 3: LSUN church",
        ("lsun/church_outdoor",),
        (
            *_ddim_rows(
                {0.0: (19.45, 12.47, 10.84, 10.58), 1.0: (51.56, 23.37, 11.16, 8.27)},
                _TABLE_3_STEPS,
                "uniform_published",
                f"{_DDIM}, table 3",
            ),
            *_rows("ddpm_small", 0.0, "uniform", "rederive_eps", {1000: {"fid": 7.89}}, _DDPM),
        ),
        _DDPM_MODEL,
    ),
    "improved-diffusion": PublishedTable(
        "Improved DDPM, table 2: CIFAR-10, hybrid loss",
        ("cifar10",),
        _rows("ddpm_learned", 0.0, "uniform", "rederive_eps", {4000: {"fid": 3.19}}, _IMPROVED),
        {
            "diffusion.schedule": "cosine",
            "diffusion.num_levels": 4000,
            "diffusion.objective": "eps",
            "model.learn_variance": True,
            "model.num_classes": 0,
        },
    ),
    # "timestep_respacing 250"; precision and recall are of 10,000 samples in that project's evaluator.
    "guided-diffusion-64": PublishedTable(
        "ADM: ImageNet at 64x64, by class",
        ("imagenet64", "imagenet_resized/64x64"),
        _rows(
            "ddpm_learned",
            0.0,
            "openai",
            "rederive_eps",
            {250: {"fid": 2.07, "precision": 0.74, "recall": 0.63}},
            _GUIDED,
        ),
        {
            "diffusion.schedule": "cosine",
            "diffusion.num_levels": 1000,
            "model.learn_variance": True,
            "model.num_classes": 1000,
        },
        Protocol(reference="guided-diffusion's VIRTUAL_imagenet64_labeled.npz"),
    ),
    "edm-cifar10": _edm_table("EDM: CIFAR-10, 35 evaluations", 0, 1.97),
    "edm-cifar10-cond": _edm_table("EDM: CIFAR-10 by class, 35 evaluations", 10, 1.79),
    # Uniform subsequences throughout. DDIM with eta = 0 clips, as where its figures come from; with eta = 1 it does
    # not, as in DDIM's code: clipped, it would be DDPM with the small variance once more.
    "ddpm-ddim": PublishedTable(
        "DDPM and DDIM, CIFAR-10",
        ("cifar10",),
        (
            *_rows(
                "ddpm_large",
                0.0,
                "uniform",
                "rederive_eps",
                {
                    1000: {"fid": 3.0459, "is_mean": 9.4515},
                    100: {"fid": 46.55},
                    50: {"fid": 85.22},
                    10: {"fid": 266.75},
                },
                _DIFFUSION_MODELS_PYTORCH,
            ),
            *_rows(
                "ddpm_small",
                0.0,
                "uniform",
                "rederive_eps",
                {1000: {"fid": 5.37}, 100: {"fid": 11.22}, 50: {"fid": 15.05}, 10: {"fid": 41.05}},
                _DIFFUSION_MODELS_PYTORCH,
            ),
            *_rows(
                "ddim",
                0.0,
                "uniform",
                "rederive_eps",
                {1000: {"fid": 4.1892}, 100: {"fid": 6.0508}, 50: {"fid": 7.7011}, 10: {"fid": 18.9559}},
                _DIFFUSION_MODELS_PYTORCH,
            ),
            *_rows("ddim", 1.0, "uniform", "none", {1000: {}, 100: {}, 50: {}, 10: {}}),
        ),
        _DDPM_MODEL,
    ),
    "ddpm": PublishedTable(
        "DDPM, table 1: CIFAR-10",
        ("cifar10",),
        # The score is of one split (eval.is_splits=1); of ten it differs by less than the tolerance.
        _rows("ddpm_large", 0.0, "uniform", "rederive_eps", {1000: {"fid": 3.17, "is_mean": 9.46}}, _DDPM),
        _DDPM_MODEL,
    ),
    "step-times": PublishedTable(
        "What quality costs in time",
        (),
        (
            *_rows("ddim", 0.0, "uniform", "none", {50: {}, 100: {}, 500: {}, 1000: {}}),
            *_rows("ddpm_large", 0.0, "uniform", "rederive_eps", {1000: {}}),
        ),
    ),
}


# Table 2 is no table of samples: its rows are of --mode=reconstruct. Per-dimension mean squared error by S, pixels in
# [0, 1], and the unit of its last digit.
DDIM_TABLE_2: Mapping[int, tuple[float, float]] = {
    10: (0.014, 1e-3),
    20: (0.0065, 1e-4),
    50: (0.0023, 1e-4),
    100: (0.0009, 1e-4),
    200: (0.0004, 1e-4),
    500: (0.0001, 1e-4),
    1000: (0.0001, 1e-4),
}
DDIM_TABLE_2_IMAGES = ("cifar10", "test", 10_000)


def published_row(
    data_name: str,
    sampler: str,
    eta: float,
    spacing: str,
    clip: str,
    steps: int,
    model: Mapping[str, Any] = {},
    preset: str = "",
) -> PublishedRow | None:
    """Finds the published row made in just this way on this data set, if there is one with figures.

    Where several tables have one, that of the preset is taken, else one of the same model.

    Args:
        data_name: ``data.name`` of the model.
        sampler: see :class:`PublishedRow`.
        eta: see :class:`PublishedRow`.
        spacing: see :class:`PublishedRow`.
        clip: see :class:`PublishedRow`.
        steps: S.
        model: values by the config's keys.
        preset: name of a table.
    """
    tables = {name: table for name, table in PUBLISHED.items() if data_name in table.data_names}
    for name in sorted(tables, key=lambda name: (name != preset, bool(tables[name].differs_from(model)))):
        for row in tables[name].rows:
            if row.figures and row[:5] == (sampler, eta, spacing, clip, steps):
                return row
    return None
