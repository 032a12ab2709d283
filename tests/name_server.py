"""A name server on a thread of its own; it knows the TXT records it is given, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset


@contextmanager
def name_server(records: Mapping[str, str]) -> Iterator[int]:
    """Gives its port. A name above a known one exists, and has no record."""
    known = {dns.name.from_text(name): text for name, text in records.items()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=_serve, args=(listening, known))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.sendto(b"", listening.getsockname())
            thread.join()


def _serve(listening: socket.socket, known: Mapping[dns.name.Name, str]) -> None:
    while True:
        wire, client = listening.recvfrom(4096)
        if not wire:
            return
        query = dns.message.from_wire(wire)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        name = query.question[0].name
        if name in known:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", f'"{known[name]}"'))
        elif not any(other.is_subdomain(name) for other in known):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        listening.sendto(answer.to_wire(), client)
