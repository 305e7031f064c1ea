"""How the operator appears to customers: on the portal's pages, in e-mails and on documents. Environment only."""

from pathlib import Path
from typing import Final

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from meterhouse_store.language import Language

MAX_LOGO: Final = 512 * 1024
_KINDS: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class Brand(BaseSettings):
    """Name, logo and colour, and what a document says of its sender; read from `METERHOUSE_BRAND_*`."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_BRAND_", frozen=True, extra="forbid")

    name: str = Field(default="Meterhouse", min_length=1, max_length=80)
    logo: Path | None = None
    """A PNG or JPEG file of at most 512 kB."""
    colour: str = Field(default="#0b5c8a", pattern=r"^#[0-9a-fA-F]{6}$")
    """Of headings' bars and buttons; text on it is white or black, whichever is easier to read."""
    font: Path | None = None
    """A TrueType font that documents take for characters that their own (DejaVu Sans) lacks."""
    address: str = Field(default="", max_length=500)
    """Name and address as on letters, lines separated by newlines or by ` | `."""
    support: str = Field(default="", max_length=320)
    """The e-mail address that customers write to."""

    language: str = "en"
    """What customers are spoken to in who ask for none of ours; with a country its formats: en, de, de-AT."""

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str) -> str:
        return Language(value).tag

    @field_validator("logo", "font", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # docker compose passes a variable that is not set as the empty string.
        return None if value == "" else value

    @field_validator("logo", "font")
    @classmethod
    def _is_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    @field_validator("name", "colour", "language", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object, info: object) -> object:
        return cls.model_fields[getattr(info, "field_name", "")].default if value == "" else value

    @property
    def address_lines(self) -> list[str]:
        """The address, line by line."""
        return [line.strip() for line in self.address.replace(" | ", "\n").splitlines() if line.strip()]

    @property
    def on_colour(self) -> str:
        """Black or white: what has the greater contrast with the colour (WCAG 2.2, relative luminance)."""
        red, green, blue = (_linear(int(self.colour[at : at + 2], 16)) for at in (1, 3, 5))
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        return "#ffffff" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "#000000"

    def logo_image(self) -> tuple[bytes, str] | None:
        """The logo's bytes and media type; None without one. Raises ValueError for what is no logo, OSError."""
        if self.logo is None:
            return None
        with self.logo.open("rb") as file:
            content = file.read(MAX_LOGO + 1)
        kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), None)
        if kind is None or len(content) > MAX_LOGO:
            raise ValueError(f"{self.logo} is no logo: METERHOUSE_BRAND_LOGO names a PNG or JPEG of at most 512 kB")
        return content, kind


def _linear(channel: int) -> float:
    part = channel / 255
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
