"""Reads settings from their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dotenv import dotenv_values

from mailjob.errors import SettingsError
from mailjob.settings.field import REQUIRED
from mailjob.settings.programs import ConsumerSettings, LedgerSettings, ServiceSettings

S = TypeVar("S", bound=LedgerSettings)


class Source:
    """Where settings come from, in their order."""

    def __init__(self, environ: Mapping[str, str], dotenv: Path) -> None:
        self._environ = environ
        self._dotenv = dotenv_values(dotenv, interpolate=False) if dotenv.is_file() else {}
        credentials = environ.get("CREDENTIALS_DIRECTORY")
        self._credentials = Path(credentials) if credentials else None

    def get(self, name: str) -> str:
        """The text of a setting, "" where no source has one."""
        if self._environ.get(name, "").strip():
            return self._environ[name]
        if self._credentials and (self._credentials / name).is_file():
            value = (self._credentials / name).read_text(encoding="utf-8").rstrip("\r\n")
            if value.strip():
                return value
        value = self._dotenv.get(name) or ""
        return value if value.strip() else ""


def read_settings(kind: type[S], source: Source) -> S:
    """Read every setting of ``kind``. Raises SettingsError with all that is wrong."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for field in dataclasses.fields(kind):
        row = field.metadata
        text = source.get(row["name"]) or _lent(row, source) or row["default"]
        if text:
            try:
                values[field.name] = row["parse"](text if row["secret"] else text.strip())
            except ValueError:
                shown = "(not shown)" if row["secret"] else repr(text)
                problems.append(f"{row['name']}={shown} is not allowed; allowed: {row['allowed']}")
        elif row["unset"] is REQUIRED:
            problems.append(f"{row['name']} is not set; allowed: {row['allowed']}")
        else:
            values[field.name] = row["unset"]
    if not problems:
        settings = kind(**values)
        problems = settings.problems()
    if problems:
        raise SettingsError(problems)
    return settings


def _lent(row: Mapping[str, Any], source: Source) -> str:
    """The text of the setting that stands in, where this one can read it."""
    text = source.get(row["lender"]) if row["lender"] else ""
    try:
        row["parse"](text)
    except ValueError:
        return ""
    return text


def settings_table() -> list[tuple[str, str, str, str]]:
    """Rows for the README: name, default, allowed, meaning; each setting once."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for kind in (LedgerSettings, ServiceSettings, ConsumerSettings):
        for field in dataclasses.fields(kind):
            row = field.metadata
            shown = "required" if row["unset"] is REQUIRED else "unset"
            if row["lender"]:
                shown = f"`{row['lender']}`"
            elif row["default"]:
                shown = f"`{row['default']}`"
            rows[row["name"]] = (row["name"], shown, row["allowed"], row["meaning"])
    return list(rows.values())
