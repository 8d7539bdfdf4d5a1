<?php
// An action for backjob in plain PHP 8: it counts the words in the text files of
// a folder, reports as plain HTTP, and its response ends the job. Run it here with
//
//     TRIGGER_KEY=... FOLDER=. php -S 127.0.0.1:8080 action.php

declare(strict_types=1);

// How far the clocks of both processes may differ, in seconds.
const SKEW = 30;

// What a trigger's signature covers.
const COVERED = [
    '@method', '@path', '@query', 'content-digest',
    'backjob-job-id', 'backjob-attempt', 'backjob-report-url', 'backjob-report-token',
];

/** The value of a request header, or '' without one. */
function header_value(string $name): string
{
    return trim($_SERVER['HTTP_' . strtoupper(strtr($name, '-', '_'))] ?? '');
}

/**
 * Says why backjob did not send this request, or null if it did: an HMAC-SHA256
 * signature in the form of RFC 9421 under the target's trigger key. It covers
 * method, path, query, body and the Backjob-* headers; others prove nothing. A
 * copied request stays good until it expires: who must refuse that too keeps the
 * nonces in a store that all workers share.
 */
function refusal(string $body, string $key): ?string
{
    // backjob=("@method" "@path" ...);created=1;expires=2;nonce="...";keyid="..."
    if (!preg_match('/^backjob=((\(([^()]*)\))(;.*))$/D', header_value('signature-input'), $input)
        || !preg_match('/^backjob=:([A-Za-z0-9+\/=]+):$/D', header_value('signature'), $signature)) {
        return 'there is no signature of backjob';
    }
    $components = array_map(fn ($name) => trim($name, '"'), preg_split('/ +/', $input[3]));
    foreach (COVERED as $name) {
        if (!in_array($name, $components, true)) {
            return "the signature does not cover $name";
        }
    }
    if (count($components) !== count(COVERED)) {
        return 'the signature covers what a trigger does not have';
    }

    // REQUEST_URI is the request line as it came, not decoded.
    [$path, $query] = explode('?', $_SERVER['REQUEST_URI'], 2) + [1 => ''];
    $base = '';
    foreach ($components as $name) {
        $value = match ($name) {
            '@method' => $_SERVER['REQUEST_METHOD'],
            '@path' => $path,
            '@query' => "?$query",
            default => header_value($name),
        };
        $base .= "\"$name\": $value\n";
    }
    $base .= "\"@signature-params\": $input[1]";
    $mac = hash_hmac('sha256', $base, $key, binary: true);
    if (!hash_equals($mac, (string) base64_decode($signature[1], strict: true))) {
        return 'the signature does not match';
    }

    // From here on all values are known to be backjob's own.
    if (!preg_match('/;created=(\d+)/', $input[4], $created) || !preg_match('/;expires=(\d+)/', $input[4], $expires)
        || time() + SKEW < (int) $created[1] || time() - SKEW > (int) $expires[1]) {
        return 'the signature is not good at this time';
    }
    if (header_value('content-digest') !== 'sha-256=:' . base64_encode(hash('sha256', $body, binary: true)) . ':') {
        return 'the body is not the one that was signed';
    }
    return null;
}

/** Counts the words in the text files below a folder, but those in hidden folders. */
function count_words(string $folder, int $pause): array
{
    $visible = fn (SplFileInfo $file) => !($file->isDir() && str_starts_with($file->getFilename(), '.'));
    $all = new RecursiveIteratorIterator(new RecursiveCallbackFilterIterator(
        new RecursiveDirectoryIterator($folder, FilesystemIterator::SKIP_DOTS),
        $visible,
    ));
    $files = $words = 0;
    $counts = [];
    $last = microtime(true);
    foreach ($all as $file) {
        // Two reports a second: each waits for its answer.
        if (microtime(true) - $last > 0.5) {
            $last = microtime(true);
            $detail = ['done' => (string) $files, 'unit' => 'files', 'stage' => 'counting'];
            if (report(['progressDetail' => $detail])) {
                report(['stopped' => (object) []]);
                answer(200, 'stopped');
            }
        }
        usleep($pause * 1000);
        if (!$file->isFile() || !$file->isReadable() || $file->getSize() > 16 << 20) {
            continue;
        }
        $text = file_get_contents($file->getPathname());
        if (str_contains($text, "\0") || !preg_match('//u', $text)) {
            continue; // not a text
        }
        preg_match_all("/[\p{L}']+/u", $text, $found);
        $files++;
        $words += count($found[0]);
        foreach ($found[0] as $word) {
            $word = strtolower($word);
            $counts[$word] = ($counts[$word] ?? 0) + 1;
        }
    }
    arsort($counts);
    return [$files, $words, array_slice($counts, 0, 10, preserve_keys: true)];
}

/**
 * Sends one report as plain HTTP with JSON; true if the action should stop. One
 * that does not arrive is no reason to end: the response is what counts.
 */
function report(array $report): bool
{
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => "Content-Type: application/json\r\n"
            . 'Authorization: Bearer ' . header_value('backjob-report-token') . "\r\n",
        'content' => json_encode($report, JSON_INVALID_UTF8_SUBSTITUTE),
        'timeout' => 10,
    ]]);
    $url = header_value('backjob-report-url') . '/backjob.v1.JobWorker/Report';
    $answer = json_decode((string) @file_get_contents($url, false, $context), true);
    return ($answer['directive'] ?? '') === 'DIRECTIVE_STOP';
}

/** Ends the request. */
function answer(int $status, string $text): never
{
    http_response_code($status);
    header('Content-Type: text/plain; charset=utf-8');
    echo $text, "\n";
    exit;
}

$key = base64_decode(strtr((string) getenv('TRIGGER_KEY'), '-_', '+/'), strict: true);
if ($key === false || strlen($key) !== 32) {
    answer(500, 'TRIGGER_KEY must be what `backjob keygen --target default` prints as key');
}
// PHP reads multipart bodies itself and leaves php://input empty: an action that
// takes them needs enable_post_data_reading=0 to check their digest.
$why = refusal(file_get_contents('php://input'), $key);
if ($why !== null) {
    answer(401, $why);
}
if (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) !== '/reports/build') {
    answer(404, 'no such action');
}

// Go on when the connection breaks: with this off, PHP would end the action at
// its next output, wherever it stands. An action that is better cut short when
// its job is cancelled echoes and flushes now and then and looks at
// connection_aborted(). Each such piece of the response also tells backjob that
// the action lives; but with the first one the status has been sent, and a
// failure can no longer be told by it.
ignore_user_abort(true);
// No longer than backjob waits: after this many seconds without a sign of life it
// gives the attempt up. Each call counts anew, so make it again after each report
// or piece. The header is not signed, hence the bound.
set_time_limit(min(max((int) header_value('backjob-deadline'), 1), 86400));

// How many milliseconds to rest after each file, so that there is something to watch.
$pause = (int) ($_GET['pause'] ?? 0);
try {
    [$files, $words, $most] = count_words(getenv('FOLDER') ?: '.', $pause);
} catch (Exception $failure) {
    answer(500, $failure->getMessage()); // backjob retries it if it may
}
$lines = ["$words words in $files files; the most frequent:"];
foreach ($most as $word => $count) {
    $lines[] = "$word: $count";
}
// A 2xx ends the job: the text becomes its result and its status text.
answer(200, implode("\n", $lines));
