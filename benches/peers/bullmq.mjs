// BullMQ: `bullmq.mjs worker REDIS_PORT BODY` or `bullmq.mjs producer REDIS_PORT BODY EVENTS_PORT`.
import { createRequire } from 'node:module';
import { CONCURRENCY, REPORTS, fail, now, produce, teller } from './loop.mjs';

// From where the peers are installed, which is not beside this file.
const { Queue, Worker } = createRequire(`${process.env.PEERS}/`)('bullmq');
const [role, port, body, events] = process.argv.slice(2);
const connection = { host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null };

if (role === 'worker') {
  const tell = teller();
  const worker = new Worker(
    'jobs',
    async (job) => {
      const entered = now();
      const { tag, reports } = job.data;
      for (let report = 1; report <= reports; report += 1) await job.updateProgress((report * 100) / REPORTS);
      tell(tag, entered);
    },
    { connection, concurrency: CONCURRENCY },
  );
  worker.on('failed', (_, error) => fail(error));
  worker.on('error', fail);
} else {
  const queue = new Queue('jobs', { connection });
  await queue.waitUntilReady();
  const text = 'x'.repeat(Number(body));
  produce(Number(events), (tag, reports) => queue.add('job', { tag, reports, text }));
}
