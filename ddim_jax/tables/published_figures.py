"""Published tables as data: which rows they have, and what was measured there.

A row says how a published number was made, not only its sampler and S: the subsequence, and what is done to the
predicted image. Rows without figures were measured by nobody that we could cite; they are here to be measured.

All FIDs are of 50,000 images, compared with the training images by the 2015 Inception network. A figure stands here to
the digit that its source prints.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

NUM_IMAGES = 50_000


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
    """

    title: str
    data_names: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


_DDIM = "Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021"
_DDPM = "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020"
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
    ),
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


def published_row(data_name: str, sampler: str, eta: float, spacing: str, clip: str, steps: int) -> PublishedRow | None:
    """Finds the published row made in just this way on this data set, if there is one with figures.

    Args:
        data_name: ``data.name`` of the model.
        sampler: see :class:`PublishedRow`.
        eta: see :class:`PublishedRow`.
        spacing: see :class:`PublishedRow`.
        clip: see :class:`PublishedRow`.
        steps: S.
    """
    for table in PUBLISHED.values():
        if data_name in table.data_names:
            for row in table.rows:
                if row.figures and row[:5] == (sampler, eta, spacing, clip, steps):
                    return row
    return None
