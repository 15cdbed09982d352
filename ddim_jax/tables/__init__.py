"""Tables of settings and how good their images are: what is measured, by whom, and how it is shown.

- ``rows.py``: which rows there are; ``row_images.py``: where their images come from; ``row_progress.py``: what has been
  measured of one, and how it survives a kill.
- ``folder.py``: the folder that holds them, which several jobs share by claims (``ddim_jax/claims.py``).
- ``published_figures.py``: the papers' figures.
- ``lines.py``: from results to a table, as Markdown, CSV and JSON; ``report.py``: the same for the eye.
"""
