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
# # DDIM in fifty lines
#
# **What it shows.** How a diffusion model draws samples: what noise levels are, what a denoiser says, and how DDIM walks
# from noise to data. First everything is written by hand in NumPy, then the same is done by `ddim_jax`, and both agree
# to more than six digits.
#
# **What it needs.** Seconds on a CPU, no data and no training: the data are a mixture of Gaussians in the plane, for
# which the best possible denoiser is known in closed form.

# %%
import itertools

import jax
import matplotlib.pyplot as plt
import numpy as np

from ddim_jax import diffusion

# Both sides compute in float64, so that they can be compared closely.
jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The data
#
# Six round blobs on a circle, the first three of them twice as frequent as the others. Coordinates play the role of
# pixels.

# %%
angles = 2 * np.pi * np.arange(6) / 6
means = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
weights = np.array([2, 2, 2, 1, 1, 1]) / 9
deviation = 0.12

rng = np.random.default_rng(0)
data = means[rng.choice(6, size=2000, p=weights)] + deviation * rng.normal(size=(2000, 2))

# %% [markdown]
# ## Noise levels
#
# At level $t$ a data point $x_0$ has become
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim N(0, I).$$
#
# Level 0 is the clean point, $\bar\alpha_0 = 1$; at level $T = 1000$ hardly anything of it is left. DDPM's linear schedule
# says how fast it goes.

# %%
T = 1000
beta = np.linspace(1e-4, 0.02, T)
alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])  # alpha_bar[t] is that of level t

fig, axes = plt.subplots(1, 5, figsize=(10, 2.2), dpi=70, sharex=True, sharey=True)
for ax, t in zip(axes, [0, 100, 250, 500, 1000], strict=True):
    noisy = np.sqrt(alpha_bar[t]) * data + np.sqrt(1 - alpha_bar[t]) * rng.normal(size=data.shape)
    ax.scatter(*noisy.T, s=1, color="tab:blue", alpha=0.4)
    ax.set(title=f"level {t}", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
plt.show()

# %% [markdown]
# ## The denoiser
#
# A network would be trained to guess the noise $\varepsilon$ in $x_t$. Trained perfectly it would answer the expected
# noise, $\mathrm{E}[\varepsilon \mid x_t]$. Here we can write that down. A component of the mixture with mean $\mu_k$ is,
# at level $t$, a Gaussian with mean $\sqrt{\bar\alpha_t}\mu_k$ and variance
# $v_t = \bar\alpha_t s^2 + 1 - \bar\alpha_t$. Knowing $x_t$, component $k$ has the probability $r_k$, and
#
# $$\mathrm{E}[\varepsilon \mid x_t] = \frac{\sqrt{1 - \bar\alpha_t}}{v_t} \Bigl(x_t - \sqrt{\bar\alpha_t} \sum_k r_k \mu_k\Bigr).$$


# %%
def expected_noise(x, a, xp=np):
    """E[eps | x] for points x [n, 2] at a level with alpha_bar a; in JAX with xp=jax.numpy."""
    variance = a * deviation**2 + 1 - a
    offsets = x[:, None] - xp.sqrt(a) * means
    logits = xp.log(weights) - (offsets**2).sum(-1) / (2 * variance)
    r = xp.exp(logits - logits.max(1, keepdims=True))
    r = r / r.sum(1, keepdims=True)
    return xp.sqrt(1 - a) / variance * (x - xp.sqrt(a) * (r @ means))


# %% [markdown]
# ## DDIM
#
# One step goes from level $t$ to a cleaner level $t'$, which need not be the next one: that is why DDIM is fast. From
# the guessed noise follows a guess of the clean point, $\hat x_0 = (x_t - \sqrt{1 - \bar\alpha_t}\,\hat\varepsilon) /
# \sqrt{\bar\alpha_t}$. That is noised again to level $t'$. Some of the noise is the old one, and some, as much as
# $\eta$ says, is fresh:
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1 - \bar\alpha_{t'} - \sigma^2}\,\hat\varepsilon + \sigma z,$$
#
# $$\sigma = \eta \sqrt{\frac{1 - \bar\alpha_{t'}}{1 - \bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}}.$$
#
# With $\eta = 0$ nothing is fresh: the same start always ends at the same point. With $\eta = 1$ it is DDPM.


# %%
def levels_of(steps):
    """The levels visited: evenly spaced, noisiest first, and the clean one at the end."""
    return [T * i // steps + 1 for i in reversed(range(steps))] + [0]


def ddim(x, steps, eta, fresh_noise):
    """From noise x [n, 2] to samples; returns all points on the way, [steps + 1, n, 2]."""
    way = [x]
    levels = levels_of(steps)
    for k, (t, t_next) in enumerate(itertools.pairwise(levels)):
        a, a_next = alpha_bar[t], alpha_bar[t_next]
        eps = expected_noise(x, a)
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        sigma = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - sigma**2) * eps + sigma * fresh_noise(k)
        way.append(x)
    return np.stack(way)


# %% [markdown]
# That was all of it. For noise we take the library's own random numbers, so that we can compare later: each sample has a
# key; its draw 0 is the noise that it begins with, its draw $k + 1$ the fresh noise of step $k$.

# %%
n, steps = 500, 50
keys = diffusion.image_keys(seed=0, index=jax.numpy.arange(n))


def draw(k):
    """Standard normal numbers [n, 2]: draw k of each key."""
    return np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), (2,), "float64"))(keys))


