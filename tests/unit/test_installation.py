"""What the installer writes, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from console.server.configuration import REDIS_USERS, Configuration, acl, gather
from console.server.nginx import site
from console.server.systemd import Size
from mailjob.errors import SettingsError

OPS = Path(__file__).parents[2] / "ops"
SITE = (OPS / "nginx/async-email.conf").read_text()

VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1)


@given(VALUES)
def test_a_value_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.getbasetemp() / "roundtrip.env"
    file.write_text(Configuration({"MAIL_FROM": value}).dotenv, encoding="utf-8")
    assert dotenv_values(file, interpolate=False) == {"MAIL_FROM": value}


def test_an_old_env_is_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "old.env"
    old.write_text("SMTP_HOST=old.example\nSMTP_PORT=25\nSMTP_PASSWORD='p w'\nFLASK_ENV=production\n")
    configuration = gather(tmp_path / "none", old, {"SMTP_HOST": "new.example", "MAIL_FROM": ""})
    assert configuration.values == {
        "SMTP_HOST": "new.example",
        "SMTP_PORT": "25",
        "SMTP_PASSWORD": "p w",
    }
    assert configuration.ignored == ("FLASK_ENV",)
    assert "p w" not in configuration.dotenv


def test_what_is_installed_stays(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / ".env").write_text("SMTP_HOST=relay.example\nRETRY_SCHEDULE=5,10\n")
    (tmp_path / "credentials/smtp-password").write_text("secret")
    configuration = gather(tmp_path, None, {})
    assert configuration.values["SMTP_PASSWORD"] == "secret"
    assert configuration.values["RETRY_SCHEDULE"] == "5,10"


def test_wrong_settings_are_told_before_anything_is_changed() -> None:
    with pytest.raises(SettingsError, match="SMTP_PORT"):
        Configuration({"SMTP_HOST": "relay.example", "SMTP_PORT": "many"}).check()


def test_every_redis_user_gets_its_password() -> None:
    template = (OPS / "redis/users.acl").read_text()
    users = acl(template, {user: f"{user}-password" for user in REDIS_USERS})
    assert len(set(re.findall(r"#([0-9a-f]{64})\b", users))) == len(REDIS_USERS)
    assert "<" not in users
    assert "-password" not in users


@pytest.mark.parametrize("services", [1, 2, 5])
def test_the_site_has_a_line_for_each_instance(services: int) -> None:
    lines = re.findall(r"^    server unix:(\S+) max_fails=0;$", site(SITE, services), re.MULTILINE)
    assert lines == [f"/run/async-email/api-{number}.sock" for number in range(1, services + 1)]
    assert site(SITE, 2) == SITE


def test_the_units_of_a_size() -> None:
    assert Size(2, 1).units == [
        "async-email-api@1.service",
        "async-email-api@2.service",
        "async-email-consumer@1.service",
    ]
