# docker build .                                          a CPU or CUDA image: torch's default build runs on both
# docker build --build-arg EXTRAS=service,training .      with the trainer (the compose profile `training`)
# docker build --build-arg PRELOAD=resnet50 .             with timm's pretrained weights inside
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRAS=service
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md smn.py ./
COPY smn_core smn_core
COPY service service
COPY training training
RUN uv venv /opt/smn && uv pip install --python /opt/smn/bin/python --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim-bookworm
ARG PRELOAD=""
RUN useradd --create-home --uid 10001 smn && mkdir -p /data/registry /data/runs && chown -R smn:smn /data
COPY --from=build /opt/smn /opt/smn
ENV PATH=/opt/smn/bin:$PATH PYTHONUNBUFFERED=1 SMN_HOST=0.0.0.0 SMN_PORT=8000 SMN_REGISTRY=/data/registry
USER smn
WORKDIR /home/smn
RUN if [ -n "${PRELOAD}" ]; then python -c "import timm, sys; timm.create_model(sys.argv[1], pretrained=True)" "${PRELOAD}"; fi
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SMN_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["smn"]
CMD ["serve"]
