"""Settings: where the data is and how the warehouse and the SQL database are reached. Environment variables only."""

import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_DATA = Path("meterhouse-data")


def is_address(url: str, schemes: Collection[str]) -> bool:
    """Whether it is a URL of one of the schemes, with a host, and a port that is a number where it has one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Settings(BaseSettings):
    """What every server-side command needs to know; read from `METERHOUSE_*` (docs/contracts.md, section 7)."""

    model_config = SettingsConfigDict(
        env_prefix="METERHOUSE_",
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,  # URLs have passwords in them
    )

    data: Path = DEFAULT_DATA
    namespace: str = Field(default="live", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    warehouse_url: str | None = Field(default=None, repr=False)
    """ClickHouse over HTTP, with user and password; None: the embedded engine of the data directory."""
    warehouse_database: str = Field(default="meterhouse", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    sql_url: str = Field(default="", repr=False)
    """SQLAlchemy URL of SQLite or PostgreSQL; by default a SQLite file in the data directory."""
    meters_file: Path | None = Field(default=None, validation_alias="METERHOUSE_METERS")
    """Further meters, in the format of meters.yaml."""
    journal_archive: str | None = Field(default=None, pattern=r"^(s3|file)://.+")
    """Where sealed segments of the journal are copied: s3://bucket/prefix or file:///directory; None: nowhere."""
    journal_retention_days: int | None = Field(default=None, ge=1)
    """Segments whose records were all received longer ago are removed; None: the journal is kept for ever."""
    mapping_file: Path | None = Field(default=None, validation_alias="METERHOUSE_MAPPING")
    """Which meter and customer the metrics and spans of other sources are."""
    public_url: str = Field(default="", pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$")
    """The portal's address as customers reach it; links in e-mails begin with it."""
    portal_evidence: bool = False
    """Whether customers can have evidence packs in the portal: all plans of the price book are in one."""

    @property
    def packs_scratch(self) -> Path:
        """Where evidence packs are made: customers' events are in it, so an erasure clears it."""
        return self.data / "run" / "packs"

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: Path) -> Path:
        # Child processes are given this path and may have another working directory.
        return data.expanduser().absolute()

    @field_validator(
        "warehouse_url", "meters_file", "mapping_file", "journal_archive", "journal_retention_days", mode="before"
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # docker compose passes a variable that is not set as the empty string.
        return None if value == "" else value

    @field_validator("portal_evidence", mode="before")
    @classmethod
    def _empty_is_off(cls, value: object) -> object:
        return False if value == "" else value

    @field_validator("warehouse_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value, ("http", "https")):
            raise ValueError("ClickHouse's HTTP interface, http://user:password@host:8123")
        return value

    @field_validator("public_url")
    @classmethod
    def _is_reached(cls, value: str) -> str:
        if value and not is_address(value, ("http", "https")):
            raise ValueError("the portal's address as customers reach it, https://billing.example.com")
        return value

    @field_validator("sql_url")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value and not _is_database(value):
            raise ValueError(
                "a file, sqlite:////absolute/path/meterhouse.db, or a server, postgresql://user:password@host/meterhouse"
            )
        return value

    def model_post_init(self, _context: object) -> None:
        if not self.sql_url:
            object.__setattr__(self, "sql_url", f"sqlite:///{self.data / 'meterhouse.db'}")


def _is_database(url: str) -> bool:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not re.match(r"sqlite(\+\w+)?:///(?!:memory:).|postgresql(\+\w+)?://", url):
        return False
    try:
        make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number
        return False
    return True


def load(data: Path | None = None) -> Settings:
    """The settings of the environment; `data` (a command's `--data`) goes before `METERHOUSE_DATA`.

    Raises pydantic.ValidationError, which names every variable that cannot be used.
    """
    return Settings() if data is None else Settings(data=data)


class NoData(ValueError):
    """There is no Meterhouse where a command looked for one; the text says where, and what to do."""


def load_existing(data: Path | None = None) -> Settings:
    """Like `load`, for commands that work on what is there: a wrong directory must not look like an empty Meterhouse.

    Raises NoData where the SQL database is a SQLite file that does not exist.
    """
    settings = load(data)
    file = settings.sql_url.removeprefix("sqlite:///") if settings.sql_url.startswith("sqlite:///") else None
    if file is not None and not Path(file).exists():
        raise NoData(
            f"there is no Meterhouse in {settings.data} ({file} does not exist): start one with `meterhouse up`, or "
            "name its data directory with --data or METERHOUSE_DATA"
        )
    return settings
