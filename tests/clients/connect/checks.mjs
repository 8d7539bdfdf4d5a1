// Checks a running server with @connectrpc/connect-node over its connect
// transport, with JSON and with binary messages, over HTTP/1.1 and HTTP/2. Wants
// the stubs of ../web/gen, and an action that answers at ROUTE.
import assert from 'node:assert/strict';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { JobControl } from '../web/gen/backjob/v1/job_control_pb.js';
import { JobWorker } from '../web/gen/backjob/v1/job_worker_pb.js';
import { JobState } from '../web/gen/backjob/v1/job_pb.js';

const address = process.env.BACKJOB_ADDR ?? '127.0.0.1:50051';
const route = process.env.ROUTE ?? '/reports/build';
let failed = false;

for (const httpVersion of ['1.1', '2']) {
  for (const useBinaryFormat of [false, true]) {
    const name = `HTTP/${httpVersion}, ${useBinaryFormat ? 'binary' : 'JSON'}`;
    try {
      const transport = createConnectTransport({
        baseUrl: `http://${address}`, httpVersion, useBinaryFormat, defaultTimeoutMs: 60_000,
      });
      const control = createClient(JobControl, transport);
      const worker = createClient(JobWorker, transport);
      const { job } = await control.start({ action: { route, json: { year: 2026 } }, startAfter: { seconds: 3600n } });
      assert.equal(job.state, JobState.SCHEDULED);
      const { job: status } = await control.getStatus({ jobId: job.id });
      assert.equal(status.revision, job.revision);
      const { job: cancelled } = await control.cancelJob({ jobId: job.id });
      assert.equal(cancelled.state, JobState.CANCELLED);
      await assert.rejects(control.start({ action: { route: 'x' } }), (error) => {
        assert.ok(error instanceof ConnectError);
        assert.equal(error.code, Code.InvalidArgument);
        assert.match(error.message, /action\.route/);
        assert.deepEqual(error.details.map((detail) => detail.type).sort(),
          ['google.rpc.BadRequest', 'google.rpc.ErrorInfo']);
        return true;
      });
      await assert.rejects(worker.report({}), (error) => error.code === Code.Unauthenticated);
      console.log(`ok   ${name}`);
    } catch (error) {
      failed = true;
      console.log(`FAIL ${name}: ${error.stack}`);
    }
  }
}
process.exit(failed ? 1 : 0); // HTTP/2 sessions would stay open for a while
