"""What the doctor finds in the DNS of the sender's domain."""

from __future__ import annotations

from collections.abc import Mapping

import dns.resolver
import pytest
from name_server import name_server

from console.doctor.finding import Finding, Verdict
from console.doctor.sender import look_at_sender

ALL = {
    "example.org": "v=spf1 include:_spf.example.net -all",
    "_dmarc.example.org": "v=DMARC1; p=none",
    "selector._domainkey.example.org": "v=DKIM1; p=abc",
}


def findings(records: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    with name_server(records) as port:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], port
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        return list(look_at_sender("example.org"))


def test_a_domain_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(ALL, monkeypatch)
    assert [finding.verdict for finding in found] == [Verdict.OK] * 3, found


@pytest.mark.parametrize(
    ("missing", "word"),
    [
        ("example.org", "SPF"),
        ("_dmarc.example.org", "DMARC"),
        ("selector._domainkey.example.org", "DKIM"),
    ],
)
def test_what_is_missing_is_named(missing: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(
        {name: text for name, text in ALL.items() if name != missing} | {"www.example.org": "x"},
        monkeypatch,
    )
    bad = [finding for finding in found if finding.verdict is Verdict.WARNING]
    assert len(bad) == 1
    assert word in bad[0].words
    assert bad[0].advice


def test_a_dns_that_does_not_answer_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], 9
    monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
    monkeypatch.setattr("console.doctor.sender.DNS_SECONDS", 0.2)
    (found,) = look_at_sender("example.org")
    assert found.verdict is Verdict.WARNING
    assert "DNS does not answer" in found.words
