"""From a request's bytes to a job: every check of input stands here. Pure.

Addresses are checked so that no later step can read them in another way: one address, ASCII on the
wire, and equal to what the standard library's parser makes of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from email.utils import parseaddr
from http import HTTPStatus
from typing import Any, Final

import email_validator
import msgspec

from mailjob.job import Body, Job, Recipient
from service.problems import Fault, Problem

# A relay decides which domains it serves; on a private network .local or .test are as good as any.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

NAME_CHARACTERS: Final = 200
ADDRESS_CHARACTERS: Final = 254
"""RFC 5321, 4.5.3.1.3: a path is at most 256 octets, with its angle brackets."""
IDEMPOTENCY_KEY_CHARACTERS: Final = 256

# Python's `email` before 3.11.10 lets an encoded word with a line end become a header line.
_ENCODED_WORD: Final = re.compile(r"=\?[^?\s]*\?[bBqQ]\?")
# Overrides and isolates (UAX 9): they would reorder what follows the name.
_TEXT_DIRECTION: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")

_PLAIN_ADDRESS: Final = re.compile(
    r"(?P<local>[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"
    r"@(?P<domain>(?:[A-Za-z0-9](?:-?[A-Za-z0-9])*\.)+[A-Za-z]{2,63})"
)
"""Nearly every address: a dot-atom at a domain of letters, digits and single hyphens. What this takes
within the length limits, the whole check takes as well, with the same result (a test holds it to that);
it costs a tenth."""

LOCAL_CHARACTERS: Final = 64
LABEL_CHARACTERS: Final = 63

_FIELDS: Final = frozenset({"name", "email"})


def parse_start_job(body: bytes, job_id: str) -> Job:
    """The job of a ``POST /start-job`` body. Raises Problem: 400 for no JSON, 422 for wrong values."""
    document = _document(body)
    faults = [
        Fault("/" + _escape(field), "this field is not known; allowed are name and email")
        for field in document
        if field not in _FIELDS
    ]
    name = _name(document, faults)
    address = _address(document, faults)
    if faults:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid-values",
            "The request is JSON, but not all of its values can be used; see errors.",
            faults=faults,
        )
    return Job(job_id, Body("welcome", {"name": name}), (Recipient(address),))


def parse_idempotency_key(key: str) -> str:
    """The key unchanged. Raises Problem for one that is empty, too long, or has odd characters."""
    if not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "invalid-idempotency-key",
            f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters.",
        )
    return key


def _document(body: bytes) -> Mapping[str, Any]:
    if not body:
        raise _not_json("it is empty")
    try:
        document = msgspec.json.decode(body)
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _not_json(str(error)) from None
    if not isinstance(document, dict):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid-values",
            "The request is JSON, but not an object.",
            faults=[Fault("", 'an object like {"name": "Ada", "email": "ada@example.org"} is needed')],
        )
    return document


def _not_json(reason: str) -> Problem:
    return Problem(
        HTTPStatus.BAD_REQUEST, "invalid-json", f"The request's body is not valid JSON: {reason}."
    )


def _name(document: Mapping[str, Any], faults: list[Fault]) -> str:
    value = _string(document, "name", faults)
    if value is None:
        return ""
    problem = None
    if not 1 <= len(value) <= NAME_CHARACTERS:
        problem = f"must have 1 to {NAME_CHARACTERS} characters; this one has {len(value)}"
    elif not value.isprintable() and any(
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value
    ):
        problem = "must not contain control characters or line breaks"
    elif _TEXT_DIRECTION.search(value):
        problem = "must not contain characters that turn the direction of text"
    elif _ENCODED_WORD.search(value):
        problem = "must not contain a MIME encoded word (=?charset?q?...)"
    elif not value.strip():
        problem = "must not be blank"
    if problem:
        faults.append(Fault("/name", problem))
    return value


def _address(document: Mapping[str, Any], faults: list[Fault]) -> str:
    value = _string(document, "email", faults)
    if value is None:
        return ""
    try:
        return parse_address(value)
    except ValueError as error:
        faults.append(Fault("/email", str(error)))
        return ""


def parse_address(text: str) -> str:
    """The address in ASCII, its domain in lower case and punycode. Raises ValueError in words."""
    if (plain := _PLAIN_ADDRESS.fullmatch(text)) and len(text) <= ADDRESS_CHARACTERS:
        local, domain = plain["local"], plain["domain"].lower()
        if len(local) <= LOCAL_CHARACTERS and max(map(len, domain.split("."))) <= LABEL_CHARACTERS:
            return f"{local}@{domain}"
    return check_address(text)


def check_address(text: str) -> str:
    """The whole check, for any text; ``parse_address`` spares most addresses the cost of it."""
    if len(text) > ADDRESS_CHARACTERS:
        raise ValueError(f"must have at most {ADDRESS_CHARACTERS} characters; this one has {len(text)}")
    if parseaddr(text) != ("", text):
        raise ValueError(
            "must be one plain address like ada@example.org, without spaces or a display name"
        )
    try:
        parsed = email_validator.validate_email(
            text, check_deliverability=False, globally_deliverable=False, strict=True
        )
    except email_validator.EmailNotValidError as error:
        raise ValueError(str(error)) from None
    if "." not in parsed.ascii_domain:
        raise ValueError("The part after the @-sign must be a full domain name with a period.")
    if parsed.ascii_email is None:
        raise ValueError(
            "The part before the @-sign must be ASCII: relays that take other characters (SMTPUTF8) "
            "are too rare to promise delivery."
        )
    if len(parsed.ascii_email) > ADDRESS_CHARACTERS:
        raise ValueError(f"must have at most {ADDRESS_CHARACTERS} characters in punycode")
    return parsed.ascii_email


def _string(document: Mapping[str, Any], field: str, faults: list[Fault]) -> str | None:
    if field not in document:
        faults.append(Fault(f"/{field}", "is required"))
        return None
    value = document[field]
    if not isinstance(value, str):
        faults.append(Fault(f"/{field}", "must be a string"))
        return None
    return value


def _escape(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")
