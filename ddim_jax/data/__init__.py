"""Images for training: where they come from and how batches are made.

- ``sources``: digits, a folder of images, or a TFDS data set, each a random-access sequence.
- ``splits``: the part of a source that ``data.split`` names.
- ``transforms``: one image of any kind to uint8 [image_size, image_size, channels].
- ``prepared``: images transformed once and kept on disk, for this and later runs.
- ``pipeline``: batches as a function of (seed, step), and plain reading in a given order.
- ``statistics``: mean and standard deviation of the pixels.
"""
