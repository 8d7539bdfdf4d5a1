// Checks a running server with @grpc/grpc-js, as a caller sees it. Needs an
// action that answers at ROUTE (default /reports/build) behind the target
// "default"; BACKJOB_ADDR (default 127.0.0.1:50051) is the server.
import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const address = process.env.BACKJOB_ADDR ?? '127.0.0.1:50051';
const route = process.env.ROUTE ?? '/reports/build';
const label = `node-${Date.now().toString(36)}`;
const NOBODY = '01900000-0000-7000-8000-000000000000'; // an id that no job has

const contract = loadSync(['backjob/v1/job_control.proto', 'backjob/v1/job_worker.proto'], {
  includeDirs: [fileURLToPath(new URL('../../../proto', import.meta.url))],
  enums: String,
  longs: Number,
  oneofs: true,
});
const { JobControl, JobWorker } = grpc.loadPackageDefinition(contract).backjob.v1;
const control = new JobControl(address, grpc.credentials.createInsecure());
const worker = new JobWorker(address, grpc.credentials.createInsecure());
const deadline = () => Date.now() + 60_000;

const call = (client, method, request, metadata = new grpc.Metadata()) => new Promise((resolve, reject) => {
  client[method](request, metadata, { deadline: deadline() }, (error, answer) => (error ? reject(error) : resolve(answer)));
});
const start = (more = {}) => call(control, 'start', {
  ...more, action: { route, ...more.action }, labels: { check: label },
});

/** All frames of a watch; `enough` ends it early. */
async function frames(request, enough = () => false) {
  const stream = control.watchStatus(request, { deadline: deadline() });
  const seen = [];
  try {
    for await (const frame of stream) {
      seen.push(frame);
      if (enough(frame)) break;
    }
  } finally {
    stream.cancel();
  }
  return seen;
}

async function refused(promise, code, pattern) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    // The details of google.rpc travel in one binary trailer.
    assert.equal(error.metadata.get('grpc-status-details-bin').length, 1);
    return true;
  });
}

const checks = {
  async 'a job is started and watched to its end'() {
    const { job } = await start({ displayName: 'a check from Node', action: { form: { id: '5' } } });
    assert.equal(job.labels.check, label);
    assert.equal(job.action.method, 'POST');
    const seen = await frames({ jobIds: [job.id] });
    assert.equal(seen.filter((frame) => frame.synced).length, 1);
    const revisions = seen.filter((frame) => frame.job).map((frame) => frame.job.revision);
    assert.deepEqual(revisions, [...new Set(revisions)].sort((a, b) => a - b));
    const last = seen.findLast((frame) => frame.job).job;
    assert.equal(last.state, 'JOB_STATE_SUCCEEDED');
    assert.ok(last.result.data.length > 0);
  },

  async 'a watch that broke goes on where it was'() {
    const { job } = await start({ startAfter: { seconds: 1 } });
    const first = await frames({ jobIds: [job.id] }, (frame) => frame.synced);
    const { revision } = first.find((frame) => frame.job).job;
    const rest = await frames({ jobIds: [job.id], afterRevision: revision });
    const revisions = rest.filter((frame) => frame.job).map((frame) => frame.job.revision);
    assert.ok(revisions.every((next) => next > revision), `${revisions} after ${revision}`);
    assert.equal(rest.findLast((frame) => frame.job).job.state, 'JOB_STATE_SUCCEEDED');
    const nothing = await frames({ jobIds: [job.id], afterRevision: revisions.at(-1) });
    assert.deepEqual(nothing.map((frame) => [frame.synced, Boolean(frame.job)]), [[true, false]]);
  },

  async 'text comes as pieces that make the whole'() {
    const { job } = await start();
    const pieces = await frames({ jobIds: [job.id], textMode: 'TEXT_MODE_DELTA' });
    let text = '';
    for (const { job: change, textDelta } of pieces) {
      if (textDelta) text = (textDelta.from === 0 ? '' : text) + textDelta.text;
      else if (change?.statusText) text = change.statusText;
    }
    const whole = await call(control, 'getStatus', { jobId: job.id });
    assert.equal(text.slice(-1000), whole.job.statusText.slice(-1000));
  },

  async 'a delayed job is cancelled at once'() {
    const { job } = await start({ startAfter: { seconds: 3600 } });
    assert.equal(job.state, 'JOB_STATE_SCHEDULED');
    const cancelled = await call(control, 'cancelJob', { jobId: job.id });
    assert.equal(cancelled.job.state, 'JOB_STATE_CANCELLED');
  },

  async 'a list is filtered'() {
    const filter = { labels: { check: label }, states: ['JOB_STATE_SUCCEEDED'] };
    const { jobs } = await call(control, 'listJobs', { pageSize: 100, filter });
    assert.ok(jobs.length >= 3, `${jobs.length} jobs`);
    assert.ok(jobs.every((job) => job.state === 'JOB_STATE_SUCCEEDED' && job.labels.check === label));
  },

  async 'errors have their code'() {
    await refused(call(control, 'getStatus', { jobId: NOBODY }), grpc.status.NOT_FOUND, /no job/i);
    await refused(call(control, 'getStatus', { jobId: 'x' }), grpc.status.INVALID_ARGUMENT, /job_id/);
    await refused(start({ action: { route: 'x' } }), grpc.status.INVALID_ARGUMENT, /action\.route/);
    await refused(call(worker, 'report', { progress: 1 }), grpc.status.UNAUTHENTICATED, /token/i);
    const forged = new grpc.Metadata();
    forged.set('authorization', 'Bearer forged');
    await refused(call(worker, 'report', { progress: 1 }, forged), grpc.status.UNAUTHENTICATED, /token/i);
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
control.close();
worker.close();
process.exitCode = failed ? 1 : 0;
