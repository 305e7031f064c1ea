"""The operator's own texts of notices: files of a directory, Jinja2, in the place of the texts that are built in.

A notice of a kind has `KIND.txt`, whose first line is `Subject: ...`, and `KIND.html`; in a language `KIND.de.txt` and
`KIND.de.html`, which go before. Other files of the directory may be included. A kind without files has the built-in
text.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from meterhouse_billing import notice_samples, notice_texts
from meterhouse_billing.notice_texts import LOGO, Text
from meterhouse_billing.notices import KINDS
from meterhouse_store.brand import Brand

SUBJECT: Final = "Subject:"
MAX_SUBJECT: Final = 200
MAX_RENDERED: Final = 200_000
_FILE: Final = re.compile(r"(?P<kind>[a-z_]+)(\.(?P<language>[a-z]{2}(-[A-Z]{2})?))?\.(?P<form>txt|html)")


class TemplateSettings(BaseSettings):
    """Read from `METERHOUSE_NOTICE_TEMPLATES`; empty: the built-in texts."""

    model_config = SettingsConfigDict(env_prefix="METERHOUSE_", frozen=True, extra="ignore", env_ignore_empty=True)

    notice_templates: Path | None = Field(default=None)

    @field_validator("notice_templates")
    @classmethod
    def _is_directory(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_dir():
            raise ValueError(f"there is no directory {path}")
        return path


class TemplateBroken(ValueError):
    """A template that cannot be used; the text says which, and why."""


@dataclass(frozen=True)
class Templates:
    """The files of a directory; None: there are none."""

    folder: Path | None

    def of(self, kind: str, customer_id: str, subject: str, facts: Mapping[str, Any], brand: Brand) -> Text:
        """The message of a notice: the operator's where there is one in the language, else the built-in one.

        Raises TemplateBroken; `meterhouse notices check` finds that before a notice does.
        """
        stem = self._stem(kind, brand.language)
        if stem is None:
            return notice_texts.of(kind, customer_id, subject, facts, brand)
        values = {**facts, "customer_id": customer_id, "brand": _shown(brand)}
        first, _, text = self._render(f"{stem}.txt", values).partition("\n")
        if not first.startswith(SUBJECT) or not 0 < len(said := first.removeprefix(SUBJECT).strip()) <= MAX_SUBJECT:
            raise TemplateBroken(f"{stem}.txt: its first line is `Subject: ...`, of at most {MAX_SUBJECT} characters")
        return Text(said, text.lstrip("\n"), self._render(f"{stem}.html", values))

    def check(self, brand: Brand) -> Iterator[str]:
        """Everything that is wrong with the files, one sentence each; nothing: all of them can be used."""
        names = sorted(it.name for it in self.folder.iterdir() if it.is_file()) if self.folder else []
        for name in names:
            found = _FILE.fullmatch(name)
            if found is None or found["kind"] not in KINDS:
                if name.endswith((".txt", ".html")) and not name.startswith("_"):
                    yield f"{name}: is no notice ({', '.join(KINDS)}); what is only included begins with _"
                continue
            other = f"{name.rpartition('.')[0]}.{'html' if found['form'] == 'txt' else 'txt'}"
            if other not in names:
                yield f"{name}: {other} is missing, a notice is text and HTML"
                continue
            yield from self._wrong(name, found["kind"], brand)

    def _wrong(self, name: str, kind: str, brand: Brand) -> Iterator[str]:
        for facts in (notice_samples.FULL[kind], notice_samples.BARE[kind]):
            values = {**facts, "customer_id": f"acme {notice_samples.MARK}", "brand": _shown(brand)}
            try:
                self._known(name, set(values))
                rendered = self._render(name, values)
                if name.endswith(".txt"):
                    first = rendered.partition("\n")[0]
                    if not first.startswith(SUBJECT) or not first.removeprefix(SUBJECT).strip():
                        raise TemplateBroken(f"{name}: its first line is `Subject: ...`")
                elif notice_samples.MARK in rendered:
                    raise TemplateBroken(f"{name}: puts a value into HTML without escaping it")
            except TemplateBroken as problem:
                yield str(problem)
                return

    def _known(self, name: str, known: set[str]) -> None:
        """Also what stands in a branch that the samples do not take."""
        try:
            source, _, _ = self._loader.get_source(self._environment, name)
            tree = self._environment.parse(source, name)
            strange = sorted(meta.find_undeclared_variables(tree) - known)
        except (TemplateError, UnicodeDecodeError) as problem:
            raise TemplateBroken(f"{name}: {_told(problem)}") from None
        if any(tree.find_all(nodes.EvalContextModifier)):
            raise TemplateBroken(f"{name}: escaping is not turned off")
        if strange:
            raise TemplateBroken(f"{name}: there is no {', '.join(strange)}; there are {', '.join(sorted(known))}")

    def _stem(self, kind: str, language: str) -> str | None:
        stems = (f"{kind}.{language}", f"{kind}.{language.partition('-')[0]}", kind)
        return next((it for it in stems if self.folder and (self.folder / f"{it}.txt").is_file()), None)

    def _render(self, name: str, values: Mapping[str, Any]) -> str:
        try:
            rendered = self._environment.get_template(name).render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, UnicodeDecodeError) as problem:
            raise TemplateBroken(f"{name}: {_told(problem)}") from None
        if len(rendered) > MAX_RENDERED:
            raise TemplateBroken(f"{name}: comes to more than {MAX_RENDERED} characters")
        return rendered

    @cached_property
    def _loader(self) -> FileSystemLoader:
        return FileSystemLoader(str(self.folder))

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        made = ImmutableSandboxedEnvironment(
            loader=self._loader,
            autoescape=lambda name: name is not None and not name.endswith(".txt"),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        del made.filters["safe"]  # what customers write is escaped, whatever a template says
        return made


BUILT_IN: Final = Templates(None)


def _shown(brand: Brand) -> dict[str, Any]:
    """What a template may say of the operator; `logo` is the address of the image in the message, or ''."""
    return {
        "name": brand.name,
        "colour": brand.colour,
        "on_colour": brand.on_colour,
        "support": brand.support,
        "address_lines": brand.address_lines,
        "logo": f"cid:{LOGO}" if brand.logo else "",
    }


def _told(problem: Exception) -> str:
    line = getattr(problem, "lineno", None)
    return f"{f'line {line}: ' if line else ''}{problem}"
