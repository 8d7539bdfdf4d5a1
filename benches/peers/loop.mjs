// What the workers and producers of the peers that run on Node have in common:
// lines of JSON to the parent, a connection on which the worker tells the producer
// what ran when, and the closed loop of the producer. All times are nanoseconds of
// CLOCK_MONOTONIC.
import { createServer, connect } from 'node:net';
import { createInterface } from 'node:readline';

export const now = () => Number(process.hrtime.bigint());
export const answer = (value) => process.stdout.write(JSON.stringify({ Ok: value }) + '\n');
export const REPORTS = 5;
export const CONCURRENCY = Number(process.env.WORKERS);
const OUTSTANDING = Number(process.env.OUTSTANDING);

// Ends with the parent.
process.stdin.on('end', () => process.exit(0));
export const fail = (error) => {
  process.stdout.write(JSON.stringify({ Err: String(error) }) + '\n', () => process.exit(1));
};
process.on('unhandledRejection', fail);
process.on('uncaughtException', fail);

// Of a worker: tell(tag, entered) says that an action is through.
export function teller() {
  let lines = '';
  let socket;
  const flush = () => {
    if (socket && lines) socket.write(lines);
    lines = '';
  };
  const server = createServer((connected) => {
    connected.setNoDelay(true);
    socket = connected;
    socket.write('hello\n');
    socket.on('error', () => {});
  });
  process.stdin.resume();
  server.listen(0, '127.0.0.1', () => answer({ events: server.address().port }));
  return (tag, entered) => {
    if (!lines) setImmediate(flush);
    lines += `${tag} ${entered} ${now()}\n`;
  };
}

// Of a producer: answers each question {alone, reports, seconds} with "open", "closed" and
// what it measured; `enqueue` resolves when the job is accepted.
export function produce(events, enqueue) {
  const waiting = new Map();
  let tag = 0;
  const socket = connect(events, '127.0.0.1');
  socket.setNoDelay(true);
  createInterface({ input: socket }).on('line', (line) => {
    if (line === 'hello') return ready();
    const [done, entered, through] = line.split(' ').map(Number);
    waiting.get(done)?.({ entered, through });
    waiting.delete(done);
  });
  const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1e3));

  async function measure({ alone, reports, seconds }) {
    let open = false;
    let over = false;
    const latencies = [];
    const handlers = [];
    const caller = async () => {
      while (!over) {
        const own = (tag += 1);
        const event = new Promise((resolve) => waiting.set(own, resolve));
        const began = now();
        await enqueue(own, reports);
        const { entered, through } = await event;
        if (open) {
          latencies.push((alone ? entered : through) - began);
          handlers.push(entered - began);
        }
        if (alone) await sleep(0.004); // the worker comes to rest
      }
    };
    const callers = Array.from({ length: alone ? 1 : OUTSTANDING }, caller);
    await sleep(Math.max(seconds / 5, 0.1));
    answer(null);
    const from = now();
    open = true;
    await sleep(seconds);
    // On a busy machine a short window may be too short.
    while (latencies.length === 0 && now() - from < 20e9) await sleep(0.01);
    open = false;
    const measured = (now() - from) / 1e9;
    answer(null);
    over = true;
    await Promise.all(callers);
    const percentile = (values, percent) => {
      values.sort((a, b) => a - b);
      return values[Math.min(Math.floor((values.length * percent) / 100), values.length - 1)] / 1e3;
    };
    return {
      operations: latencies.length,
      per_second: latencies.length / measured,
      p50_us: percentile(latencies, 50),
      p99_us: percentile(latencies, 99),
      cpu_us: {},
      more: { handler_p50_us: percentile(handlers, 50), handler_p99_us: percentile(handlers, 99) },
    };
  }

  async function ready() {
    answer(null);
    for await (const line of createInterface({ input: process.stdin })) answer(await measure(JSON.parse(line)));
  }
}
