# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Samplers compared
#
# **What it shows.** How good images are for how many network evaluations, by sampler; once by distance from the exact
# solution, once by a Fréchet distance as in FID; and how much of a difference is only chance.
#
# **What it needs.** Nothing but the package and scikit-learn's digits, under a minute on a CPU. The figures are of few
# and small images. They show the method, and an order of samplers that also holds elsewhere; they are no benchmark.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import ddim_jax
from ddim_jax import diffusion
from ddim_jax.metrics.frechet import frechet_distance
from ddim_jax.metrics.moments import Moments

# %% [markdown]
# ## A trained network: how far from the exact solution?
#
# All deterministic samplers approximate the same curve from noise to image. So a fair question has a figure without any
# chance in it: drawn from the same noise, how far is the image from the one that very many steps would give? PSNR says it
# in decibels, higher is better; 30 dB is hard to see on a digit. The reference is 100 steps of DPM-Solver++ 2M.
# (Guidance, which asks the network twice in each step, is switched off by its scale of 1.)

# %%
pipe = ddim_jax.load("mnist-small")
NUM = 8
settings = {"spacing": "trailing", "guidance_scale": 1.0}
reference = pipe.sample(NUM, steps=100, sampler="dpmpp_2m", **settings)

counts = [5, 10, 20]
names = ["ddim", "dpmpp_2m", "unipc2"]
drawn = {(name, steps): pipe.sample(NUM, steps=steps, sampler=name, **settings) for name in names for steps in counts}
quality = {key: ddim_jax.metrics.psnr(images, reference, data_range=255) for key, images in drawn.items()}

fig, ax = plt.subplots(figsize=(5.5, 3.4), dpi=70)
for name in names:
    each = [quality[name, steps] for steps in counts]
    # What eight other images would have given, about: the standard error of the mean.
    ax.errorbar(
        counts,
        [values.mean() for values in each],
        [values.std(ddof=1) / np.sqrt(NUM) for values in each],
        fmt="o-",
        capsize=3,
        label=name,
    )
ax.set(xlabel="steps", ylabel="PSNR to the exact solution, dB", xscale="log")
ax.set_xticks(counts, [str(count) for count in counts])
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# The solvers of second order are nearer after 10 steps, and far nearer after 20; the bars tell how much eight other
# images might differ. (It is the same noise for all samplers, so differences are surer than the bars look.) With 5 steps, from above: DDIM, DPM-Solver++ 2M, UniPC,
# and the exact solution.

# %%
ddim_jax.show(np.stack([*(drawn[name, 5] for name in names), reference]))

# %% [markdown]
# ## A set of images: is the whole as it should be?
#
# Samplers that add noise do not follow that curve, and yet draw good images. They are judged by the whole set: FID fits
# a Gaussian to the features of the drawn and one to those of the real images, and takes the distance of the two. Here the
# features are simply the 64 pixels.
#
# So that only the sampler can be at fault, the network is perfect: for data that are the 1,797 digits, each blurred by a
# little Gaussian noise, the best denoiser is known in closed form (as in [DDIM in fifty lines](ddim_by_hand.ipynb)).

# %%
digits = load_digits().images.reshape(-1, 64) / 8 - 1
deviation = 0.15
schedule = diffusion.make_schedule("cosine")


def network(x, time):
    """The expected noise in x [n, 1, 1, 64], if the data are the blurred digits."""
    a = jax.numpy.asarray(schedule.alpha_bar, x.dtype)[time[0].astype(int) + 1]
    points = x.reshape(-1, 64)
    variance = a * deviation**2 + 1 - a
    means = jax.numpy.sqrt(a) * digits
    distances = (points**2).sum(1, keepdims=True) - 2 * points @ means.T + (means**2).sum(1)
    expected = jax.nn.softmax(-distances / (2 * variance), axis=1) @ means
    return (jax.numpy.sqrt(1 - a) / variance * (points - expected)).reshape(x.shape)


