# The runner that measures on a Jetson, with the TensorRT of JetPack 6. dtp-deploy itself runs on another machine.
#
#   docker build --platform linux/arm64 -f docker/jetson.Dockerfile -t dtp-deploy:jetson .
#   docker run --rm --runtime nvidia --user "$(id -u):$(id -g)" --group-add video -v "$PWD":/work dtp-deploy:jetson \
#       measure model.onnx --precision fp16 --out result.json
#
# The TensorRT in the image, not the board's, is what is measured: take the image that the application will run in.

# TensorRT 10.3 (JetPack 6.1 to 6.2), Ubuntu 22.04, Python 3.10. The "devel" images are those with trtexec.
ARG L4T_TENSORRT=r10.3.0-devel

FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY dtp_deploy dtp_deploy
COPY targets targets
RUN PYTHONPATH=/src:/src/targets python -c "from pathlib import Path; from dtp_deploy_targets.parcel import write_runner; write_runner(Path('/opt'))"

FROM nvcr.io/nvidia/l4t-tensorrt:${L4T_TENSORRT}
RUN useradd --uid 10001 --create-home --groups video dtp && test -x /usr/src/tensorrt/bin/trtexec && python3 --version
COPY --from=build /opt/dtp_runner.pyz /opt/dtp_runner.pyz
# HOME must be writable for whatever --user is given; mount a volume on /tmp/.cache to keep built engines.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER dtp
WORKDIR /work
ENTRYPOINT ["python3", "/opt/dtp_runner.pyz"]
CMD ["detect"]
