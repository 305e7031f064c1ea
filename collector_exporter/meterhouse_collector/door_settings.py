"""Settings of the two doors, and where the collector's own metrics and logs go. Environment variables only."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from meterhouse_store.settings import is_address


class DoorSettings(BaseSettings):
    """Read from `METERHOUSE_*` (docs/operations.md, "The doors"). Raises pydantic.ValidationError."""

    model_config = SettingsConfigDict(
        env_prefix="METERHOUSE_", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    tls_cert: Path | None = None
    """PEM: the server's certificate and the ones between it and its CA. With it both doors speak TLS only."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM: who signs certificates of clients. With it a client without one is refused, on both doors."""
    connections: int = Field(default=2000, ge=1)
    """To the HTTP door, and as many to the gRPC door."""
    connections_per_address: int = Field(default=1000, ge=1)
    """Of them from one address, HTTP only; a proxy in front is one address."""
    series_per_hour: int = Field(default=100_000, ge=1)
    """Distinct series of foreign metrics that one credential may report in an hour."""
    log: Literal["text", "json"] = "text"
    otel_exporter_otlp_endpoint: str | None = None
    """OTLP/HTTP base URL to which the collector's own metrics are pushed, beside /metrics."""
    otel_exporter_otlp_headers: str = Field(default="", repr=False)
    """`name=value,name=value`, as in OTEL_EXPORTER_OTLP_HEADERS."""

    @field_validator("tls_cert", "tls_key", "tls_client_ca")
    @classmethod
    def _is_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value, ("http", "https")):
            raise ValueError("the base URL of OTLP/HTTP, such as http://localhost:4318")
        return value

    @field_validator("otel_exporter_otlp_headers")
    @classmethod
    def _is_pairs(cls, value: str) -> str:
        if not all(it.partition("=")[0].strip() and "=" in it for it in value.split(",") if it):
            raise ValueError("headers are written name=value,name=value")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("METERHOUSE_TLS_CERT and METERHOUSE_TLS_KEY go together: set both, or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("METERHOUSE_TLS_CLIENT_CA needs METERHOUSE_TLS_CERT and METERHOUSE_TLS_KEY")
        return self
