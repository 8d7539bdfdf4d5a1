//! Crash loops: the server is killed with SIGKILL at random points under mixed
//! load, again and again, and what it acknowledged is audited.
//!
//! BACKJOB_TEST_KILLS says how often (30), BACKJOB_TEST_SEED with which choices;
//! the seed is printed.

use crate::{
    harness::*,
    load::{Audit, KEPT, Load, number, port, seed},
};
use std::{sync::Arc, time::Duration};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_over_many_kills() {
    if !on_what_lasts() {
        return;
    }
    let kills = number("BACKJOB_TEST_KILLS").unwrap_or(30);
    let seed = seed();
    let mut random = Random::new(seed);
    let application = Arc::new(Application::new().await);
    let address = port(&mut Random::new(u64::from(std::process::id()))).await;
    let setup = Setup::new(application.address)
        .with("server.listen", &address.to_string())
        .with("targets.default.max_in_flight", "20")
        .with("jobs.flush_interval", "20ms")
        .with("jobs.error_timeout", "2s")
        .with("jobs.cancel_grace", "1s")
        // Erases what its watchers have long seen to its end.
        .with("retention.succeeded", &format!("{}s", KEPT.as_secs()))
        .with("retention.all", &format!("{}s", KEPT.as_secs()));
    let mut server = Process::start(&setup).await;
    let load = Load::begin(seed, &Clients::new(address), &[application]);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(20 + random.below(400) as u64)).await;
        server.kill().await;
        if random.below(3) == 0 {
            // One that takes over what the last one left does not come to its end either.
            let mut begins = setup.command("serve").spawn().expect("the program");
            tokio::time::sleep(Duration::from_millis(random.below(150) as u64)).await;
            begins.kill().await.expect("killed");
        }
        server = Process::start(&setup).await;
    }
    let Audit { jobs, erased, counts, faults, .. } = load.end().await;
    eprintln!("{} jobs, {erased} erased since, {kills} kills, {counts:?}", jobs.len());
    assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
    assert!(jobs.len() >= 20, "only {} jobs", jobs.len());
    // Else there was nothing that could have been lost.
    let finished = jobs.values().filter(|job| job.finished.is_some()).count();
    let cancelled = jobs.values().filter(|job| job.cancelled).count();
    assert!(kills < 30 || (finished > 0 && cancelled > 0), "{finished} finishes, {cancelled} cancels");
    assert!(kills < 30 || (counts.again > 0 && counts.streamed > 0), "{counts:?}");
    assert!(erased > 0 || kills < 30, "retention erased nothing");
}
