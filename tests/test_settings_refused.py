"""Every setting with a value that cannot be used is refused in a sentence that names it and says what would be right.

What is wrong follows from the types of the settings, so that a new one is tried as well; one of which any text is a
value has to be named here.
"""

import importlib
import os
import re
import types
from pathlib import Path
from typing import Literal, get_args, get_origin

import commands
import pytest
from pydantic import ValidationError

from meterhouse_store import registry, sql
from meterhouse_store.settings import Settings
from meterhouse_store.terminal import wrong_settings

ROOT = Path(__file__).parents[1]
NOWHERE = "/nowhere/at/all"
BY_HAND = {
    "METERHOUSE_WAREHOUSE_URL": ["nonsense", "ftp://u:geheim@h", "http://u:geheim@h:port"],
    "METERHOUSE_SQL_URL": ["nonsense", "mysql://u:geheim@h/d", "postgresql://u:geheim@h:port/d"],
    "METERHOUSE_SMTP_URL": ["nonsense", "http://u:geheim@h", "smtp://u:geheim@h:port"],
    "METERHOUSE_PUBLIC_URL": ["ftp://h", "https://h:port", "https://h:0"],
    "METERHOUSE_MAIL_FROM": ["nobody"],
    "METERHOUSE_OTEL_EXPORTER_OTLP_ENDPOINT": ["nonsense", "http://h:port"],
    "METERHOUSE_OTEL_EXPORTER_OTLP_HEADERS": ["geheim"],
    "METERHOUSE_BRAND_LANGUAGE": ["xx"],
    "METERHOUSE_OIDC_ISSUER": ["nonsense", "http://login.example.com"],
    "METERHOUSE_EMBED_ORIGINS": ["nonsense", "http://app.example.com"],
}
ANY = {
    "METERHOUSE_DATA",  # made by `meterhouse up`
    "METERHOUSE_METERS",  # these two are read where they are used: below
    "METERHOUSE_MAPPING",
    "METERHOUSE_OIDC_CLIENT_ID",
    "METERHOUSE_OIDC_CLIENT_SECRET",
    "METERHOUSE_OIDC_CLIENT_SECRET_FILE",  # below, too: read where there is an issuer
}
SERVE, PORTAL = ("collector", "serve", "--http-port", "0", "--grpc-port", "0"), ("portal", "serve")
COMMANDS = {
    "Settings": (("customers", "list"), {"METERHOUSE_NAMESPACE": "Not Good"}),
    "DoorSettings": (SERVE, {"METERHOUSE_CONNECTIONS": "many"}),
    "Brand": (PORTAL, {"METERHOUSE_BRAND_COLOUR": "red"}),
    "OpenIdSettings": (PORTAL, {"METERHOUSE_OIDC_NAME": "x" * 81}),
    "EmbedSettings": (PORTAL, {"METERHOUSE_EMBED_ORIGINS": "nonsense"}),
    "MailSettings": (PORTAL, {"METERHOUSE_SMTP_URL": "smtp://u:geheim@h:port"}),
    "TemplateSettings": (("notices", "send"), {"METERHOUSE_NOTICE_TEMPLATES": NOWHERE}),
    "NoticeSettings": (("notices", "send"), {"METERHOUSE_DAYS_TO_LOOK": "61"}),
    "PauseSettings": (("budgets", "watch"), {"METERHOUSE_PAUSE_AFTER_FAILED_PAYMENT_DAYS": "-1"}),
}
"""Settings -> a command that reads them, and a wrong one. Those of the store are read by every command."""
READ_LATER = {
    "no meters": (("prices", "check", "book.yaml"), {"METERHOUSE_METERS": NOWHERE}),
    "meters that are no text": (("prices", "check", "book.yaml"), {"METERHOUSE_METERS": "bytes"}),
    "no mapping": (SERVE, {"METERHOUSE_MAPPING": NOWHERE}),
    "a mapping that is no text": (SERVE, {"METERHOUSE_MAPPING": "bytes"}),
    "a certificate that is none": (SERVE, {"METERHOUSE_TLS_CERT": "bytes", "METERHOUSE_TLS_KEY": "bytes"}),
    "a certificate without its key": (SERVE, {"METERHOUSE_TLS_CERT": "bytes"}),
    "a logo that is none": (PORTAL, {"METERHOUSE_BRAND_LOGO": "bytes"}),
    "no secret": (
        PORTAL,
        {"METERHOUSE_OIDC_CLIENT_SECRET_FILE": NOWHERE, "METERHOUSE_OIDC_CLIENT_ID": "us",
         "METERHOUSE_OIDC_ISSUER": "https://login.example.com"},
    ),
    "a token that is short": (PORTAL, {"METERHOUSE_PORTAL_TOKEN": "short"}),
    "no number of calls": (("bill", "run", "--period", "2026-10"), {"METERHOUSE_STRIPE_PER_S": "many"}),
    "no address of Stripe": (("bill", "run", "--period", "2026-10"), {"METERHOUSE_STRIPE_URL": "http://h:port"}),
}  # fmt: skip


