"""Checks a running server with grpcio, as a caller sees it, with the contract
taken from the server itself by reflection. Needs an action that answers at ROUTE
(default /reports/build) behind the target "default"; BACKJOB_ADDR (default
127.0.0.1:50051) is the server. Prints a line a check."""

import os
import sys
import time
import uuid

import grpc
from google.protobuf import duration_pb2, field_mask_pb2  # noqa: F401 (in the pool)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

ADDRESS = os.environ.get("BACKJOB_ADDR", "127.0.0.1:50051")
ROUTE = os.environ.get("ROUTE", "/reports/build")
NOBODY = "01900000-0000-7000-8000-000000000000"  # an id that no job has
LABEL = uuid.uuid4().hex  # tells the jobs of this run from all others
TIMEOUT = 60

channel = grpc.insecure_channel(ADDRESS)
reflection = ProtoReflectionDescriptorDatabase(channel)
pool = DescriptorPool(reflection)


class Service:
    """A client of a service that is known by reflection alone."""

    def __init__(self, name):
        for method in pool.FindServiceByName(name).methods:
            kind = {
                (False, False): channel.unary_unary,
                (False, True): channel.unary_stream,
                (True, True): channel.stream_stream,
            }[method.client_streaming, method.server_streaming]
            call = kind(
                f"/{name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, self.caller(call, GetMessageClass(method.input_type)))

    @staticmethod
    def caller(call, request):
        return lambda metadata=None, **fields: call(request(**fields), timeout=TIMEOUT, metadata=metadata)


control = Service("backjob.v1.JobControl")
worker = Service("backjob.v1.JobWorker")
STATES = pool.FindEnumTypeByName("backjob.v1.JobState").values_by_name
checks = []


def check(function):
    checks.append(function)
    return function


def equal(what, found, expected):
    if found != expected:
        raise AssertionError(f"{what} is {found!r}, not {expected!r}")


def state(job):
    return STATES and next(name for name, value in STATES.items() if value.number == job.state)


def refused(call, code, reason, fields=()):
    """The call must fail with this code, ErrorInfo and violated fields."""
    try:
        answer = call()
        if hasattr(answer, "__iter__") and not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    except grpc.RpcError as error:
        equal("code", error.code(), code)
        infos, violated = [], []
        for detail in rpc_status.from_call(error).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                infos.append((info.domain, info.reason))
            if detail.Unpack(bad):
                violated += [violation.field for violation in bad.field_violations]
        equal("ErrorInfo", infos, [("backjob.v1", reason)])
        equal("violated fields", violated, list(fields))
    else:
        raise AssertionError("it was not refused")


def start(**fields):
    action = {"route": ROUTE, **fields.pop("action", {})}
    return control.Start(action=action, labels={"check": LABEL}, **fields)


@check
def reflection_knows_the_services():
    names = set(reflection.get_services())
    missing = {"backjob.v1.JobControl", "backjob.v1.JobWorker", "grpc.health.v1.Health"} - names
    equal("missing", missing, set())


@check
def health_says_serving():
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "backjob.v1.JobControl", "backjob.v1.JobWorker"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        equal(service, answer.status, health_pb2.HealthCheckResponse.SERVING)


@check
def every_form_of_action_runs_to_its_end():
    for action in (
        {},
        {"method": "POST", "query": {"page": "1", "ä": "&"}},
        {"form": {"id": "5", "name": "Näme"}},
        {"json": {"year": 2026, "deep": {"list": [1, "two", None]}}},
        {"raw": {"content_type": "text/csv", "data": b"a;b\n1;2\n"}},
        {"method": "REPORT", "headers": {"x-own": "1", "accept-language": "de"}},
    ):
        job = start(action=action).job
        last = None
        for frame in control.WatchStatus(job_ids=[job.id]):
            if frame.HasField("job"):
                last = frame.job
        equal(f"state of {action}", state(last), "JOB_STATE_SUCCEEDED")


@check
def a_watch_is_in_order_and_can_be_resumed():
    job = start().job
    seen, synced, last = [], 0, None
    for frame in control.WatchStatus(job_ids=[job.id]):
        if frame.synced:
            synced += 1
            equal("jobs before synced", len(seen), 1)
        elif frame.HasField("job"):
            seen.append(frame.job.revision)
            last = frame.job
    equal("synced", synced, 1)
    equal("revisions", seen, sorted(set(seen)))
    equal("state", state(last), "JOB_STATE_SUCCEEDED")
    again = list(control.WatchStatus(job_ids=[job.id], after_revision=last.revision))
    equal("frames of a watch that has seen all", [(f.synced, f.HasField("job")) for f in again], [(True, False)])
    before = list(control.WatchStatus(job_ids=[job.id], after_revision=last.revision - 1))
    equal("revision after the one before", [f.job.revision for f in before if f.HasField("job")], [last.revision])


@check
def a_masked_status_holds_no_more():
    job = start().job
    answer = control.GetStatus(job_id=job.id, read_mask={"paths": ["state", "labels"]})
    equal("fields", sorted(field.name for field, _ in answer.job.ListFields()), ["labels", "state"])


@check
def a_delayed_job_is_cancelled_at_once():
    job = start(start_after={"seconds": 3600}).job
    equal("state", state(job), "JOB_STATE_SCHEDULED")
    equal("cancelled", state(control.CancelJob(job_id=job.id).job), "JOB_STATE_CANCELLED")
    equal("again", state(control.CancelJob(job_id=job.id).job), "JOB_STATE_CANCELLED")


@check
def a_time_in_the_past_runs_at_once():
    job = start(start_at={"seconds": int(time.time()) - 86400}).job
    frames = [frame.job for frame in control.WatchStatus(job_ids=[job.id]) if frame.HasField("job")]
    equal("state", state(frames[-1]), "JOB_STATE_SUCCEEDED")


@check
def a_filtered_watch_shows_new_jobs():
    call = control.WatchStatus(filter={"labels": {"check": f"{LABEL}-new"}})
    equal("first frame", next(call).synced, True)
    job = control.Start(action={"route": ROUTE}, labels={"check": f"{LABEL}-new"}).job
    for frame in call:
        if frame.HasField("job"):
            equal("job", frame.job.id, job.id)
            if state(frame.job) == "JOB_STATE_SUCCEEDED":
                break
    call.cancel()


@check
def pages_are_whole_and_newest_first():
    jobs, token = [], ""
    while True:
        page = control.ListJobs(page_size=3, page_token=token, filter={"labels": {"check": LABEL}})
        jobs += page.jobs
        token = page.next_page_token
        if not token:
            break
    ids = [job.id for job in jobs]
    equal("ids", len(ids), len(set(ids)))
    times = [job.created_at.ToNanoseconds() for job in jobs]
    equal("times", times, sorted(times, reverse=True))
    if len(ids) < 10:
        raise AssertionError(f"only {len(ids)} jobs")


@check
def bad_input_names_its_field():
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for fields, violated in (
        ({"action": {"route": "reports"}}, ["action.route"]),
        ({"action": {"route": "http://other/reports"}}, ["action.route"]),
        ({"action": {"route": "/a\r\nb"}}, ["action.route"]),
        ({"action": {"route": ROUTE, "headers": {"host": "x"}}}, ['action.headers["host"]']),
        ({"action": {"route": ROUTE, "method": "CONNECT"}}, ["action.method"]),
        ({"action": {"route": ROUTE}, "priority": 10}, ["priority"]),
        ({"action": {"route": ROUTE}, "start_after": {"seconds": 366 * 86400}}, ["start_after"]),
        ({}, ["action"]),
    ):
        refused(lambda: control.Start(**fields), invalid, "INVALID_FIELD", violated)
    refused(lambda: control.GetStatus(job_id="5"), invalid, "INVALID_FIELD", ["job_id"])
    refused(lambda: control.ListJobs(page_token="x"), invalid, "INVALID_FIELD", ["page_token"])


@check
def an_unknown_job_is_not_found():
    missing = grpc.StatusCode.NOT_FOUND
    for call in (control.GetStatus, control.CancelJob):
        refused(lambda: call(job_id=NOBODY), missing, "JOB_NOT_FOUND")
    refused(lambda: control.WatchStatus(job_ids=[NOBODY]), missing, "JOB_NOT_FOUND")
    refused(lambda: control.Start(action={"route": "/", "target": "none"}), missing, "UNKNOWN_TARGET")


@check
def a_report_wants_a_good_token():
    denied = grpc.StatusCode.UNAUTHENTICATED
    refused(lambda: worker.Report(progress=5), denied, "TOKEN_MISSING")
    forged = [("authorization", "Bearer forged")]
    refused(lambda: worker.Report(progress=5, metadata=forged), denied, "TOKEN_INVALID")


failures = 0
for run in checks:
    name = run.__name__.replace("_", " ")
    try:
        run()
    except Exception as error:
        failures += 1
        print(f"FAIL {name}: {error!r}")
    else:
        print(f"ok   {name}")
channel.close()
sys.exit(1 if failures else 0)
