"""An application with one action for backjob: it counts the words in the text
files of a folder, reports how far it is, and stops when it is told to.

    pip install -r requirements.txt
    TRIGGER_KEY=... FOLDER=. python action.py
"""

import base64
import collections
import json
import logging
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from verify import Refused, verify

# grpcio-tools compiles the contract when it is imported; an application of your
# own may as well generate the modules once with `python -m grpc_tools.protoc`.
sys.path.insert(0, str(Path(__file__).parents[2] / "proto"))
import grpc  # noqa: E402

pb, services = grpc.protos_and_services("backjob/v1/job_worker.proto")

MOST_BODY = 1 << 20  # as backjob's own limit
MOST_FILE = 16 << 20  # what is larger is hardly a text
PATIENCE = 300  # a server silent for so many seconds has given the job up
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

log = logging.getLogger("action")


class Reporter:
    """Reports of one attempt. One that finds no server is repeated; the sequence
    numbers keep it from being applied twice."""

    def __init__(self, url, token):
        secure = urlsplit(url).scheme == "https"
        address = urlsplit(url).netloc
        self.channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials())
            if secure
            else grpc.insecure_channel(address)
        )
        self.worker = services.JobWorkerStub(self.channel)
        self.token = [("authorization", f"Bearer {token}")]
        self.sequence = 0
        self.stopped = False  # True once the work should end early

    def send(self, **fields):
        """Sends one report and waits for its acknowledgement."""
        self.sequence += 1
        report = pb.ReportRequest(sequence=self.sequence, **fields)
        wait, until = 0.1, time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.worker.Report(report, metadata=self.token, timeout=30)
                break
            except grpc.RpcError as error:
                again = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                # Any other code is the server's last word: the job has ended, say.
                if error.code() not in again or time.monotonic() > until:
                    raise
                time.sleep(wait)
                wait = min(2 * wait, 5)
        if answer.directive == pb.DIRECTIVE_STOP:
            self.stopped = True

    def close(self):
        self.channel.close()


def build(reporter, folder, pause):
    """Does the work and reports it to its end."""
    files = list(texts(folder))
    counts, read, said, last = collections.Counter(), 0, [], time.monotonic()
    for done, file in enumerate(files, start=1):
        if reporter.stopped:
            reporter.send(stopped=pb.Stopped())
            return
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError):
                said.append(f"{error}\n")
        else:
            words = WORD.findall(text.lower())
            counts.update(words)
            read += 1
            said.append(f"{file}: {len(words)} words\n")
        # Ten reports a second are enough for any eye.
        if pause or time.monotonic() - last > 0.1:
            last = time.monotonic()
            reporter.send(progress_detail=detail(done, len(files)), append_text="".join(said))
            said.clear()
        time.sleep(pause)
    result = {
        "files": read,
        "words": counts.total(),
        "most": [word for word, _ in counts.most_common(10)],
    }
    reporter.send(
        progress_detail=detail(len(files), len(files)),
        append_text="".join(said),
        finish={"result": {"content_type": "application/json", "data": json.dumps(result).encode()}},
    )


def detail(done, total):
    """The percentage follows from done and total."""
    return {"done": done, "total": total, "unit": "files", "stage": "counting"}


def texts(folder):
    """The files below a folder, but those in hidden folders."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(path, name)
            if file.is_file() and not file.is_symlink() and file.stat().st_size <= MOST_FILE:
                yield file


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key = b""
    folder = "."
    running = set()  # the attempts at work
    lock = threading.Lock()

    def answer(self, status, text=""):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.act()

    def do_POST(self):
        self.act()

    def act(self):
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            self.close_connection = True  # what follows is unread
            self.answer(400, "the body is too long")
            return
        body = self.rfile.read(int(length))
        # self.path is not always the request line as it came.
        target = self.requestline.split(" ")[1]
        try:
            verify(self.command, target, self.headers, body, self.key, time.time())
        except Refused as refused:
            log.warning("refused: %s", refused)
            self.answer(401, str(refused))
            return
        path, _, query = target.partition("?")
        if path != "/reports/build":
            self.answer(404, "no such action")
            return
        # How long to rest after each file, so that there is something to watch.
        pause = re.fullmatch(r"(\d+)(ms|s)", parse_qs(query).get("pause", ["0s"])[0])
        if not pause:
            self.answer(400, "pause must be like 20ms or 1s")
            return
        pause = int(pause[1]) / (1000 if pause[2] == "ms" else 1)
        attempt = self.headers["Backjob-Job-Id"] + "/" + self.headers["Backjob-Attempt"]
        with self.lock:
            # Delivery is at least once: the same attempt may come again.
            again = attempt in self.running
            self.running.add(attempt)
        if not again:
            reporter = Reporter(self.headers["Backjob-Report-Url"], self.headers["Backjob-Report-Token"])
            threading.Thread(target=self.work, args=(attempt, reporter, pause), daemon=True).start()
        # Detached: from here on the reports alone tell how it goes.
        self.answer(202)

    def work(self, attempt, reporter, pause):
        try:
            try:
                build(reporter, self.folder, pause)
            except grpc.RpcError:
                raise
            except Exception as error:
                reporter.send(fail={"message": str(error)})
            log.info("attempt %s has ended", attempt)
        except grpc.RpcError as error:
            log.warning("attempt %s cannot report: %s", attempt, error.details())
        finally:
            reporter.close()
            with self.lock:
                self.running.discard(attempt)

    def log_message(self, format, *args):
        pass  # the action logs what matters


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        Application.key = base64.urlsafe_b64decode(os.environ.get("TRIGGER_KEY", "") + "=")
    except ValueError:
        Application.key = b""
    if len(Application.key) != 32:
        sys.exit("TRIGGER_KEY must be what `backjob keygen --target default` prints as key")
    Application.folder = os.environ.get("FOLDER") or "."
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT") or 8080)), Application)
    log.info("listening on 127.0.0.1:%d", server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
