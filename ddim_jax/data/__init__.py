"""Images for training: where they come from and how batches are made.

- ``sources``: digits, a folder of images, or a TFDS data set, each a random-access sequence.
- ``transforms``: one image of any kind to uint8 [image_size, image_size, channels].
- ``pipeline``: batches as a function of (seed, step), and plain reading in a given order.
"""
