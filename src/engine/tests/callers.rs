//! Callers: they start, read, cancel, retry and delete, repeat what broke off,
//! and remember what they were told.

use super::{
    plan::{Plan, Random},
    watchers,
    world::{World, lock},
};
use crate::{
    engine::{Again, Error, Filter, Started},
    job::{JobId, MergePolicy, draft::Draft},
};
use futures_util::future::join_all;
use std::sync::Arc;

pub(super) struct Caller {
    pub(super) world: Arc<World>,
    pub(super) number: u64,
}

/// A Start, and by what the test knows identical ones.
#[derive(Clone)]
struct Wish {
    draft: Draft,
    request: Arc<[u8]>,
}

impl Wish {
    fn identity(&self) -> &str {
        &self.draft.display_name
    }
}

impl Caller {
    pub(super) async fn run(self) {
        for call in 0..self.world.plan.calls {
            self.call(call).await;
            self.world.sleep(self.world.plan.rest).await;
        }
        self.world.note(|| format!("caller {} is done", self.number));
    }

    fn name(&self) -> String {
        format!("caller-{}", self.number)
    }

    async fn call(&self, call: u64) {
        let world = &self.world;
        let known = self.known();
        match (world.below(100), known) {
            (0..12, Some(id)) => self.cancel(id).await,
            (12..20, Some(id)) => self.run_again(id, call).await,
            (20..27, Some(id)) if world.plan.deletes => self.delete(id).await,
            (27..40, Some(id)) => self.get(id).await,
            (40..44, _) => self.list().await,
            (44..47, Some(id)) => self.look_into(id).await,
            (47..58, Some(id)) => {
                let ids = [Some(id), self.known(), self.known()].into_iter().flatten();
                let ids: Vec<JobId> = ids.take(1 + usize::try_from(world.below(3)).expect("small")).collect();
                world.tasks.spawn("watcher", watchers::by_ids(Arc::clone(world), ids));
            }
            (58..62, _) => world.tasks.spawn("filter", watchers::by_filter(Arc::clone(world))),
            (62..70, _) => {
                // The same, several times at once.
                let wish = self.wish(call);
                let times = 2 + world.below(4);
                join_all((0..times).map(|_| self.start(wish.clone()))).await;
            }
            _ => {
                let wish = self.wish(call);
                if let Some(id) = self.start(wish).await
                    && world.below(2) == 0
                {
                    world.tasks.spawn("watcher", watchers::by_ids(Arc::clone(world), vec![id]));
                }
            }
        }
    }

    /// Any job, the later ones more often.
    fn known(&self) -> Option<JobId> {
        let ledger = lock(&self.world.ledger);
        let ids: Vec<JobId> = ledger.jobs.keys().copied().collect();
        drop(ledger);
        if ids.is_empty() {
            return None;
        }
        let last = 6.min(ids.len());
        let from = if self.world.below(3) > 0 { ids.len() - last } else { 0 };
        Some(ids[from + usize::try_from(self.world.below((ids.len() - from) as u64)).expect("small")])
    }

    fn wish(&self, call: u64) -> Wish {
        let plan = &self.world.plan;
        let wall = self.world.wall();
        let draft = self.world.chance(|random| draft(random, plan, wall));
        let mut wish = Wish { request: Arc::from(draft.display_name.as_bytes()), draft };
        match self.world.below(10) {
            0..4 => wish.draft.idempotency_key = format!("key {call}"),
            // One that was given before, with the same request or another one.
            4 => wish.draft.idempotency_key = format!("key {}", self.world.below(call + 1)),
            _ => {}
        }
        let Draft { labels, idempotency_key: key, .. } = &mut wish.draft;
        if !key.is_empty() {
            labels.insert(super::audit::KEY.into(), format!("{} {key}", self.name()));
        }
        wish
    }

