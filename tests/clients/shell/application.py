"""An application that runs examples/shell/work.sh for a job: it checks the
signature as the Python example does, hands on what the script reports with, and
answers 202.

    TRIGGER_KEY=... PORT=8080 FOLDER=. python application.py
"""

import base64
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
sys.path.insert(0, str(EXAMPLES / "python"))
from verify import Refused, verify  # noqa: E402

KEY = base64.urlsafe_b64decode(os.environ["TRIGGER_KEY"] + "=")


class Action(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        try:
            verify(self.command, self.requestline.split(" ")[1], self.headers, body, KEY, time.time())
        except Refused as refused:
            self.send_error(401, str(refused))
            return
        told = {"REPORT_URL": self.headers["Backjob-Report-Url"], "REPORT_TOKEN": self.headers["Backjob-Report-Token"]}
        subprocess.Popen([EXAMPLES / "shell" / "work.sh", os.environ["FOLDER"]], env=os.environ | told)
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Action).serve_forever()
