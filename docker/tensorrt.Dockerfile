# dtp-deploy with NVIDIA's TensorRT, for a machine with an NVIDIA GPU.
#
#   docker build -f docker/tensorrt.Dockerfile -t dtp-deploy:tensorrt .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD":/work dtp-deploy:tensorrt \
#       compress model.pt --model my_models:make_model --target tensorrt --latency 60% --data data.npz \
#       --input 1x3x32x32 --out pruned
#
# Another TensorRT: --build-arg TENSORRT_IMAGE=25.03-py3 (TensorRT 10.9). From 24.12 on the image has Python 3.12.

# TensorRT 10.13.2, CUDA 13.0, Ubuntu 24.04, Python 3.12.
ARG TENSORRT_IMAGE=25.08-py3

FROM nvcr.io/nvidia/tensorrt:${TENSORRT_IMAGE} AS build
# The image's own packages stay visible, for tensorrt is one of them. pip is the image's, so no ensurepip is needed.
RUN python3 -m venv --without-pip --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
# PyTorch only trains here, and the CPU build leaves the image's CUDA alone.
COPY constraints.txt ./
RUN python -m pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY dtp_deploy dtp_deploy
COPY cli cli
COPY targets targets
RUN python -m pip install --constraint constraints.txt . \
    && python -c "import tensorrt; print(tensorrt.__version__)" \
    && dtp-deploy --help > /dev/null

FROM nvcr.io/nvidia/tensorrt:${TENSORRT_IMAGE}
RUN useradd --uid 10001 --create-home dtp
COPY --from=build /opt/venv /opt/venv
# HOME must be writable for whatever --user is given; mount a volume on /tmp/.cache to keep built engines.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER dtp
WORKDIR /work
ENTRYPOINT ["dtp-deploy"]
CMD ["--help"]
