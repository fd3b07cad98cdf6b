# A CPU image that runs `make demo`; for GPU nodes build with --build-arg ACCELERATOR=gpu. Workers start runs in it (docs/operations.md).
# Not built on any machine here: see docs/architecture.md, "What no machine here has run".
FROM python:3.11-slim
ARG ACCELERATOR=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends make gcc g++ libnuma1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /brevity
COPY . .
RUN make setup ACCELERATOR=${ACCELERATOR}
ENV ACCELERATOR=${ACCELERATOR} PATH=/brevity/.venv/bin:${PATH}
CMD ["make", "demo"]
