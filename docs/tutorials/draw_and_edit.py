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
# # Draw, invert, interpolate, edit
#
# **What it shows.** What a trained model can do besides drawing: draw a chosen class, find the noise that a picture is
# drawn from, walk from one picture to another, complete a picture of which a part is missing, make a digit of a scribble.
#
# **What it needs.** The model comes with the package: 28x28 digits, ten classes. Nothing is downloaded; a CPU takes a
# minute or less, most of it to compile programs. (Each kind of call compiles once; another number of steps, seed or
# label does not.) Where a call takes longer than a second, a bar shows how far it is.

# %%
import numpy as np

import ddim_jax

pipe = ddim_jax.load("mnist-small")
pipe

# %% [markdown]
# A pipeline shows what it is and four images. The methods below return arrays: uint8 `[n, height, width, channels]`.
# `ddim_jax.show` makes one picture of them, `pipe.sample(...)` draws.
#
# ## Draw
# Without a label the ten classes come in turn. Image $i$ depends on the seed and on $i$ alone, however many are drawn
# at once.

# %%
images = pipe.sample(16, seed=0, steps=20)
print(images.shape, images.dtype)
ddim_jax.show(images, columns=8)

# %% [markdown]
# `label` chooses the class.

# %%
ddim_jax.show(pipe.sample(8, seed=0, steps=20, label=3), columns=8)

# %% [markdown]
# **Guidance** exaggerates the class. The network is asked twice, with the label and without, and the difference is
# multiplied by a scale: 1 takes the network by its word, 2 is this model's default, more makes digits clearer and more
# alike. Each row below has one scale, from 1 to 4, and the same noise.

# %%
scales = (1.0, 2.0, 4.0)
ddim_jax.show(np.stack([pipe.sample(8, seed=4, steps=20, guidance_scale=scale) for scale in scales]))

# %% [markdown]
# ## On the way
# What does the network believe while it draws? `trajectory` keeps noisy images and the clean ones guessed from them.
# Above the noisy image at eight moments, below the guess: first an average of what could be, then one digit.

# %%
way = pipe.trajectory([7], moments=8, steps=20, seed=0)
ddim_jax.show(np.stack([way.x[0], way.x0[0]]))

# %% [markdown]
# ## Invert
# With $\eta = 0$ DDIM is a map from noise to images that can be followed backwards. `encode` finds the noise of an image,
# `decode` draws it again. The way back is exact only for infinitely small steps, so more steps find the image better.
# Guidance bends the way and makes it harder to follow backwards; here it is switched off by a scale of 1.

# %%
labels = np.arange(8)
originals = pipe.sample(8, seed=1, steps=20)
rows = [originals]
for steps in (20, 80):
    settings = {"labels": labels, "steps": steps, "guidance_scale": 1.0}
    latents = pipe.encode(originals, **settings)
    rows.append(pipe.decode(latents, **settings))
    error = np.abs(rows[-1].astype(float) - originals).mean()
    print(f"{steps} steps: mean error of a pixel {error:.1f} of 255")
ddim_jax.show(np.stack(rows))

# %% [markdown]
# The first row has the images, the others what 20 and 80 steps make of them. What `encode` finds is nearly standard
# normal noise, as it should be:

# %%
print(f"mean {latents.mean():.2f}, standard deviation {latents.std():.2f}")

# %% [markdown]
# ## Interpolate
# Between two noises lies an arc of others, each as good as they are. Decoded, it leads from one image to another by way
# of images that are digits too. Every row keeps its class; the hand that writes changes.

# %%
pairs = pipe.interpolate([0, 1], [10, 12], points=8, steps=20, condition={"label": np.array([2, 7])})
ddim_jax.show(pairs)

# %% [markdown]
# Latents are arrays, so anything can be done to them: here the style of one image, its noise, is decoded as eight
# classes.

# %%
style = pipe.noise([14], seed=1)
ddim_jax.show(pipe.decode(np.repeat(style, 8, axis=0), labels=labels, steps=20), columns=8)

# %% [markdown]
# ## Complete a picture
# `inpaint` keeps what a mask says and draws the rest so that it fits (RePaint: each stretch of steps is gone over a few
# times, so that both parts come to agree). The upper halves of four digits are kept and the rest is drawn twice, with
# two seeds.

# %%
digits = originals[[3, 2, 4, 7]]
keep = np.zeros((28, 28), bool)
keep[:14] = True
spoilt = np.where(keep[:, :, None], digits, 128).astype(np.uint8)
settings = {"steps": 20, "resamplings": 3, "jump": 5}
completed = [pipe.inpaint(digits, keep, labels=[3, 2, 4, 7], seed=seed, **settings) for seed in (0, 1)]
ddim_jax.show(np.stack([digits, spoilt, *completed]))

# %% [markdown]
# Rows: the digits, what is kept, two ways to complete them. What is kept is kept
# exactly.
#
# ## From a scribble
# `recover` noises a picture up to a level and draws from there (SDEdit). The lower the level, the more of the picture
# stays; the higher, the more the model has its way. Here is a seven made of two bars.

# %%
scribble = np.zeros((28, 28, 1), np.uint8)
scribble[6:9, 7:21] = 255
for row in range(9, 23):
    column = 19 - (row - 9) // 2
    scribble[row, column - 1 : column + 2] = 255

levels = (200, 400, 600, 800)
columns = [scribble] + [pipe.recover(scribble[None], level, labels=[7], steps=40)[1][0] for level in levels]
ddim_jax.show(np.stack(columns), columns=len(columns))

# %% [markdown]
# The scribble, and what becomes of it from levels 200, 400, 600 and 800 of 1,000.
#
# **Where to go on.** [Train on your own array](train_your_own.ipynb). From the command line the same are the modes
# `sample`, `trajectory`, `reconstruct`, `interpolate` and `edit`, which work on any number of images and devices.
