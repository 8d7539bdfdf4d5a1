//! What cargo-fuzz fuzzes, over its corpus and mutations of it: a short word of
//! each, on stable, the same every time.

use crate::harness::Random;
use std::{fs, path::Path};

#[path = "../../fuzz/targets.rs"]
mod targets;

/// Changes a few bytes: another value, one more, one less, a piece of another.
fn mutated(random: &mut Random, data: &[u8], other: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(data.len() + 1);
        match random.below(5) {
            0 if at < data.len() => data[at] = random.next().to_le_bytes()[0],
            1 if at < data.len() => data[at] ^= 1 << random.below(8),
            2 if at < data.len() => drop(data.drain(at..(at + 1 + random.below(8)).min(data.len()))),
            3 => {
                let from = random.below(other.len());
                let piece = &other[from..(from + random.below(32)).min(other.len())];
                data.splice(at..at, piece.iter().copied());
            }
            _ => data.insert(at, b"\r\n\0 %/:;,=\"\\.&"[random.below(14)]),
        }
    }
    data
}

/// Runs `target` over its corpus, and `rounds` mutations of each.
fn fuzz(name: &str, rounds: usize, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("readable")).collect();
    assert!(corpus.len() >= 3, "{} is nearly empty", folder.display());
    let mut random = Random::new(0x5EED);
    for data in &corpus {
        target(data);
        for _ in 0..rounds {
            let other = &corpus[random.below(corpus.len())];
            let data = mutated(&mut random, data, other);
            // What was found is printed with the panic's own words.
            let caught = std::panic::catch_unwind(|| target(&data));
            assert!(caught.is_ok(), "{name} fails with {:?}", String::from_utf8_lossy(&data));
        }
    }
}

#[test]
fn responses() {
    fuzz("response", 60, targets::response);
}

#[test]
fn signatures() {
    fuzz("signature", 300, targets::signature);
}

#[test]
fn tokens() {
    fuzz("tokens", 500, targets::tokens);
}

#[test]
fn drafts() {
    fuzz("draft", 300, targets::draft);
}

#[test]
fn configurations() {
    fuzz("config", 100, targets::config);
}

#[test]
fn calls() {
    fuzz("rpc", 25, targets::rpc);
}