predict = diffusion.make_predict(network, objective="eps")


def draw(name, steps, num, eta=0.0, spacing="trailing"):
    """Digits [num, 64] drawn by a sampler."""
    pairs = diffusion.level_pairs(diffusion.sampling_levels(spacing, schedule.num_levels, steps))
    sampler = diffusion.make_sampler(name, schedule, pairs, eta=eta)
    keys = diffusion.image_keys(0, jax.numpy.arange(num))
    return np.asarray(sampler.run(predict, diffusion.initial_noise(keys, (1, 1, 64)), keys)).reshape(num, 64)


def real(seed, num=500):
    """As many blurred real digits."""
    rng = np.random.default_rng(seed)
    return digits[rng.integers(len(digits), size=num)] + deviation * rng.normal(size=(num, 64))


def distance(images, others):
    """Fréchet distance of the pixels of two sets."""
    return frechet_distance(Moments.empty(64).update(images), Moments.empty(64).update(others))


# %% [markdown]
# **How noisy is it?** First the distance between real images and other real ones. It is not 0, because five hundred images
# do not say exactly what mean and covariance are: that is the floor below which no sampler can come, and its spread from
# one draw to the next is the smallest difference that means anything.

# %%
truth = real(seed=0, num=20_000)
floor = np.array([distance(real(seed), truth) for seed in range(1, 9)])
print(f"real against real: {floor.mean():.3f}, give or take {floor.std(ddof=1):.3f}")

# %%
kinds = {
    "ddim, eta 0": ("ddim", 0.0),
    "ddim, eta 1": ("ddim", 1.0),
    "dpmpp_2m": ("dpmpp_2m", 0.0),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", 0.0),
}
counts = [5, 10, 20, 40]
SETS = 4

fig, ax = plt.subplots(figsize=(6, 3.8), dpi=70)
for label, (name, eta) in kinds.items():
    sets = [np.split(draw(name, steps, 500 * SETS, eta), SETS) for steps in counts]
    found = np.array([[distance(images, truth) for images in each] for each in sets])
    ax.errorbar(counts, found.mean(1), found.std(1, ddof=1), fmt="o-", capsize=3, label=label)
    print(f"{label:13}", *(f"{s:3d}: {mean:6.3f}" for s, mean in zip(counts, found.mean(1), strict=True)))
ax.axhspan(floor.min(), floor.max(), color="tab:gray", alpha=0.3, label="real against real")
ax.set(xlabel="network evaluations", ylabel="Fréchet distance of pixels", xscale="log", ylim=(0, 1.3))
ax.set_xticks(counts, [str(count) for count in counts])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# The bars are the spread of four sets of five hundred; where they overlap, nothing has been shown. From about 20 steps on
# all samplers are as near to the data as other data are, and this measure of so few images can tell no more. Below that,
# the second-order solvers lead, with fresh noise or without, and among the two kinds of DDIM the one without fresh noise: noise that is added late
# needs small steps to be taken away again.
#
# Which levels are visited matters as much as the sampler. The same five steps, at levels spaced in other ways:

# %%
for spacing in ("trailing", "uniform", "linspace"):
    found = {name: distance(draw(name, 5, 500, spacing=spacing), truth) for name in ("ddim", "dpmpp_2m")}
    print(f"{spacing:9}", *(f"{name} {value:6.2f}" for name, value in found.items()))

# %% [markdown]
# A solver of second order extrapolates from its last step to the next; where steps differ much in what they change, as
# at the ends of these lists, that goes wrong. So compare samplers each at its own good spacing, with equal numbers of evaluations and of images.
#
# **Where to go on.** With real data, `--mode=evaluate` measures FID and its kin, and `--mode=sweep` fills a table of samplers
# and steps: [evaluation](../evaluation.md). How to need fewer steps still: [few steps](../few_steps.md).
