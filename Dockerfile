# One image for workers, runs and Prefect's server: --target cpu, or --target gpu for NVIDIA GPUs. See docs/operations.md.
# No container engine is here: the install steps were run in an empty root file system (docs/architecture.md).
FROM python:3.11-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Versions of Debian's packages are those of the base image's day; those of Python's are pinned. g++ is for kernels that
# torch compiles when they are first needed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgomp1 libnuma1 make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 brevity \
    && install --directory --owner=brevity /brevity /work
USER 1000
WORKDIR /brevity
ENV PATH=/brevity/.venv/bin:$PATH HF_HOME=/work/huggingface PREFECT_HOME=/work/prefect PIP_NO_CACHE_DIR=1
COPY --chown=brevity Makefile ./
COPY --chown=brevity conf/requirements conf/requirements
# Of a worker. A container that runs something else is started with --no-healthcheck, or with a check of its own.
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "brevity", "--type", "process", "--with-healthcheck"]

FROM base AS gpu
ENV ACCELERATOR=gpu
RUN make packages
COPY --chown=brevity . .
RUN make setup

FROM base AS cpu
ENV ACCELERATOR=cpu
RUN make packages
COPY --chown=brevity . .
RUN make setup
