// An application with one action for backjob: it counts the words in the text
// files of a folder, reports how far it is, and stops when it is told to.
//
//     npm install
//     TRIGGER_KEY=... FOLDER=. node action.mjs
import { readdir, readFile, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { setTimeout as rest } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { refusal } from './verify.mjs';

const MOST_BODY = 1 << 20; // as backjob's own limit
const MOST_FILE = 16 << 20; // what is larger is hardly a text
const PATIENCE = 300_000; // ms; a server silent for so long has given the job up
const WORD = /\p{L}[\p{L}']*/gu;

const contract = loadSync('backjob/v1/job_worker.proto', {
  includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
  enums: String,
  longs: Number,
});
const { JobWorker } = grpc.loadPackageDefinition(contract).backjob.v1;

/**
 * Reports of one attempt. One that finds no server is repeated; the sequence
 * numbers keep it from being applied twice.
 */
class Reporter {
  #client;
  #metadata = new grpc.Metadata();
  #sequence = 0;
  /** True once the work should end early. */
  stopped = false;

  constructor(url, token) {
    const { protocol, host } = new URL(url);
    const credentials = protocol === 'https:' ? grpc.credentials.createSsl() : grpc.credentials.createInsecure();
    this.#client = new JobWorker(host, credentials);
    this.#metadata.set('authorization', `Bearer ${token}`);
  }

  /** Sends one report and waits for its acknowledgement. */
  async send(fields) {
    const report = { sequence: ++this.#sequence, ...fields };
    const until = Date.now() + PATIENCE;
    for (let wait = 100; ; wait = Math.min(2 * wait, 5000)) {
      try {
        const answer = await this.#call(report);
        this.stopped ||= answer.directive === 'DIRECTIVE_STOP';
        return;
      } catch (error) {
        const again = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED].includes(error.code);
        // Any other code is the server's last word: the job has ended, say.
        if (!again || Date.now() > until) throw error;
        await rest(wait);
      }
    }
  }

  #call(report) {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + 30_000 };
      this.#client.report(report, this.#metadata, options, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  }

  close() {
    this.#client.close();
  }
}

/** Does the work and reports it to its end. */
async function build(reporter, folder, pause) {
  const files = [];
  for await (const file of list(folder)) files.push(file);
  const counts = new Map();
  let [texts, total, said, last] = [0, 0, '', Date.now()];
  const progress = (done) => ({
    // The percentage follows from done and total.
    progressDetail: { done, total: files.length, unit: 'files', stage: 'counting' },
    ...(said && { appendText: said }),
  });
  for (const [at, file] of files.entries()) {
    if (reporter.stopped) return reporter.send({ stopped: {} });
    try {
      const text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file));
      const words = text.toLowerCase().match(WORD) ?? [];
      for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
      texts += 1;
      total += words.length;
      said += `${file}: ${words.length} words\n`;
    } catch (error) {
      if (error.code !== 'ERR_ENCODING_INVALID_ENCODED_DATA') said += `${error.message}\n`;
    }
    // Ten reports a second are enough for any eye.
    if (pause || Date.now() - last > 100) {
      last = Date.now();
      await reporter.send(progress(at + 1));
      said = '';
    }
    if (pause) await rest(pause);
  }
  const most = [...counts].sort(([, a], [, b]) => b - a).slice(0, 10).map(([word]) => word);
  const data = Buffer.from(JSON.stringify({ files: texts, words: total, most }));
  return reporter.send({
    ...progress(files.length),
    finish: { result: { contentType: 'application/json', data } },
  });
}

/** The files below a folder, but those in hidden folders. */
async function* list(folder) {
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory() && !entry.name.startsWith('.')) yield* list(path);
    else if (entry.isFile() && (await stat(path)).size <= MOST_FILE) yield path;
  }
}

const running = new Set(); // the attempts at work

async function work(attempt, reporter, pause) {
  try {
    await build(reporter, folder, pause).catch((error) => {
      if (error.code in grpc.status) throw error; // no report gets through
      return reporter.send({ fail: { message: String(error.message) } });
    });
    console.log(`attempt ${attempt} has ended`);
  } catch (error) {
    console.error(`attempt ${attempt} cannot report: ${error.message}`);
  } finally {
    reporter.close();
    running.delete(attempt);
  }
}

/** The body of a request, or null if it is too long. */
async function read(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MOST_BODY) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function act(request, response) {
  const answer = (status, text = '') => response.writeHead(status, { 'Content-Type': 'text/plain' }).end(text);
  const body = await read(request);
  if (!body) return answer(400, 'the body is too long');
  const why = refusal(request, body, key, Date.now() / 1000);
  if (why) {
    console.error(`refused: ${why}`);
    return answer(401, why);
  }
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname !== '/reports/build') return answer(404, 'no such action');
  // How long to rest after each file, so that there is something to watch.
  const asked = /^(\d+)(ms|s)$/.exec(url.searchParams.get('pause') ?? '0s');
  if (!asked) return answer(400, 'pause must be like 20ms or 1s');
  const pause = Number(asked[1]) * (asked[2] === 's' ? 1000 : 1);
  const { headers } = request;
  const attempt = `${headers['backjob-job-id']}/${headers['backjob-attempt']}`;
  // Delivery is at least once: the same attempt may come again.
  if (!running.has(attempt)) {
    running.add(attempt);
    work(attempt, new Reporter(headers['backjob-report-url'], headers['backjob-report-token']), pause);
  }
  // Detached: from here on the reports alone tell how it goes.
  return answer(202);
}

const key = Buffer.from(process.env.TRIGGER_KEY ?? '', 'base64url');
if (key.length !== 32) {
  console.error('TRIGGER_KEY must be what `backjob keygen --target default` prints as key');
  process.exit(1);
}
const folder = process.env.FOLDER || '.';
const server = createServer((request, response) => {
  act(request, response).catch((error) => {
    console.error(error.message);
    response.destroy();
  });
});
server.listen(Number(process.env.PORT || 8080), '127.0.0.1', () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
