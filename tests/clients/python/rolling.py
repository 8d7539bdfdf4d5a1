"""Three nodes on one PostgreSQL are replaced one after the other, as in an upgrade,
while grpcio calls them with nothing but its own retry policy for UNAVAILABLE: no call
fails, every watch is resumed until the end of its job, no job is lost or run twice.

BINARY is `backjob`; BACKJOB_TEST_POSTGRES names a server for tests and a user who may
make schemas: it leaves one there. Ends what it starts."""

import collections
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

BINARY = sys.argv[1]
DATABASE = os.environ["BACKJOB_TEST_POSTGRES"]
SCHEMA = f"rolling_{uuid.uuid4().hex[:12]}"
CALLERS = 4
ROUNDS = 2  # each node is replaced as often
FINAL = (4, 5, 6)

RETRIES = json.dumps({
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{
        "name": [{}],
        "retryPolicy": {
            "maxAttempts": 5,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }],
})  # fmt: skip

runs = collections.Counter()  # of each job


class Action(http.server.BaseHTTPRequestHandler):
    """Does a little work."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        runs[self.headers["backjob-job-id"]] += 1
        time.sleep(0.02)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Node:
    """A process of the program."""

    def __init__(self, folder, name, action):
        self.name, self.port = name, free_port()
        self.command = [BINARY, "serve", "--set", f"server.listen=127.0.0.1:{self.port}"]
        for setting in (
            f"node.name={name}",
            "node.lease=2s",
            f"database.url={DATABASE}",
            f"database.schema={SCHEMA}",
            f"targets.default.url=http://127.0.0.1:{action}",
            f"key_file={folder}/backjob.key",
        ):
            self.command += ["--set", setting]
        self.log = open(f"{folder}/{name}.log", "a")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"node {self.name} ended with {self.process.returncode}")
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"node {self.name} does not listen after 60 s")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def methods(port):
    """Of JobControl: their messages, by reflection."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("backjob.v1.JobControl")
        return {
            method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
            for method in service.methods
        }


class Caller(threading.Thread):
    """Starts jobs, one after the other, and follows each to its end."""

    def __init__(self, number, channel, messages, over):
        super().__init__()
        self.number, self.over = number, over
        self.jobs, self.failed, self.resumed = [], [], 0
        self.messages = messages
        self.calls = {
            name: (channel.unary_stream if name == "WatchStatus" else channel.unary_unary)(
                f"/backjob.v1.JobControl/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=messages[name][1].FromString,
            )
            for name in ("Start", "GetStatus", "WatchStatus")
        }

    def call(self, name, **fields):
        return self.calls[name](self.messages[name][0](**fields), timeout=60)

    def run(self):
        try:
            while not self.over.is_set():
                key = f"{self.number}-{len(self.jobs)}"
                # Whoever repeats a Start names it by a key, so that it makes one job.
                job = self.call("Start", action={"route": f"/{key}"}, idempotency_key=key).job
                self.jobs.append(job.id)
                self.follow(job)
                job = self.call("GetStatus", job_id=job.id).job
                if job.state != 4:
                    self.failed.append(f"{job.id} ended as {job.state}: {job.failure}")
        except grpc.RpcError as error:
            self.failed.append(f"{error.code()} {error.details()}")

    def follow(self, job):
        while job.state not in FINAL:
            fields = {"job_ids": [job.id], "after_revision": job.revision}
            try:
                for frame in self.call("WatchStatus", **fields):
                    if frame.HasField("job"):
                        if frame.job.revision <= job.revision:
                            self.failed.append(f"{job.id}: {frame.job.revision} after {job.revision}")
                        job = frame.job
            except grpc.RpcError as error:
                # A stream that has begun is not repeated by the policy: come back.
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                self.resumed += 1


def main():
    application = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Action)
    threading.Thread(target=application.serve_forever, daemon=True).start()
    nodes, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            nodes = [Node(folder, name, application.server_port) for name in "abc"]
            messages = methods(nodes[0].port)
            address = "ipv4:" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
            over = threading.Event()
            # What grpcio makes of many addresses by itself is no host's name.
            options = [("grpc.service_config", RETRIES), ("grpc.default_authority", "localhost")]
            with grpc.insecure_channel(address, options=options) as channel:
                callers = [Caller(number, channel, messages, over) for number in range(CALLERS)]
                for caller in callers:
                    caller.start()
                for _ in range(ROUNDS):
                    for node in nodes:
                        before = sum(len(caller.jobs) for caller in callers)
                        status = node.stop()
                        if status != 0:
                            failed.append(f"node {node.name} ended with {status}")
                        node.start()
                        # Each of them is under load: some more have ended meanwhile.
                        deadline = time.monotonic() + 60
                        while sum(len(caller.jobs) for caller in callers) < before + 20:
                            if time.monotonic() > deadline or not any(caller.is_alive() for caller in callers):
                                failed.append(f"nothing went on after node {node.name} was replaced")
                                break
                            time.sleep(0.05)
                over.set()
                for caller in callers:
                    caller.join()
            jobs = [job for caller in callers for job in caller.jobs]
            failed += [fault for caller in callers for fault in caller.failed]
            failed += [f"{job} ran {runs[job]} times" for job in jobs if runs[job] != 1]
            if len(set(jobs)) != len(jobs) or set(runs) != set(jobs):
                failed.append(f"{len(set(jobs))} jobs, {len(runs)} ran, {len(jobs)} were started")
            resumed = sum(caller.resumed for caller in callers)
            print(f"{len(jobs)} jobs while {3 * ROUNDS} nodes were replaced, {resumed} watches resumed")
        finally:
            for node in nodes:
                node.stop()
            if failed:
                for node in nodes:
                    print(open(node.log.name).read()[-3000:])
    if failed:
        sys.exit("\n".join(failed))


main()
