// Checks that backjob sent a request: RFC 9421 with HMAC-SHA256.
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';

const COVERED = [
  '@method', '@path', '@query', 'content-digest',
  'backjob-job-id', 'backjob-attempt', 'backjob-report-url', 'backjob-report-token',
];
const SKEW = 30; // seconds that both clocks may differ

/**
 * Says why backjob did not sign this request with the trigger key, or null if it
 * did. The signature covers method, path, query, body and the Backjob-* headers;
 * others prove nothing. A copied request stays good until it expires: who must
 * refuse that too remembers the nonces.
 *
 * @param {import('node:http').IncomingMessage} request
 * @param {Buffer} body
 * @param {Buffer} key
 * @param {number} now seconds since 1970
 * @returns {string | null}
 */
export function refusal(request, body, key, now) {
  const headers = {};
  for (const name of [...COVERED.slice(3), 'signature-input', 'signature']) {
    // A header must stand exactly once: of two, the check could read one and the
    // application the other.
    const values = request.headersDistinct[name];
    if (values?.length !== 1) return `${name} must stand once`;
    headers[name] = values[0].trim();
  }
  // backjob=("@method" "@path" ...);created=1;expires=2;nonce="...";keyid="..."
  const member = /^backjob=(\(([^()]*)\)(;.*))$/.exec(headers['signature-input']);
  const sent = /^backjob=:([A-Za-z0-9+/=]+):$/.exec(headers.signature);
  if (!member || !sent) return 'there is no signature of backjob';
  const [, params, list, rest] = member;
  const components = list.split(' ').map((name) => name.replaceAll('"', ''));
  if (components.length !== COVERED.length || COVERED.some((name) => !components.includes(name))) {
    return 'the signature does not cover what a trigger\'s does';
  }

  // request.url is the request line as it came, not decoded.
  const [path, ...query] = request.url.split('?');
  const parts = { ...headers, '@method': request.method, '@path': path, '@query': `?${query.join('?')}` };
  const base = components.map((name) => `"${name}": ${parts[name]}\n`).join('');
  const mac = createHmac('sha256', key).update(`${base}"@signature-params": ${params}`, 'latin1').digest();
  const signature = Buffer.from(sent[1], 'base64');
  if (signature.length !== mac.length || !timingSafeEqual(signature, mac)) return 'the signature does not match';

  // From here on all values are known to be backjob's own.
  const created = /;created=(\d+)(?:;|$)/.exec(rest);
  const expires = /;expires=(\d+)(?:;|$)/.exec(rest);
  if (!created || !expires || now < Number(created[1]) - SKEW || now > Number(expires[1]) + SKEW) {
    return 'the signature is not good at this time';
  }
  const digest = createHash('sha256').update(body).digest('base64');
  return headers['content-digest'] === `sha-256=:${digest}:` ? null : 'the body is not the one that was signed';
}
