# ddim_jax in a container, on the CPU:
#   docker build --tag ddim_jax .
# and for NVIDIA GPUs, with CUDA 13 or 12 (CUDA itself comes with JAX's packages; the host brings its driver):
#   docker build --tag ddim_jax:cuda13 --build-arg EXTRAS=cuda13 .
# docs/install.md says how it is run.
FROM python:3.13-slim

# Extras of pyproject.toml, with commas between them, e.g. cuda12,hub.
ARG EXTRAS=""

# Compiled programs, prepared data and downloads, as whoever the program runs as.
ENV DDIM_JAX_CACHE=/cache/ddim_jax \
    HF_HOME=/cache/huggingface \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
# Like /tmp: any user may write there, and nobody may take away what is another's.
RUN install --directory --mode=1777 /cache /runs
VOLUME ["/cache", "/runs"]

WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY configs/ configs/
COPY ddim_jax/ ddim_jax/
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" && rm -rf build ./*.egg-info

USER 1000:1000
WORKDIR /runs
ENTRYPOINT ["python", "-m", "ddim_jax.main"]
CMD ["--help"]
