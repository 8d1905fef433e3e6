# crovca serve, read-only, for an archive or an index that is mounted at /data:
#   docker build -t crovca .
#   docker run --rm -p 8000:8000 -e CROVCA_TOKEN=... -v ./photo-archive:/data:ro -v ./photos:/photos:ro \
#     crovca /data --root /photos
FROM python:3.11-slim

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
# The build of PyTorch for processors: the one with CUDA is several gigabytes larger.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        --constraint constraints.txt '.[images,serve]' \
    && useradd --create-home --uid 1000 crovca
USER 1000
EXPOSE 8000
ENTRYPOINT ["crovca", "serve", "--host", "0.0.0.0"]
CMD ["/data"]
