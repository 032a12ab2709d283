"""The sender's domain in the DNS: what receivers look at before they trust its mail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import dns.exception
import dns.resolver

from console.doctor.finding import Finding, Verdict

DNS_SECONDS: Final = 3.0


def look_at_sender(domain: str) -> Iterator[Finding]:
    """SPF (RFC 7208), DKIM (RFC 6376) and DMARC (RFC 7489): without them mail is taken for spam."""
    try:
        spf = any(text.startswith("v=spf1") for text in _texts(domain))
        dmarc = any(text.startswith("v=DMARC1") for text in _texts(f"_dmarc.{domain}"))
        dkim = _exists(f"_domainkey.{domain}")
    except dns.exception.DNSException as error:
        yield Finding("sender", Verdict.WARNING, f"DNS does not answer for {domain}: {error}"[:200])
        return
    if spf:
        yield Finding("sender", Verdict.OK, f"{domain} has an SPF record")
    else:
        advice = "publish one that includes your relay; the relay's provider says which"
        yield Finding("sender", Verdict.WARNING, f"{domain} has no SPF record", advice)
    if dkim:
        yield Finding("sender", Verdict.OK, f"{domain} publishes DKIM keys")
    else:
        advice = "let the relay sign your mail, and publish the key that its provider gives you"
        yield Finding("sender", Verdict.WARNING, f"{domain} publishes no DKIM key", advice)
    if dmarc:
        yield Finding("sender", Verdict.OK, f"{domain} has a DMARC record")
    else:
        advice = 'publish _dmarc TXT "v=DMARC1; p=none; rua=mailto:..."'
        yield Finding("sender", Verdict.WARNING, f"{domain} has no DMARC record", advice)


def _texts(name: str) -> list[str]:
    try:
        answer = dns.resolver.resolve(name, "TXT", lifetime=DNS_SECONDS)
    except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
        return []
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


def _exists(name: str) -> bool:
    """Whether anything is at or below this name (RFC 8020): only the relay knows its keys' names."""
    try:
        dns.resolver.resolve(name, "TXT", lifetime=DNS_SECONDS, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return False
    return True
