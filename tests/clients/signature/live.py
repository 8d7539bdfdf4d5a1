"""An application whose action answers 200 only if PyPI's http-message-signatures
finds the trigger's signature good, and every tampering with it bad.

    TRIGGER_KEY=... PORT=8080 python live.py
"""

import base64
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    algorithms,
)

COVERED = [
    "@method", "@path", "@query", "content-digest",
    "backjob-job-id", "backjob-attempt", "backjob-report-url", "backjob-report-token",
]
KEY = base64.urlsafe_b64decode(os.environ["TRIGGER_KEY"] + "=")


class Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id):
        if key_id != os.environ["TRIGGER_KEYID"]:
            raise HTTPMessageSignaturesException(f"unknown key {key_id}")
        return KEY

    resolve_private_key = resolve_public_key


VERIFIER = HTTPMessageVerifier(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Keys())


def good(method, target, headers, body):
    message = SimpleNamespace(method=method, url=f"http://localhost{target}", headers=dict(headers))
    try:
        [result] = VERIFIER.verify(message, require_components=COVERED, body=body)
    except HTTPMessageSignaturesException:
        return False
    return result.label == "backjob" and bool(result.nonce)


class Action(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        target = self.requestline.split(" ")[1]
        sent = (self.command, target, dict(self.headers.items()), body)
        tampered = [
            ("PUT", *sent[1:]),
            (sent[0], f"/x{target}", *sent[2:]),
            (sent[0], f"{target}&x=1" if "?" in target else f"{target}?x=1", *sent[2:]),
            (*sent[:3], body + b"x"),
        ]
        for name in sent[2]:
            if name.lower() in COVERED or name.lower() in ("signature", "signature-input"):
                value = sent[2][name]
                changed = value.replace("created=1", "created=2") if name.lower() == "signature-input" else f"1{value}"
                tampered.append((*sent[:2], {**sent[2], name: changed}, body))
        slipped = [change for change in tampered if good(*change)]
        if not good(*sent):
            status, text = 401, "the signature is not good"
        elif slipped or len(tampered) != 11:
            status, text = 500, f"of {len(tampered)} tamperings {len(slipped)} were not found out: {slipped}"
        else:
            status, text = 200, f"good; {len(tampered)} tamperings found out"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Action).serve_forever()
