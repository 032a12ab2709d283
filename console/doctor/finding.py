"""What the doctor says about one subject. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """``advice`` says what to do, where something is wrong."""

    subject: str
    verdict: Verdict
    words: str
    advice: str = ""

    def as_line(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.verdict:8} {self.subject}: {self.words}{advice}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)
