// An application whose action answers 200 only if npm's http-message-signatures
// finds the trigger's signature good, and every tampering with it bad.
//
//     TRIGGER_KEY=... TRIGGER_KEYID=... PORT=8080 node live.mjs
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { createVerifier, httpbis } from 'http-message-signatures';

const COVERED = [
  '@method', '@path', '@query', 'content-digest',
  'backjob-job-id', 'backjob-attempt', 'backjob-report-url', 'backjob-report-token',
];
const key = Buffer.from(process.env.TRIGGER_KEY, 'base64url');
const verify = createVerifier(key, 'hmac-sha256');

async function good({ method, url, headers, body }) {
  // The library leaves the digest to its user.
  const digest = `sha-256=:${createHash('sha256').update(body).digest('base64')}:`;
  if (headers['content-digest'] !== digest) return false;
  try {
    return await httpbis.verifyMessage({
      keyLookup: async ({ keyid }) => (keyid === process.env.TRIGGER_KEYID ? { verify, algs: ['hmac-sha256'] } : null),
      requiredFields: COVERED,
      requiredParams: ['created', 'expires', 'nonce', 'keyid', 'alg'],
      tolerance: 30,
      all: true,
    }, { method, url: `http://localhost${url}`, headers }) === true;
  } catch {
    return false;
  }
}

createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const { method, url, headers } = request;
  const sent = { method, url, headers, body: Buffer.concat(chunks) };
  if (!await good(sent)) {
    response.writeHead(401).end('the signature is not good');
    return;
  }
  const tampered = [
    { ...sent, method: 'PUT' },
    { ...sent, url: `/x${url}` },
    { ...sent, url: url.includes('?') ? `${url}&x=1` : `${url}?x=1` },
    { ...sent, body: Buffer.concat([...chunks, Buffer.from('x')]) },
  ];
  for (const name of [...COVERED.slice(3), 'signature', 'signature-input']) {
    const value = name === 'signature-input' ? headers[name].replace('created=1', 'created=2') : `1${headers[name]}`;
    tampered.push({ ...sent, headers: { ...headers, [name]: value } });
  }
  const slipped = [];
  for (const change of tampered) if (await good(change)) slipped.push(change);
  if (slipped.length > 0) response.writeHead(500).end(`not found out: ${JSON.stringify(slipped)}`);
  else response.writeHead(200, { 'Content-Type': 'text/plain' }).end(`good; ${tampered.length} tamperings found out`);
}).listen(Number(process.env.PORT), '127.0.0.1');
