# docker build -t smn .                                      torch's default build: CUDA, and it runs on processors too
# docker build -t smn --build-arg DEVICE=cpu .               without CUDA, gigabytes smaller
# docker build -t smn --build-arg PRELOAD=vit_tiny_patch16_224 .  with timm's pretrained weights inside
# docker build -t smn:training --build-arg EXTRAS=service,training,heic .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=service,otel,heic
# cuda: torch and torchvision from the default index. cpu: both from PyTorch's index of CPU builds, never one of each.
ARG DEVICE=cuda
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv && uv venv /opt/smn
WORKDIR /src
# What changes seldom first: a change of the source does not install torch again.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --python /opt/smn/bin/python --constraint constraints.txt \
    $([ "${DEVICE}" = cuda ] || echo --torch-backend "${DEVICE}") \
    -r pyproject.toml $(echo ",${EXTRAS}" | sed "s/,/ --extra /g")
COPY README.md LICENSE ./
COPY smn smn
COPY smn_core smn_core
COPY service service
COPY training training
RUN uv pip install --python /opt/smn/bin/python --no-deps .

FROM python:${PYTHON}-slim-bookworm
ARG PRELOAD=""
RUN useradd --create-home --uid 10001 smn \
    && mkdir -p /data/registry /data/runs /home/smn/.cache \
    && chown -R smn:smn /data /home/smn/.cache
COPY --from=build /opt/smn /opt/smn
COPY deploy/training/train-and-push /usr/local/bin/
ENV PATH=/opt/smn/bin:$PATH PYTHONUNBUFFERED=1 SMN_HOST=0.0.0.0 SMN_PORT=8000 SMN_REGISTRY=/data/registry
USER 10001
WORKDIR /home/smn
RUN [ -z "${PRELOAD}" ] || python -c "import sys; from smn_core.backbone import load_backbone; \
    from smn_core.spec import BackboneSpec; load_backbone(BackboneSpec(sys.argv[1]))" "${PRELOAD}"
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; from service.hints import url_of; urllib.request.urlopen(url_of(os.environ.get('SMN_HOST', ''), int(os.environ['SMN_PORT'])) + '/readyz', timeout=4)"]
ENTRYPOINT ["smn"]
CMD ["serve"]
