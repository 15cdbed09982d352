"""How good images are: images → features over all devices → figures, beside those of real images.

- ``extractor.py``: what an extractor is; ``extractors.py``: those that ``eval.extractor`` names; ``resize.py``: how
  images become as large as networks expect; ``vision_transformers.py``: DINOv2 and CLIP; ``classifier.py``: a network
  trained on the data set itself.
- ``image_sets.py``: a data set, a folder or a file as images to compare.
- ``figures.py``: the metrics, a row each; ``accumulators.py``: the sums that they are computed from.
- ``neighbours.py``: precision, recall, density and coverage on accelerators.
- ``wanted.py``: what single images should be, and how near they come; ``perceptual.py``: LPIPS.
- ``feature_sums.py``: what is kept of features on the way; ``measurement.py``: the figures of a set of images.
- ``reference.py``: statistics of real images, and where they come from; ``reference_file.py``: their file.
"""
