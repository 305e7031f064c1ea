"""The operator's name, logo and colour."""

import pytest

from meterhouse_store.brand import Brand

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 16


def test_without_settings_it_is_meterhouse_in_white_on_blue():
    found = Brand()

    assert (found.name, found.colour, found.on_colour, found.address_lines) == ("Meterhouse", "#0b5c8a", "#ffffff", [])
    assert found.logo_image() is None


def test_it_is_what_the_environment_says_and_empty_variables_say_nothing(monkeypatch, tmp_path):
    (tmp_path / "logo.png").write_bytes(PNG)
    said = {"NAME": "Acme AI", "LOGO": str(tmp_path / "logo.png"), "COLOUR": "#ffd54a", "ADDRESS": "Acme | Road 1"}
    for name, value in said.items():
        monkeypatch.setenv(f"METERHOUSE_BRAND_{name}", value)
    found = Brand()
    assert (found.name, found.address_lines) == ("Acme AI", ["Acme", "Road 1"])
    assert found.logo_image() == (PNG, "image/png")
    assert found.on_colour == "#000000"  # white on yellow cannot be read

    for name in said:
        monkeypatch.setenv(f"METERHOUSE_BRAND_{name}", "")
    assert Brand() == Brand.model_construct()


@pytest.mark.parametrize("content", [b"<svg onload='x'/>", PNG + b"0" * 600_000])
def test_what_is_no_logo_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "logo.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no logo: METERHOUSE_BRAND_LOGO names a PNG or JPEG"):
        Brand(logo=tmp_path / "logo.png").logo_image()


@pytest.mark.parametrize("colour", ["blue", "#12345", "#0b5c8a;}"])
def test_a_colour_is_written_in_one_way(colour):
    with pytest.raises(ValueError, match="colour"):
        Brand(colour=colour)
