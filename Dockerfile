# The CUDA packages of requirements/gpu.lock on CUDA's compilers, for a driver of CUDA 13 (580 or newer).
#   docker build --build-arg UID=$(id -u) -t gigpo-mega .    (who owns what it writes to a mounted folder)
#   docker run --gpus all --ipc host -v $PWD/runs:/app/runs gigpo-mega train configs/quickstart.yaml
# --build-arg TRANSFORMER_ENGINE=1 builds its torch half, APEX=<commit> NVIDIA apex; both take long.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Compilers stay: SGLang and Triton compile kernels when they run. The system's packages are those of its release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        build-essential ca-certificates git make ninja-build python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

ARG UID=10001
RUN useradd --create-home --uid "$UID" trainer && install --directory --owner trainer /app
USER $UID
WORKDIR /app

COPY --chown=trainer . .
RUN make setup-gpu && .venv/bin/python -m pip cache purge

ARG TRANSFORMER_ENGINE=0
RUN if [ "$TRANSFORMER_ENGINE" = 1 ]; then make setup-te; fi

ARG APEX=
RUN if [ -n "$APEX" ]; then \
        APEX_CPP_EXT=1 APEX_CUDA_EXT=1 .venv/bin/python -m pip install --no-deps --no-build-isolation \
            "git+https://github.com/NVIDIA/apex@$APEX"; \
    fi

ENTRYPOINT [".venv/bin/gigpo-mega"]
CMD ["--help"]
