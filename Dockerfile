# Regrasp with everything that the embedded simulator needs.
#
#   docker build -t regrasp .                                       CPU
#   docker build -t regrasp:cuda --build-arg TORCH=cuda .           GPU: run it with --gpus all
#   docker run --rm -v "$PWD/runs:/runs" regrasp quickstart --output /runs/quickstart
#
# Wheels of torch carry their own CUDA libraries, so both start from the same image; the GPU's driver comes from the host.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build

# cpu, or cuda: which build of torch. Without a CPU build in the index, the standard one is taken, several GB larger.
ARG TORCH=cpu
# The package index that torch alone is taken from, see "Which build of torch" in CONTRIBUTING.md.
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/regrasp
ENV PATH=/opt/regrasp/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN set -eu; \
    version=$(sed -n 's/^torch==//p' constraints.txt); \
    torch() { pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$1"; }; \
    case "$TORCH" in \
        cpu) torch "$version+cpu" || torch "$version" ;; \
        cuda) torch "$version" ;; \
        *) echo "TORCH is $TORCH: cpu or cuda" >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt ".[lora,trocar,isaaclab,gymnasium,ray]"

FROM python:${PYTHON}-slim-bookworm
# EGL and Mesa's software driver: the simulator renders without a screen.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 regrasp \
    && install --directory --owner regrasp /runs
COPY --from=build /opt/regrasp /opt/regrasp
# The driver's graphics library is mounted only where it is asked for, and GPU rendering needs it.
ENV PATH=/opt/regrasp/bin:$PATH NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
USER 1000
WORKDIR /runs
ENTRYPOINT ["regrasp"]
CMD ["doctor"]
