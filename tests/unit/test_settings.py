from __future__ import annotations

from pathlib import Path

import pytest

from mailjob.errors import SettingsError
from mailjob.settings import (
    ApiAuth,
    Bind,
    ConsumerSettings,
    LedgerSettings,
    Sender,
    ServiceSettings,
    Source,
    Tls,
    read_settings,
    settings_table,
)

NOWHERE = Path("/nonexistent/.env")


def consumer(**environ: str) -> ConsumerSettings:
    return read_settings(ConsumerSettings, Source(environ, NOWHERE))


def test_the_old_env_file_is_enough(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        'SMTP_USERNAME=shop@example.org\nSMTP_PASSWORD="p#ss $WORD"\n'
        "SMTP_HOST=smtp.example.org\nSMTP_PORT=587\n"
    )
    settings = read_settings(ConsumerSettings, Source({}, dotenv))
    assert settings.smtp_password == "p#ss $WORD"
    assert settings.mail_from == Sender("shop@example.org")
    assert settings.smtp_tls is Tls.AUTO
    assert list(settings.retry_schedule) == [60, 300, 900, 1800, 3600, 7200]
    assert settings.broker_url == settings.redis_url == "redis://127.0.0.1:6379/0"


def test_defaults_of_the_service() -> None:
    settings = read_settings(ServiceSettings, Source({}, NOWHERE))
    assert settings.api_bind == Bind("127.0.0.1", 8000)
    assert settings.api_auth is ApiAuth.KEYS
    assert settings.grace_seconds == 10


def test_environment_before_credentials_before_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("SMTP_HOST=three\nSMTP_PASSWORD=three\nMAIL_FROM=a@three.org\n")
    (tmp_path / "SMTP_HOST").write_text("two\n")
    (tmp_path / "SMTP_PASSWORD").write_text("two words \n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "SMTP_HOST": "one", "MAIL_FROM": " "}
    settings = read_settings(ConsumerSettings, Source(environ, dotenv))
    assert settings.smtp_host == "one"
    assert settings.smtp_password == "two words "
    assert settings.mail_from.address == "a@three.org"


def test_every_wrong_value_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        consumer(
            SMTP_PORT="smtp",
            SMTP_TLS="ssl",
            MAIL_FROM="nobody",
            RETRY_SCHEDULE="1,x",
            CONSUMER_CONCURRENCY="0",
            REDIS_URL="http://:hunter2@example.org",
        )
    text = "\n".join(caught.value.problems)
    for name in ("SMTP_HOST", "SMTP_PORT", "SMTP_TLS", "MAIL_FROM", "RETRY_SCHEDULE", "REDIS_URL"):
        assert name in text
    assert "CONSUMER_CONCURRENCY='0' is not allowed; allowed: 1 to 10000" in text
    assert "hunter2" not in text


def test_mail_from_is_required_where_the_username_is_no_address() -> None:
    with pytest.raises(SettingsError, match="MAIL_FROM is not set"):
        consumer(SMTP_HOST="localhost", SMTP_USERNAME="apikey")


def test_secrets_are_not_shown() -> None:
    settings = consumer(
        SMTP_HOST="h", MAIL_FROM="a@b.org", SMTP_PASSWORD="hunter2", REDIS_URL="redis://:hunter2@h/0"
    )
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "192.0.2.1:80", "[::]:8000", "example.org:80"])
def test_auth_off_is_refused_where_others_can_reach_it(bind: str) -> None:
    with pytest.raises(SettingsError, match="API_AUTH=off is refused"):
        read_settings(ServiceSettings, Source({"API_AUTH": "off", "API_BIND": bind}, NOWHERE))


@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "[::1]:8000", "localhost:1", "unix:/run/api.sock"])
def test_auth_off_is_allowed_on_loopback_and_unix_sockets(bind: str) -> None:
    settings = read_settings(ServiceSettings, Source({"API_AUTH": "off", "API_BIND": bind}, NOWHERE))
    assert str(settings.api_bind) == bind


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("a@b.org", Sender("a@b.org")),
        ("Acme <a@b.org>", Sender("a@b.org", "Acme")),
        ('"Acme, Inc." <a@b.org>', Sender("a@b.org", "Acme, Inc.")),
    ],
)
def test_senders(text: str, sender: Sender) -> None:
    assert consumer(SMTP_HOST="h", MAIL_FROM=text).mail_from == sender


@pytest.mark.parametrize(
    "text", ["a", "a@", "<a@b", "a@b.org, c@d.org", "a@b.org\r\nBcc: c@d.org", "ä@b.org"]
)
def test_bad_senders(text: str) -> None:
    with pytest.raises(SettingsError, match="MAIL_FROM"):
        consumer(SMTP_HOST="h", MAIL_FROM=text)


def test_the_broker_follows_the_ledger() -> None:
    source = Source({"REDIS_URL": "unix:///run/redis.sock?db=1"}, NOWHERE)
    assert read_settings(LedgerSettings, source).broker_url == "unix:///run/redis.sock?db=1"


def test_the_table_has_each_setting_once() -> None:
    names = [row[0] for row in settings_table()]
    assert len(names) == len(set(names))
    assert {"REDIS_URL", "API_BIND", "SMTP_HOST", "AMBIGUOUS_POLICY"} <= set(names)
