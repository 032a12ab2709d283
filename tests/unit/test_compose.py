from __future__ import annotations

import email
import email.header
import email.policy
from email.message import EmailMessage
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.compose import (
    CompiledTemplate,
    Composer,
    TemplateSource,
    compile_template,
    encode_header,
    encode_text,
)
from consumer.templates import read_templates
from mailjob.errors import TemplateUnusableError
from mailjob.job import Body, Job, Recipient
from mailjob.settings import Sender

ID = "0192d1a0-0000-7000-8000-000000000000"
CREATED_MS = 1_764_000_000_123

# What the door lets in as a name: no control characters, no line separators, no surrogates.
NAME = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=200)
# What a template's author may write.
PROSE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \r\n.=\t<&"), max_size=3000)


def welcome() -> CompiledTemplate:
    (source,) = read_templates(None)
    return compile_template(source)


def template(**parts: str) -> CompiledTemplate:
    return compile_template(
        TemplateSource("welcome", **{"subject": "s", "text": "t", "html": "h", **parts})
    )


def job(name: str = "Ada", *addresses: str) -> Job:
    recipients = tuple(Recipient(address) for address in addresses or ("ada@example.org",))
    return Job(ID, Body("welcome", {"name": name}), recipients)


def composer(compiled: CompiledTemplate | None = None) -> Composer:
    return Composer(Sender("hello@example.org", "Acme"), [compiled or welcome()])


def parse(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def part(message: EmailMessage, subtype: str) -> str:
    found = message.get_body((subtype,))
    assert found is not None
    payload = found.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode("utf-8")


def lines(text: str) -> str:
    """Text as it is read back: line ends CR LF, one at the end."""
    normal = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return normal if normal.endswith("\r\n") else normal + "\r\n"


def test_the_headers_are_these_and_no_others() -> None:
    message = parse(composer().compose(job(), CREATED_MS))
    assert message.keys() == [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "MIME-Version",
        "Auto-Submitted",
        "Content-Type",
    ]
    assert message["From"] == "Acme <hello@example.org>"
    assert message["To"] == "ada@example.org"
    assert message["Subject"] == "Welcome, Ada!"
    assert message["Date"].datetime.timestamp() == CREATED_MS // 1000
    assert message["Message-ID"] == f"<{ID}@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "multipart/alternative"
    assert not message.defects


@given(NAME)
def test_any_name_is_greeted_as_it_is(name: str) -> None:
    raw = composer().compose(job(name), CREATED_MS)
    message = parse(raw)
    assert message.keys()[2] == "Subject"
    assert len(message.keys()) == 8
    decoded = email.header.make_header(email.header.decode_header(raw_subject(raw)))
    assert str(decoded) == " ".join(f"Welcome, {name}!".split())
    assert f"Hello {name}," in part(message, "plain")
    assert not message.defects


def raw_subject(raw: bytes) -> str:
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    return cast(str, message["Subject"])


@given(NAME)
def test_every_byte_is_7_bit_and_every_line_short(name: str) -> None:
    raw = composer().compose(job(name), CREATED_MS)
    assert raw.isascii()
    assert b"\x00" not in raw
    assert raw.replace(b"\r\n", b"").count(b"\n") == raw.replace(b"\r\n", b"").count(b"\r") == 0
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    head = raw.partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 98


@given(PROSE)
def test_any_text_comes_back(text: str) -> None:
    compiled = template(text="{% raw %}" + text.replace("{% endraw", "") + "{% endraw %}")
    message = parse(composer(compiled).compose(job(), CREATED_MS))
    # Jinja reads every line end of a template as one newline.
    assert part(message, "plain") == lines(text.replace("{% endraw", ""))


@given(PROSE)
def test_text_encoding_agrees_with_the_standard_library(text: str) -> None:
    encoding, body = encode_text(text)
    head = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}"
    message = email.message_from_bytes(f"{head}\r\n\r\n{body}".encode())
    decoded = message.get_payload(decode=True)
    assert isinstance(decoded, bytes)
    assert decoded.decode("utf-8") == lines(text)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=400))
def test_header_encoding_agrees_with_the_standard_library(text: str) -> None:
    text = " ".join(text.split())
    encoded = encode_header(text)
    assert encoded.isascii()
    assert "\n" not in encoded.replace("\r\n ", "")
    unfolded = encoded.replace("\r\n ", " ")
    assert str(email.header.make_header(email.header.decode_header(unfolded))) == text


def test_something_that_looks_encoded_is_shown_as_it_was_written() -> None:
    text = "=?utf-8?q?a=0d=0aBcc:_x?="
    assert encode_header(text).startswith("=?utf-8?b?")
    assert str(email.header.make_header(email.header.decode_header(encode_header(text)))) == text


def test_every_attempt_gives_the_same_bytes() -> None:
    assert composer().compose(job(), CREATED_MS) == composer().compose(job(), CREATED_MS)


def test_html_is_escaped_and_text_is_not() -> None:
    message = parse(composer().compose(job("<b>&"), CREATED_MS))
    assert "Hello &lt;b&gt;&amp;," in part(message, "html")
    assert "Hello <b>&," in part(message, "plain")


def test_a_name_is_no_template() -> None:
    assert "Hello {{ 7 * 7 }}," in part(
        parse(composer().compose(job("{{ 7 * 7 }}"), CREATED_MS)), "plain"
    )


def test_several_recipients() -> None:
    addresses = [f"recipient-number-{number}@example.org" for number in range(50)]
    message = parse(composer().compose(job("Ada", *addresses), CREATED_MS))
    assert [address.addr_spec for address in message["To"].addresses] == addresses


def test_a_sender_with_a_name_that_is_not_ascii() -> None:
    sender = Sender("hello@example.org", "Žofie, Inc.")
    message = parse(Composer(sender, [welcome()]).compose(job(), CREATED_MS))
    assert message["From"].addresses[0].display_name == "Žofie, Inc."
    assert message["From"].addresses[0].addr_spec == "hello@example.org"


@pytest.mark.parametrize(
    "parts",
    [
        {"text": "{{ nmae }}"},
        {"text": "{{ name.__class__.__mro__ }}"},
        {"html": "{{ name + 1 }}"},
        {"subject": "{{ 1 / 0 }}"},
    ],
)
def test_a_template_that_cannot_be_rendered_says_so(parts: dict[str, str]) -> None:
    with pytest.raises(TemplateUnusableError, match="template welcome cannot be rendered"):
        composer(template(**parts)).compose(job(), CREATED_MS)


def test_a_template_that_cannot_be_compiled_says_so() -> None:
    with pytest.raises(TemplateUnusableError, match="template welcome cannot be compiled"):
        template(text="{% if %}")


def test_an_unknown_template_says_so() -> None:
    unknown = Job(ID, Body("farewell", {}), (Recipient("ada@example.org"),))
    with pytest.raises(TemplateUnusableError, match="no template farewell"):
        composer().compose(unknown, CREATED_MS)


def test_line_ends_in_a_subject_become_spaces() -> None:
    compiled = template(subject="Hello\r\nBcc: eve@example.org\r\n\r\n{{ name }}\n")
    message = parse(composer(compiled).compose(job(), CREATED_MS))
    assert message["Subject"] == "Hello Bcc: eve@example.org Ada"
    assert message["Bcc"] is None
