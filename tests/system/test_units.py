"""The systemd units, as systemd itself judges them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "ops/systemd"


@pytest.mark.parametrize(("unit", "most"), [("async-email-api@", 1.5), ("async-email-consumer@", 2.0)])
def test_little_is_exposed(unit: str, most: float) -> None:
    path = UNITS / f"{unit}.service"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", report)
    assert found, report
    assert float(found[1]) <= most, report


@pytest.mark.parametrize("path", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_systemd_understands_every_line(path: Path, tmp_path: Path) -> None:
    """With the programs' own path replaced by one that exists here."""
    copies = {unit.name: tmp_path / unit.name.replace("@.", "@1.") for unit in UNITS.iterdir()}
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/async-email/current/bin/python", "/bin/true")
        copies[unit.name].write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copies[path.name])]
    complaints = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    ours = [line for line in complaints.splitlines() if "async-email" in line]
    assert ours == []


def test_no_secret_is_in_an_environment() -> None:
    for path in UNITS.glob("*.service"):
        environment = re.findall(r"^Environment=(.*)$", path.read_text(), re.MULTILINE)
        assert not re.search(r"PASSWORD|REDIS_URL|BROKER_URL", " ".join(environment))
        assert "LoadCredential=REDIS_URL:" in path.read_text()
