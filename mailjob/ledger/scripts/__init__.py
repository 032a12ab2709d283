"""The ledger's server-side scripts, one file each, and their loader."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from mailjob.lifecycle import TRANSITIONS


@dataclass(frozen=True)
class Script:
    name: str
    text: str
    sha1: str


def _load(name: str, shared: str) -> Script:
    text = shared + files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    # Redis names a script by its SHA-1; nothing here depends on it being hard to forge.
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def load_scripts() -> dict[str, Script]:
    """Every script by its name, with the table of transitions filled in."""
    moves = " ".join(
        f"{status}>{following}"
        for status, allowed in TRANSITIONS.items()
        for following in sorted(allowed)
    )
    shared = files(__package__).joinpath("shared.lua").read_text(encoding="utf-8")
    shared = shared.replace("local ALLOWED = '@TRANSITIONS@'", f"local ALLOWED = ' {moves} '")
    names = (
        "accept",
        "census",
        "claim",
        "complete",
        "mark",
        "probe",
        "read",
        "reconcile",
        "renew",
        "resolve",
    )
    return {name: _load(name, shared) for name in names}
