# dtp-deploy with the CPU build of PyTorch, and nothing that compiles or tests.
#
#   docker build -f docker/cpu.Dockerfile -t dtp-deploy:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work dtp-deploy:cpu \
#       compress model.pt --model my_models:make_model --macs 50% --data data.npz --input 1x3x32x32 --out pruned

FROM python:3.11.13-slim-bookworm AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
# PyTorch alone first: this layer is large and changes only with its pin. "+cpu" sorts above the CUDA build.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY dtp_deploy dtp_deploy
COPY cli cli
COPY targets targets
RUN pip install --constraint constraints.txt . && dtp-deploy --help > /dev/null

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --create-home dtp
COPY --from=build /opt/venv /opt/venv
# HOME must be writable for whatever --user is given; the model factory is imported from the mounted working directory.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER dtp
WORKDIR /work
ENTRYPOINT ["dtp-deploy"]
CMD ["--help"]
