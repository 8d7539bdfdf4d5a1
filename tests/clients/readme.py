"""Holds the README's short checks of the signature to the published vectors: each
must take every vector, and refuse every tampering with it.

    python readme.py [FILE]     default: README.md of this repository

Wants node, go and php; one that is missing is named and skipped, or an error with
READMECHECK_ALL=1."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
README = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "README.md"
VECTORS = json.loads((HERE.parent / "vectors" / "signatures.json").read_text())

RUNNERS = {
    "py": (
        "check.py",
        ["python3", "run.py"],
        """
import base64, json
from check import is_trigger
for case in json.load(open("cases.json")):
    print(json.dumps(is_trigger(case["method"], case["path"], case["query"], case["headers"],
        base64.b64decode(case["body"]), base64.b64decode(case["key"]), case["now"])))
""",
    ),
    "mjs": (
        "check.mjs",
        ["node", "run.mjs"],
        """
import { readFileSync } from 'node:fs';
import { isTrigger } from './check.mjs';
const bytes = (text) => Buffer.from(text, 'base64');
for (const c of JSON.parse(readFileSync('cases.json'))) {
  console.log(isTrigger(c.method, c.path, c.query, c.headers, bytes(c.body), bytes(c.key), c.now));
}
""",
    ),
    "php": (
        "check.php",
        ["php", "run.php"],
        """<?php
require 'check.php';
foreach (json_decode(file_get_contents('cases.json'), true) as $c) {
    echo json_encode(is_trigger($c['method'], $c['path'], $c['query'], $c['headers'],
        base64_decode($c['body']), base64_decode($c['key']), $c['now'])), "\\n";
}
""",
    ),
    "go": (
        "check.go",
        ["go", "run", "check.go", "run.go"],
        """package main

import ("encoding/json"; "fmt"; "net/http"; "os")

func main() {
	var cases []struct {
		Method, Path, Query string
		Headers map[string]string
		Body, Key []byte
		Now int64
	}
	data, _ := os.ReadFile("cases.json")
	if err := json.Unmarshal(data, &cases); err != nil {
		panic(err)
	}
	for _, c := range cases {
		headers := http.Header{}
		for name, value := range c.Headers {
			headers.Set(name, value)
		}
		fmt.Println(isTrigger(c.Method, c.Path, c.Query, headers, c.Body, c.Key, c.Now))
	}
}
""",
    ),
}


def cases():
    """What to check, and whether it is good."""
    for vector in VECTORS:
        path, _, query = vector["path_and_query"].partition("?")
        good = {
            "method": vector["method"],
            "path": path,
            "query": query,
            "headers": vector["headers"] | {
                "content-digest": vector["content_digest"],
                "signature-input": vector["signature_input"],
                "signature": vector["signature"],
            },
            "body": vector["body_base64"],
            "key": base64.b64encode(bytes.fromhex(vector["key_hex"])).decode(),
            "now": vector["created"] + 1,
        }
        name = vector["name"]
        yield name, good, True
        yield f"{name}, just before it begins", good | {"now": vector["created"] - 30}, True
        yield f"{name}, too early", good | {"now": vector["created"] - 31}, False
        yield f"{name}, just before it expires", good | {"now": vector["created"] + 330}, True
        yield f"{name}, too late", good | {"now": vector["created"] + 331}, False
        yield f"{name}, method", good | {"method": "PUT"}, False
        yield f"{name}, path", good | {"path": path + "x"}, False
        yield f"{name}, query", good | {"query": query + "x"}, False
        body = base64.b64encode(base64.b64decode(vector["body_base64"]) + b"x").decode()
        yield f"{name}, body", good | {"body": body}, False
        yield f"{name}, key", good | {"key": base64.b64encode(bytes(32)).decode()}, False
        for header, value in good["headers"].items():
            without = {name: value for name, value in good["headers"].items() if name != header}
            yield f"{name}, without {header}", good | {"headers": without}, False
            yield f"{name}, changed {header}", good | {"headers": without | {header: value + "x"}}, False


def main():
    blocks = dict(re.findall(r"<!-- check\.(\w+) -->\n```\w+\n(.*?)```\n", README.read_text(), re.DOTALL))
    if set(blocks) != set(RUNNERS):
        sys.exit(f"{README} has checks in {sorted(blocks)}, not {sorted(RUNNERS)}")
    listed = list(cases())
    failed = False
    for language, (file, command, runner) in RUNNERS.items():
        if not shutil.which(command[0]):
            print(f"{'FAIL' if os.environ.get('READMECHECK_ALL') else 'skip'} {language}: no {command[0]} on PATH")
            failed |= bool(os.environ.get("READMECHECK_ALL"))
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, file).write_text(blocks[language])
            Path(folder, "run." + file.partition(".")[2]).write_text(runner)
            Path(folder, "cases.json").write_text(json.dumps([case for _, case, _ in listed]))
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if run.returncode:
            print(f"FAIL {language}: {run.stderr}")
            failed = True
            continue
        found = [line == "true" for line in run.stdout.split()]
        wrong = [name for (name, _, good), said in zip(listed, found, strict=True) if said != good]
        failed |= bool(wrong)
        print(f"FAIL {language}: {wrong}" if wrong else f"ok   {language}: {len(listed)} cases")
    sys.exit(1 if failed else 0)


main()
