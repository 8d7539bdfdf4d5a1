"""Checks that backjob sent a request: RFC 9421 with HMAC-SHA256."""

import base64
import binascii
import hashlib
import hmac
import re

COVERED = (
    "@method", "@path", "@query", "content-digest",
    "backjob-job-id", "backjob-attempt", "backjob-report-url", "backjob-report-token",
)
SKEW = 30  # seconds that both clocks may differ


class Refused(Exception):
    """Says why the request is not backjob's."""


def verify(method, target, headers, body, key, now):
    """Raises Refused unless backjob signed this request with the trigger key.

    `target` is that of the request line, not decoded; `headers` an
    email.message.Message, as http.server has it; `now` in seconds since 1970.
    The signature covers method, path, query, body and the Backjob-* headers;
    others prove nothing. A copied request stays good until it expires: who must
    refuse that too remembers the nonces.
    """
    # backjob=("@method" "@path" ...);created=1;expires=2;nonce="...";keyid="..."
    member = re.fullmatch(r"backjob=(\(([^()]*)\)(;.*))", single(headers, "signature-input"))
    sent = re.fullmatch(r"backjob=:([A-Za-z0-9+/=]+):", single(headers, "signature"))
    if not member or not sent:
        raise Refused("there is no signature of backjob")
    components = [name.strip('"') for name in member[2].split()]
    if sorted(components) != sorted(COVERED):
        raise Refused("the signature does not cover what a trigger's does")

    path, _, query = target.partition("?")
    derived = {"@method": method, "@path": path, "@query": f"?{query}"}
    lines = [f'"{name}": {derived.get(name) or single(headers, name)}' for name in components]
    lines.append(f'"@signature-params": {member[1]}')
    mac = hmac.digest(key, "\n".join(lines).encode("latin-1"), "sha256")
    try:
        signature = base64.b64decode(sent[1], validate=True)
    except binascii.Error as error:
        raise Refused("Signature is not base64") from error
    if not hmac.compare_digest(signature, mac):
        raise Refused("the signature does not match")

    # From here on all values are known to be backjob's own.
    created = re.search(r";created=(\d+)(?:;|$)", member[3])
    expires = re.search(r";expires=(\d+)(?:;|$)", member[3])
    if not created or not expires or not int(created[1]) - SKEW <= now <= int(expires[1]) + SKEW:
        raise Refused("the signature is not good at this time")
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if single(headers, "content-digest") != f"sha-256=:{digest}:":
        raise Refused("the body is not the one that was signed")


def single(headers, name):
    """The value of a header that must stand exactly once: of two, the check
    could read one and the application the other."""
    values = headers.get_all(name, [])
    if len(values) != 1:
        raise Refused(f"{name} must stand once")
    return values[0].strip()
