"""What to type next: the address of a server, and a line to try with it."""

from __future__ import annotations

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Hosts that a server listens on and no client connects to, with this machine's address instead."""


def url_of(host: str, port: int) -> str:
    """Where a client of this machine finds a server that listens there."""
    shown = ANY_ADDRESS.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def say_try(url: str, reference: str, *, keyed: bool) -> str:
    """The line that asks a server for an embedding through a mask, `mask=photos`, or a cascade, `cascade=places`."""
    key = "-H 'Authorization: Bearer KEY' " if keyed else ""
    return f"curl {key}-F image=@photo.jpg '{url}/embed?{reference}'"
