# One image for all of Meterhouse's own services; docker-compose.yml says which command each runs.
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY instrumentation instrumentation
COPY collector_exporter collector_exporter
COPY rating rating
COPY billing_sync billing_sync
COPY dashboards dashboards
RUN python -m venv /opt/meterhouse \
    && /opt/meterhouse/bin/pip install --no-cache-dir --disable-pip-version-check '.[server]'

FROM python:3.11.13-slim-bookworm
LABEL org.opencontainers.image.title="Meterhouse" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --home-dir /var/lib/meterhouse --shell /usr/sbin/nologin meterhouse
COPY --from=build /opt/meterhouse /opt/meterhouse
ENV PATH=/opt/meterhouse/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    METERHOUSE_DATA=/var/lib/meterhouse
USER 10001:10001
WORKDIR /var/lib/meterhouse
VOLUME /var/lib/meterhouse
ENTRYPOINT ["meterhouse"]
CMD ["--help"]