by_hand = {eta: ddim(draw(0), steps, eta, lambda k: draw(k + 1)) for eta in (0.0, 1.0)}

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), dpi=70, sharex=True, sharey=True)
axes[0].scatter(*data[:n].T, s=3, color="tab:gray")
axes[0].set_title("data")
for ax, (eta, way) in zip(axes[1:], by_hand.items(), strict=True):
    ax.scatter(*way[-1].T, s=3, color="tab:orange" if eta else "tab:blue")
    ax.set_title(f"{steps} steps, eta = {eta:g}")
for ax in axes:
    ax.set(aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
plt.show()

# %% [markdown]
# Both draw the six blobs, the right one and the two upper ones more often. How they get there differs. Here are the
# same six starts, first without fresh noise, then with.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), dpi=70, sharex=True, sharey=True)
for ax, (eta, way) in zip(axes, by_hand.items(), strict=True):
    for i in range(6):
        ax.plot(*way[:, i].T, lw=0.9, alpha=0.8)
    ax.scatter(*way[0, :6].T, s=14, color="black", zorder=3, label="start: noise")
    ax.scatter(*way[-1, :6].T, s=26, color="tab:red", marker="*", zorder=3, label="end: sample")
    ax.set(title=f"eta = {eta:g}", aspect="equal", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# With $\eta = 0$ the ways are smooth, and an end belongs to its start: this is what makes encoding, interpolation and
# few large steps possible. With $\eta = 1$ a point wanders and may change its mind until late.
#
# ## The same by the library
#
# `ddim_jax.diffusion` is the mathematics alone, which knows no network library. A "network" is any function of noisy
# images `[n, height, width, channels]` and of a time; our points are images of one pixel with two channels. The time
# that a network is told is the level less one, as in all published checkpoints.

# %%
schedule = diffusion.make_schedule("linear")


def network(x, time):
    """The exact denoiser in the form of a network."""
    a = jax.numpy.asarray(schedule.alpha_bar)[time[0].astype(int) + 1]
    return expected_noise(x.reshape(-1, 2), a, jax.numpy).reshape(x.shape)


predict = diffusion.make_predict(network, objective="eps")
pairs = diffusion.level_pairs(diffusion.sampling_levels("uniform", T, steps))
noise = diffusion.initial_noise(keys, (1, 1, 2), "float64")

for eta in (0.0, 1.0):
    sampler = diffusion.make_sampler("ddim", schedule, pairs, eta=eta)
    by_library = np.asarray(sampler.run(predict, noise, keys)).reshape(n, 2)
    difference = np.abs(by_library - by_hand[eta][-1]).max()
    print(f"eta = {eta:g}: largest difference below 1e-6: {difference < 1e-6}")
    assert difference < 1e-6

# %% [markdown]
# ## How many steps?
#
# With $\eta = 0$ the steps follow a smooth curve, the solution of a differential equation, as Euler's method does. So the
# error halves when the steps double. Other samplers of the library follow the same curve more cleverly; they are a
# name away. All are compared with a thousand steps of DDIM's kin of second order.


# %%
def end(name, steps):
    """Where the library's sampler takes the noise."""
    pairs = diffusion.level_pairs(diffusion.sampling_levels("trailing", T, steps))
    return np.asarray(diffusion.make_sampler(name, schedule, pairs).run(predict, noise))


reference = end("dpmpp_2m", 1000)
counts = [10, 20, 50, 100, 200]
fig, ax = plt.subplots(figsize=(5, 3.4), dpi=70)
for name in ("ddim", "dpmpp_2m", "unipc2"):
    ax.loglog(counts, [np.abs(end(name, steps) - reference).mean() for steps in counts], "o-", label=name)
ax.set(xlabel="evaluations of the denoiser", ylabel="mean distance from the exact end")
ax.set_xticks(counts, [str(count) for count in counts])
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# **Where to go on.** [Draw and edit](draw_and_edit.ipynb) does all this with a network and pictures. The modules of
# `ddim_jax/diffusion/` are written to be read; the docstring of `ddim_jax.diffusion` says in which order.