    async fn start(&self, wish: Wish) -> Option<JobId> {
        let world = &self.world;
        let name = self.name();
        let key = (name.clone(), wish.draft.idempotency_key.clone());
        world.note(|| format!("{name} starts {} {:?}", wish.identity(), key.1));
        let asked_at = world.now();
        lock(&world.ledger).asked.entry(wish.identity().to_owned()).or_default().push(asked_at);
        let (answer, unknown) = world
            .insist(|engine| {
                let (wish, name) = (wish.clone(), name.clone());
                async move { engine.start(wish.draft, &wish.request, &name).await }
            })
            .await;
        world.note(|| {
            format!("{name}: {:?}", answer.as_ref().map(|started| (started.shown.subject.id, started.merged)))
        });
        let identity = wish.identity().to_owned();
        {
            let mut ledger = lock(&world.ledger);
            *ledger.unknown.entry(identity.clone()).or_default() += unknown;
            let asked = ledger.asked.entry(identity.clone()).or_default();
            let own = asked.iter().position(|at| *at == asked_at).expect("asked");
            asked.swap_remove(own);
        }
        match answer {
            Ok(Started { shown, merged }) => {
                let record = &shown.subject;
                let id = record.id;
                if world.row(id).is_none() && !world.is_gone(id) {
                    world.fault(format!("{id}: acknowledged before it was durable"));
                }
                let mut ledger = lock(&world.ledger);
                ledger.count.starts += 1;
                let known = ledger.jobs.get_mut(&id).map(|known| {
                    known.joins += u32::from(merged);
                    known.identity.clone()
                });
                drop(ledger);
                if let Some(of) = known.filter(|of| *of != identity) {
                    world.fault(format!("{id}: {identity} was given a job of {of}"));
                }
                if !key.1.is_empty() {
                    self.keyed(key, identity, id);
                }
                world.saw(&name, record, true, None);
                Some(id)
            }
            Err(Error::KeyMismatch(id)) => {
                let ledger = lock(&world.ledger);
                let stands = ledger.keys.get(&key).filter(|(of, _)| *of == identity);
                let wrong = stands.is_some_and(|(_, known)| *known == id || !ledger.gone.contains(known));
                drop(ledger);
                if key.1.is_empty() || wrong {
                    world.fault(format!("{name}: {key:?} was refused for {id}"));
                }
                None
            }
            Err(Error::Duplicate(id)) => {
                if wish.draft.merge_policy != Some(MergePolicy::Reject) {
                    world.fault(format!("{name}: {identity} was kept out by {id}"));
                }
                None
            }
            Err(Error::TooManyPending(most)) => {
                if most != world.plan.max_pending {
                    world.fault(format!("{name}: {most} are too many"));
                }
                None
            }
            Err(error) => {
                world.fault(format!("{name}: a Start was answered {error}"));
                None
            }
        }
    }

    /// One key, one request, one job.
    fn keyed(&self, key: (String, String), identity: String, id: JobId) {
        let mut ledger = lock(&self.world.ledger);
        let before = ledger.keys.insert(key.clone(), (identity.clone(), id));
        let gone = before.as_ref().is_some_and(|(_, before)| ledger.gone.contains(before));
        drop(ledger);
        if let Some(before) = before.filter(|before| *before != (identity, id) && !gone) {
            self.world.fault(format!("{id}: {key:?} made {before:?} before"));
        }
    }

    async fn cancel(&self, id: JobId) {
        let world = &self.world;
        world.note(|| format!("{} cancels {id}", self.name()));
        let (answer, _) = world.insist(|engine| async move { engine.cancel(id).await }).await;
        let row = world.row(id);
        match answer {
            Ok(record) => {
                if row.as_ref().is_some_and(|row| row.cancel_requested == 0 && row.state != 6) {
                    world.fault(format!("{id}: a cancel was acknowledged, and the row is {row:?}"));
                }
                if let Some(known) = lock(&world.ledger).jobs.get_mut(&id) {
                    known.cancelled = true;
                }
                world.saw("who cancelled", &record, true, None);
            }
            Err(Error::Final { state, .. }) => {
                if row.is_some_and(|row| row.state != i64::from(state.number())) {
                    world.fault(format!("{id}: a cancel was answered {state}, which is not so"));
                }
            }
            Err(Error::NotFound(_)) if world.is_gone(id) => {}
            Err(error) => world.fault(format!("{id}: a cancel was answered {error}")),
        }
    }

    async fn run_again(&self, id: JobId, call: u64) {
        let world = &self.world;
        let name = self.name();
        let ended = self.ended(id);
        let keyed = world.below(2) == 0;
        let again = || Again {
            idempotency_key: if keyed { format!("again {call}") } else { String::new() },
            request: format!("again {id}").into_bytes(),
            ..Again::default()
        };
        let (answer, _) = world
            .insist(|engine| {
                let (again, name) = (again(), name.clone());
                async move { engine.run_again(id, again, &name).await }
            })
            .await;
        match answer {
            Ok(shown) => {
                let record = &shown.subject;
                if record.retry_of != Some(id)
                    || (world.row(record.id).is_none() && !world.is_gone(record.id))
                {
                    world.fault(format!("{id}: run again as {record:?}"));
                }
                world.saw("who ran it again", record, true, None);
                world.tasks.spawn("watcher", watchers::by_ids(Arc::clone(world), vec![record.id]));
            }
            Err(Error::NotFound(_)) if world.is_gone(id) => {}
            Err(Error::NotFinal { .. }) if !ended => {}
            Err(Error::TooManyPending(_)) => {}
            Err(error) => world.fault(format!("{id}: not run again: {error}")),
        }
    }

