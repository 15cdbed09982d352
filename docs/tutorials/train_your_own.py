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
# # Train on your own array
#
# **What it shows.** How to get from an array of images to a model that draws new ones: one call trains, one draws.
#
# **What it needs.** An array `[n, height, width, channels]` or `[n, height, width]`, and labels if there are classes.
# Here it is scikit-learn's 1,797 digits of 8x8 pixels, which come with it. A CPU of today trains these few steps in half
# a minute; more steps make better digits.

# %%
import numpy as np
from sklearn.datasets import load_digits

import ddim_jax

digits = load_digits()
images = (digits.images * 255 / 16).round().astype(np.uint8)
labels = digits.target
print(images.shape, images.dtype, "classes", labels.min(), "to", labels.max())
ddim_jax.show(images[:20, :, :, None], columns=10)

# %% [markdown]
# ## Train
# The first argument is a config: a file, one of the package's by name, or `None` for a small network that suits the
# images. Any key of a config can be given by keyword, with two underscores for the dot: `train__learning_rate=1e-3` is
# `train.learning_rate`. While it trains, a bar shows how far it is. What is returned draws with the moving average of
# the weights.
#
# With `workdir="runs/mine"` the run is kept in a folder: it can be interrupted and goes on where it was, and all modes of
# the command line work on it. Without one, it goes when the pipeline does.

# %%
pipe = ddim_jax.train(None, images, labels, steps=300, train__learning_rate=2e-3)
pipe

# %% [markdown]
# ## Draw
# Labels were given, so classes can be chosen, by `label=3` or so many of each by `per_class`, which draws the classes in
# turn: each column is one.

# %%
drawn = pipe.sample(per_class=5, steps=20)
ddim_jax.show(drawn, columns=10)

# %% [markdown]
# After so few steps some are crooked. A quick check: does a plain classifier, which has
# seen only real digits, read them as what they were meant to be?

# %%
from sklearn.neighbors import KNeighborsClassifier

reader = KNeighborsClassifier(3).fit(images[:1500].reshape(1500, -1), labels[:1500])
print(f"real digits it has not seen: {reader.score(images[1500:].reshape(-1, 64), labels[1500:]):.0%} read right")

many = pipe.sample(per_class=50, steps=20)
meant = np.arange(len(many)) % 10
print(f"drawn digits:                {reader.score(many.reshape(-1, 64), meant):.0%} read right")

# %% [markdown]
# ## Has it learned by heart?
# With few images and long training a model may copy. Under each drawn image stands the nearest real one: alike, but not
# the same.

# %%
some = many[:10]
distance = ((some.reshape(10, 1, 64).astype(float) - images.reshape(1, -1, 64)) ** 2).sum(-1)
nearest = images[distance.argmin(1)][..., None]
ddim_jax.show(np.stack([some, nearest]))

# %% [markdown]
# ## Keep it
# A run with a workdir is loaded again by `ddim_jax.load`. Here in short: ten steps, kept, loaded, and going on to twenty.

# %%
ddim_jax.train(None, images, labels, steps=10, workdir="runs/short", progress=False)
again = ddim_jax.train(None, images, labels, steps=20, workdir="runs/short", progress=False)
print(again)
print(ddim_jax.load("runs/short").step, "steps")

# %% [markdown]
# **Where to go on.** Images in folders, in `.npz` or Parquet files, other sizes, colours and values are in
# [own data](../own_data.md), longer recipes in [recipes](../recipes.md).
# [Samplers compared](samplers_compared.ipynb) says how many steps to draw with.
