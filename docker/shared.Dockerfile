# The first half of both images' Dockerfiles; docker/train/Dockerfile or docker/serve/Dockerfile is the second. Both
# build and store these layers once.
ARG BASE_IMAGE=debian:bookworm-slim
ARG IMAGENET_WEIGHTS=none
# What the second half goes on from. Without this line before it, it says what to do instead.
ARG PACKAGES=packages

FROM ${BASE_IMAGE} AS base
# No versions: Debian's mirrors keep only the newest of a release; the base image's digest decides what is had.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.11 tini \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/debconf/*-old \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +

# The compiler and pip live in this stage and the ones built on it; no image is made from them.
FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.11 -m venv /opt/build \
    && python3.11 -m venv --without-pip /opt/torch
# Where packages come from is a secret of the build (a pip.conf, which may name the CA bundle): neither is in a layer.
ENV PIP_CONFIG_FILE=/run/secrets/pip_conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# torch and what it needs, trimmed. "" is CUDA 13, "-cu12" CUDA 12.
FROM build AS torch
ARG CUDA_VARIANT=""
COPY requirements/torch${CUDA_VARIANT}.txt /tmp/torch.txt
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    /opt/build/bin/pip --python /opt/torch/bin/python install --quiet --no-deps --require-hashes -r /tmp/torch.txt
COPY docker/trim.py /tmp/trim.py
ARG TRIM=""
RUN python3.11 /tmp/trim.py /opt/torch/lib/python3.11/site-packages /opt/train-only/lib/python3.11/site-packages \
    /opt/left-out ${TRIM}

FROM base AS runtime
COPY --from=torch /opt/torch /opt/torch
ENV PATH=/opt/app/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Everything else gets an environment of its own, which sees torch's.
FROM torch AS packages
RUN python3.11 -m venv --without-pip /opt/app \
    && echo "import site; site.addsitedir('/opt/torch/lib/python3.11/site-packages')" \
        > /opt/app/lib/python3.11/site-packages/torch.pth
