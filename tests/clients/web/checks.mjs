// Checks a running server over gRPC-Web, as a browser would call it: with
// @connectrpc/connect-web over fetch, and stubs that protoc-gen-es made into
// gen/. Needs an action that answers at ROUTE (default /reports/build).
import assert from 'node:assert/strict';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createGrpcWebTransport } from '@connectrpc/connect-web';
import { JobControl } from './gen/backjob/v1/job_control_pb.js';
import { JobState } from './gen/backjob/v1/job_pb.js';

const address = process.env.BACKJOB_ADDR ?? '127.0.0.1:50051';
const route = process.env.ROUTE ?? '/reports/build';
const transport = createGrpcWebTransport({ baseUrl: `http://${address}`, defaultTimeoutMs: 60_000 });
const control = createClient(JobControl, transport);

const checks = {
  async 'a job is started and its stream followed to the end'() {
    const { job } = await control.start({ action: { route }, labels: { check: 'web' } });
    const revisions = [];
    let synced = 0;
    let last;
    for await (const frame of control.watchStatus({ jobIds: [job.id] })) {
      if (frame.synced) synced += 1;
      if (!frame.job) continue;
      revisions.push(frame.job.revision);
      last = frame.job;
    }
    assert.equal(synced, 1);
    assert.deepEqual(revisions, [...new Set(revisions)].sort((a, b) => Number(a - b)));
    assert.equal(last.state, JobState.SUCCEEDED);
    const { job: status } = await control.getStatus({ jobId: job.id });
    assert.equal(status.revision, last.revision);
  },

  async 'a stream is left before its end'() {
    const { job } = await control.start({ action: { route }, startAfter: { seconds: 3600n } });
    const leave = new AbortController();
    for await (const frame of control.watchStatus({ jobIds: [job.id] }, { signal: leave.signal })) {
      if (frame.synced) break;
    }
    leave.abort();
    const { job: cancelled } = await control.cancelJob({ jobId: job.id });
    assert.equal(cancelled.state, JobState.CANCELLED);
  },

  async 'an error has its code and message'() {
    await assert.rejects(control.start({ action: { route: 'x' } }), (error) => {
      assert.ok(error instanceof ConnectError);
      assert.equal(error.code, Code.InvalidArgument);
      assert.match(error.message, /action\.route/);
      return true;
    });
  },
};

let failed = false;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok   ${name}`);
  } catch (error) {
    failed = true;
    console.log(`FAIL ${name}: ${error.stack}`);
  }
}
process.exitCode = failed ? 1 : 0;
