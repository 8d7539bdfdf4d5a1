// graphile-worker: `graphile.mjs worker POSTGRES_PORT BODY` or
// `graphile.mjs producer POSTGRES_PORT BODY EVENTS_PORT`. It has no progress of its
// own, so a job's is kept in a table beside it, as its users do.
import { createRequire } from 'node:module';
import { CONCURRENCY, REPORTS, now, produce, teller } from './loop.mjs';

const { Logger, makeWorkerUtils, run, runMigrations } = createRequire(`${process.env.PEERS}/`)('graphile-worker');
const [role, port, body, events] = process.argv.slice(2);
const connectionString = `postgres://postgres@127.0.0.1:${port}/postgres`;
// Standard output is for answers.
const logger = new Logger(() => (level, message) => {
  if (level === 'error') console.error(message);
});

if (role === 'worker') {
  await runMigrations({ connectionString, logger });
  let tell = () => {};
  const job = async ({ tag, reports }, helpers) => {
    const entered = now();
    for (let report = 1; report <= reports; report += 1) {
      await helpers.query(
        'INSERT INTO progress VALUES ($1, $2) ON CONFLICT (job) DO UPDATE SET percent = $2',
        [helpers.job.id, (report * 100) / REPORTS],
      );
    }
    tell(tag, entered);
  };
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.withPgClient((client) =>
    client.query('CREATE TABLE progress (job bigint PRIMARY KEY, percent int NOT NULL)'));
  await utils.release();
  const options = { concurrency: CONCURRENCY, maxPoolSize: 32, noHandleSignals: true };
  await run({ connectionString, logger, taskList: { job }, ...options });
  tell = teller();
} else {
  const utils = await makeWorkerUtils({ connectionString, logger, maxPoolSize: 16 });
  const text = 'x'.repeat(Number(body));
  produce(Number(events), (tag, reports) => utils.addJob('job', { tag, reports, text }));
}
