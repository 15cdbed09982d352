"""Images for training: where they come from and how batches are made.

- ``sources``: digits, a folder of images, or a TFDS data set, each a random-access sequence.
- ``splits``: the part of a source that ``data.split`` names.
- ``transforms``: one image of any kind to uint8 [image_size, image_size, channels].
- ``reading``: many images by several threads, and what becomes of those that cannot be used.
- ``prepared``: images transformed once and kept on disk, for this and later runs.
- ``batch_order``: which examples form the batch of a step, from (seed, step).
- ``batches``: those batches, from memory, disk or source.
- ``on_device``: the same batches, from images in the devices' memory.
- ``statistics``: mean and standard deviation of the pixels.
- ``first_images``: a few images of a data set, a folder or a file.
"""
