"""Reads templates: three files each, ``<name>.subject.txt``, ``<name>.txt`` and ``<name>.html``.

An operator's directory replaces single files of the built-in ones.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from consumer.compose import TemplateSource
from mailjob.errors import TemplateUnusableError

BUILT_IN: Final = ("welcome",)


def read_templates(directory: Path | None) -> list[TemplateSource]:
    """Raises TemplateUnusableError for a file that cannot be read."""
    return [
        TemplateSource(
            name,
            _read(directory, f"{name}.subject.txt"),
            _read(directory, f"{name}.txt"),
            _read(directory, f"{name}.html"),
        )
        for name in BUILT_IN
    ]


def _read(directory: Path | None, file: str) -> str:
    place = directory / file if directory and (directory / file).exists() else files(__package__) / file
    try:
        return place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateUnusableError(f"the template file {file} cannot be read: {error}") from error
