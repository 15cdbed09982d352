"""How good images are: pure functions of features or pixels, which know no network, file or device.

A *feature* is what a classifier (Inception) has to say about an image: 2048 numbers, among which distances mean more
than among pixels. All of the following compare the features of generated images with those of real ones, but the
Inception score, which looks at the generated ones alone. Everything is computed in float64.

- ``features.py``: what a set of features is, and what is wrong with some.
- ``moments.py``: mean and covariance, of batches that come one by one on any number of machines.
- ``frechet.py``: the Fréchet (inception) distance, FID, between two means and covariances.
- ``kernel_distance.py``: the kernel (inception) distance, KID, which has no bias for small sets; and CMMD.
- ``precision_recall.py``: realism and diversity told apart, twice: precision and recall, density and coverage.
- ``inception_score.py``: the Inception score, from class probabilities.
- ``extrapolation.py``: the Fréchet distance of infinitely many images.
- ``memorization.py``: whether images are copies of those of the training, by their nearest ones (``nearest.py``).

Of images whose truth is known, ``image_distance.py`` (:func:`psnr`, :func:`ssim`) compares each with its own.

Figures agree with torch-fidelity's, to its own rounding. Figures of different numbers of images never compare: FID of
10,000 images is larger than FID of 50,000 of the same model by one or more.
"""

from ddim_jax.metrics.image_distance import psnr, ssim

__all__ = ["psnr", "ssim"]
