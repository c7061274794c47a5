# docker build -t smn .                                      torch's default build: CUDA, and it runs on processors too
# docker build -t smn --build-arg GPU=no .                   the same without what only a GPU opens: about 2 GB smaller
# docker build -t smn --build-arg DEVICE=cpu .               torch's CPU build, gigabytes smaller; from PyTorch's own index
# docker build -t smn --build-arg PRELOAD=vit_tiny_patch16_224 .  with timm's pretrained weights inside
# docker build -t smn:training --build-arg EXTRAS=service,training,heic .
ARG PYTHON=3.11
# A tag can move. Where your registry tells the digest: --build-arg BASE=python@sha256:... (docs/operations.md, Images).
ARG BASE=python:${PYTHON}-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=service,otel,heic
# cuda: torch and torchvision from the default index. cpu: both from PyTorch's index of CPU builds, never one of each.
ARG DEVICE=cuda
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
WORKDIR /src
# What changes seldom first: a change of the source does not install torch again.
COPY pyproject.toml constraints.txt ./
RUN sed -n '/^uv==/,/[^\\]$/p' constraints.txt > uv.txt \
    && pip install --no-cache-dir --require-hashes -r uv.txt && uv venv /opt/smn
# Every file must have the hash that constraints.txt says. PyTorch's CPU builds are other files, of the same version:
# for torch and torchvision the version alone is checked there.
RUN if [ "${DEVICE}" = cuda ]; then how=--require-hashes; else how="--torch-backend ${DEVICE}"; \
      sed -i -E '/^torch(vision)?==/,/[^\\]$/{/--hash/d; s/ \\$//}' constraints.txt; fi; \
    uv pip install --python /opt/smn/bin/python ${how} --constraint constraints.txt --build-constraint constraints.txt \
    -r pyproject.toml $(echo ",${EXTRAS}" | sed "s/,/ --extra /g")
# Without a GPU nobody opens these: Triton, cuDNN, headers, device code. The rest of CUDA is what torch's build links.
ARG GPU=yes
RUN [ "${GPU}" = yes ] || ( cd /opt/smn/lib/python*/site-packages && rm -rf triton nvidia/*/include \
      $(find nvidia/cudnn/lib -name 'libcudnn_*') \
      $(find nvidia -name 'libcusolverMg*' -o -name 'libnvperf*' -o -name 'libnvshmem_device*') )
COPY README.md LICENSE ./
COPY smn smn
COPY smn_core smn_core
COPY service service
COPY training training
RUN uv pip install --python /opt/smn/bin/python --no-deps --build-constraint constraints.txt .

FROM ${BASE}
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
