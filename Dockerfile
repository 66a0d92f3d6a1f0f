FROM python:3.11-slim AS build
WORKDIR /source
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements.lock requirements-dev.lock ./
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -r requirements.lock
# What translates the hot path to C; nothing of it gets into the image.
RUN python -m venv /tools && /tools/bin/pip install --no-cache-dir -r requirements-dev.lock
COPY pyproject.toml setup.py README.md config.toml ./
COPY gateway gateway
COPY plugins plugins
RUN GATEWAY_COMPILED=1 /tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .
RUN /venv/bin/pip install --no-cache-dir --no-deps /wheel/*.whl

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/gateway gateway
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_LISTEN=0.0.0.0:8080 \
    GATEWAY_ADMIN_LISTEN=127.0.0.1:9090 \
    GATEWAY_STATE_DIR=/var/lib/gateway/state
USER gateway
# A config.toml mounted here is read; without one GATEWAY_UPSTREAM is enough.
WORKDIR /etc/gateway
VOLUME /var/lib/gateway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 9090, timeout=2); c.request('GET', '/_gateway/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["run"]