    /// Whether a job has ended, and the engine knows it.
    fn ended(&self, id: JobId) -> bool {
        let ended = self.world.row(id).is_some_and(|row| row.state >= 4);
        ended && !lock(&self.world.ledger).untold.contains(&id)
    }

    async fn delete(&self, id: JobId) {
        let world = &self.world;
        let ended = self.ended(id);
        match world.insist(|engine| async move { engine.delete(id).await }).await.0 {
            Ok(()) if world.is_gone(id) => {}
            Err(Error::NotFound(_)) if world.is_gone(id) => {}
            Err(Error::NotFinal { .. }) if !ended => {}
            answer => world.fault(format!("{id}: to erase it was answered {answer:?}")),
        }
    }

    async fn get(&self, id: JobId) {
        let world = &self.world;
        let floor = world.highest(id);
        match world.call(|engine| async move { engine.get(id).await }).await {
            Some(Ok(shown)) => world.saw("who asked", &shown.subject, true, floor),
            Some(Err(Error::NotFound(_))) if world.is_gone(id) => {}
            None | Some(Err(Error::Unavailable(_))) => {}
            Some(Err(error)) => world.fault(format!("{id}: GetStatus was answered {error}")),
        }
    }

    async fn list(&self) {
        let world = &self.world;
        let listed = world
            .call(|engine| async move { engine.list(&Filter::default(), None, None, 50, true).await })
            .await;
        match listed {
            Some(Ok(records)) => {
                records.iter().for_each(|record| world.saw("who listed", record, true, None));
            }
            None | Some(Err(Error::Unavailable(_))) => {}
            Some(Err(error)) => world.fault(format!("ListJobs was answered {error}")),
        }
    }

    /// Attempts and reasons.
    async fn look_into(&self, id: JobId) {
        let world = &self.world;
        let looked = world
            .call(|engine| async move {
                let attempts = engine.attempts(id).await?;
                Ok((attempts, engine.explain(id).await?))
            })
            .await;
        match looked {
            Some(Ok((attempts, _))) => {
                let rising = attempts.iter().zip(1..).all(|(row, number)| row.attempt == number);
                if !rising {
                    world.fault(format!("{id}: attempts {attempts:?}"));
                }
            }
            Some(Err(Error::NotFound(_))) if world.is_gone(id) => {}
            None | Some(Err(Error::Unavailable(_))) => {}
            Some(Err(error)) => world.fault(format!("{id}: its attempts were answered {error}")),
        }
    }
}

/// Everything that makes a Start another one goes into its `display_name`, which
/// itself makes no difference.
fn draft(random: &mut Random, plan: &Plan, wall: i64) -> Draft {
    let policies = [
        None,
        Some(MergePolicy::JoinPending),
        Some(MergePolicy::JoinActive),
        Some(MergePolicy::Reject),
        Some(MergePolicy::Never),
    ];
    let merge_policy = random.pick(&policies);
    let span = |random: &mut Random, percent, most| {
        random.percent(percent).then(|| i64::try_from(random.between(1_000, most)).expect("small"))
    };
    let retries = random.percent(70);
    let mut draft = Draft {
        target: Plan::target(usize::try_from(random.below(plan.slots.len() as u64)).expect("small")),
        route: format!("/{}", random.below(plan.routes)),
        error_timeout: span(random, 40, 8_000),
        max_duration: span(random, 15, 20_000),
        expire_after: span(random, 15, 10_000),
        has_retry_policy: retries,
        max_attempts: retries.then(|| u32::try_from(random.between(1, 4)).expect("small")),
        initial_backoff: retries.then(|| i64::try_from(random.below(2_000)).expect("small")),
        max_backoff: retries.then_some(5_000),
        multiplier: retries.then_some(2.0),
        priority: random.percent(40).then(|| u32::try_from(random.below(10)).expect("small")),
        merge_policy,
        ..Draft::default()
    };
    match random.below(10) {
        0..2 => draft.start_after = Some(i64::try_from(random.pick(&[0_u64, 1_000, 12_000])).expect("small")),
        2 => draft.start_at = Some(wall / 10_000 * 10_000 + 10_000),
        _ => {}
    }
    let class = merge_policy.unwrap_or(MergePolicy::JoinPending).class();
    let Draft { target, route, start_after, start_at, .. } = &draft;
    draft.display_name = format!("{class:?} {target} {route} {start_after:?} {start_at:?}");
    draft
}