def all_settings():
    """The classes of settings, by name, wherever product code has one."""
    found = {}
    for file in sorted(ROOT.glob("*/meterhouse_*/**/*.py")):
        for name in re.findall(r"^class (\w+)\(BaseSettings\)", file.read_text(), re.MULTILINE):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts[1:])
            found[name] = getattr(importlib.import_module(module), name)
    return found


def variables():
    """(class, variable, its field) of every setting."""
    for of in all_settings().values():
        for name, field in of.model_fields.items():
            yield of, field.validation_alias or of.model_config["env_prefix"] + name.upper(), field


def wrong_values(variable, field):
    """Values that its type, its bounds and what is known of it by hand say cannot be used."""
    values = [*BY_HAND.get(variable, ())]
    kinds = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
    bounds = {
        name: getattr(it, name)
        for it in field.metadata
        for name in ("ge", "le", "max_length", "pattern")
        if getattr(it, name, None) is not None
    }
    if int in kinds:
        values += ["many", "1.5"]
        values += [str(bounds["ge"] - 1)] if "ge" in bounds else []
        values += [str(bounds["le"] + 1)] if "le" in bounds else []
    if bool in kinds:
        values.append("perhaps")
    if Path in kinds and variable not in ANY:
        values.append(NOWHERE)
    if any(get_origin(it) is Literal for it in kinds) or "pattern" in bounds:
        values.append("not / like? this")
    if "max_length" in bounds:
        values.append("x" * (bounds["max_length"] + 1))
    return values


def read(of):
    made = of()
    if of.__name__ == "OpenIdSettings":
        made.checked()
    if of.__name__ == "EmbedSettings":
        made.checked("https://portal.example.com")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("METERHOUSE_"):
            monkeypatch.delenv(name)


def test_no_setting_takes_what_it_cannot_use_and_each_is_told_by_its_name_without_passwords(monkeypatch):
    for of, variable, field in variables():
        values = wrong_values(variable, field)
        assert values or variable in ANY, f"say what is no value of {variable}"
        for value in values:
            monkeypatch.setenv(variable, value)
            with pytest.raises(ValueError) as refused:
                read(of)
            wrong = refused.value
            told = wrong_settings(wrong) if isinstance(wrong, ValidationError) else str(wrong)
            assert re.match(rf"{variable}(:| is| has) .{{10}}", told) and "\n" not in told, (variable, value, told)
            assert "geheim" not in f"{told} {wrong}"
            monkeypatch.delenv(variable)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What a command says with wrong settings, on a Meterhouse that is there; `bytes` is a file of no use."""
    data = tmp_path_factory.mktemp("data")
    engine = sql.open_engine(Settings(data=data))
    registry.ensure_namespace(engine, "live")
    engine.dispose()
    (data / "bytes").write_bytes(b"\xff\x00" * 20)
    (data / "book.yaml").write_text("book: own\ncurrency: USD\nplans: {}\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METERHOUSE_")}
    usable = {"METERHOUSE_DATA": str(data), "METERHOUSE_PORTAL_TOKEN": "t" * 20, "STRIPE_API_KEY": "sk_test_x"}

    def call(arguments, wrong):
        done = commands.run(arguments, env=clean | usable | wrong, cwd=data, timeout=30)
        assert done.returncode in (1, 2), done
        assert "Traceback" not in done.stderr and "geheim" not in done.stderr, done.stderr
        return done.stderr

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_which_setting_is_wrong(refused, name):
    arguments, wrong = COMMANDS[name]
    (variable,) = wrong
    said = refused(arguments, wrong)
    assert re.match(rf"{variable}(:| has) ", said) and said.count("\n") == 1, said


def test_there_is_such_a_command_for_all_settings():
    assert all_settings().keys() == COMMANDS.keys()


@pytest.mark.parametrize("what", READ_LATER)
def test_a_command_says_which_setting_names_what_it_cannot_use(refused, what):
    arguments, wrong = READ_LATER[what]
    assert next(iter(wrong)) in refused(arguments, wrong)
