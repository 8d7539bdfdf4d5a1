//! Two nodes on the database of a server: a job runs on one and is watched on the other.

use crate::{
    database::Own,
    fault::Fault,
    options::Options,
    role::client::Question,
    sample::Sample,
    service::Service,
    step::{Bound::Most, Step},
    world::World,
};

/// What a node waits until progress is stored, its default.
const FLUSH: f64 = 200_000.0;
/// Between two polls.
const POLL: f64 = 250_000.0;
/// What both may take beside them.
const REST: f64 = 20_000.0;

pub async fn run(options: &Options) -> Result<Vec<Step>, Fault> {
    let given = options.database.clone().map(|url| vec![url]);
    let urls = given.unwrap_or_else(|| {
        let named = ["BACKJOB_TEST_POSTGRES", "BACKJOB_TEST_MARIADB"];
        named.iter().filter_map(|name| std::env::var(name).ok()).collect()
    });
    if urls.is_empty() {
        eprintln!("feed: SKIPPED: --database, BACKJOB_TEST_POSTGRES or BACKJOB_TEST_MARIADB names a server");
    }
    let mut steps = Vec::new();
    for url in urls {
        if url.starts_with("postgres") {
            steps.extend(with(options, &url, "PostgreSQL, notified", true).await?);
            // As behind a pooler: it has no notifications.
            steps.extend(with(options, &url, "PostgreSQL, polled", false).await?);
        } else {
            steps.extend(with(options, &url, "MariaDB, polled", false).await?);
        }
    }
    Ok(steps)
}

/// Two nodes; what is for the target `a` runs on the first alone.
struct Nodes {
    world: World,
    _other: Service,
    database: Own,
}

impl Nodes {
    async fn new(options: &Options, url: &str, notified: bool) -> Result<Self, Fault> {
        let database = Own::new(url).await?;
        let pooler = if database.is_postgres() && !notified { "true" } else { "false" };
        let settings = [
            ("database.url", database.url.as_str()),
            ("database.pooler", pooler),
            ("key_file", "{folder}/backjob.key"),
            ("node.name", "a"),
            ("targets.a.url", "{application}"),
            ("targets.a.max_in_flight", "10000"),
        ];
        let mut world = World::new(options, &settings).await?;
        let other = world.another("b", &[]).await?;
        Ok(Self { world, _other: other, database })
    }

    async fn hold(&mut self, count: usize) -> Result<(), Fault> {
        self.world.ask(&Question::Hold { count, targets: vec!["a".to_owned()], own_routes: false }).await
    }

    async fn windows(&mut self, question: &Question, held: usize) -> Result<Vec<Sample>, Fault> {
        let mut windows = Vec::new();
        for _ in 0..self.world.options.repeat {
            if held > 0 {
                self.hold(held).await?;
            }
            windows.push(self.world.ask(question).await?);
        }
        Ok(windows)
    }

    /// With what it cost the database.
    async fn steady(&mut self, question: &Question, held: usize) -> Result<Vec<Sample>, Fault> {
        let mut windows = Vec::new();
        for _ in 0..self.world.options.repeat {
            if held > 0 {
                self.hold(held).await?;
            }
            let before = self.database.work().await?;
            let mut sample: Sample = self.world.ask(question).await?;
            let after = self.database.work().await?;
            let figures = after.since(&before).into_iter().map(|(name, value)| (name.to_owned(), value));
            sample.more.extend(figures);
            windows.push(sample);
        }
        Ok(windows)
    }
}

async fn with(options: &Options, url: &str, how: &str, notified: bool) -> Result<Vec<Step>, Fault> {
    let (count, every) = (options.number(100, 5), if options.brief { 0.05 } else { 0.12 });
    let limit = FLUSH + REST + if notified { 0.0 } else { POLL };
    let mut nodes = Nodes::new(options, url, notified).await?;
    nodes.hold(1).await?;
    let across = Question::Across { seconds: (options.seconds * 5.0).max(1.0) };
    let windows = nodes.windows(&across, 0).await?;
    let layout = "one job that reports to its node, again some time after the frame was seen on the other; \
                  from before the call to the frame in the watcher's hands";
    let mut steps = vec![
        Step::new("feed", &format!("{how}: progress, alone"), layout, options, windows)
            .held(nodes.world.held()?)
            .goal("p99", &[Most("p99_us", limit, "µs")]),
    ];
    if notified {
        nodes.database.count_notifications().await?;
    }
    let windows = nodes.windows(&Question::Ends { count, every }, count).await?;
    let layout = format!("{count} jobs end one after the other, every {every} s on average");
    let step = Step::new("feed", &format!("{how}: the end of a job"), &layout, options, windows);
    let step = step.held(nodes.world.held()?);
    steps.push(if notified { step.goal("p99", &[Most("p99_us", 50_000.0, "µs")]) } else { step });

    let (rate, jobs) = (options.number(1_000, 100), options.number(100, 10));
    let (seconds, ends) = (options.seconds * 2.0, options.number(20, 2));
    nodes.hold(jobs - 1).await?;
    for watched in [false, true] {
        let question = Question::Steady { per_second: rate as f64, seconds, ends, watched };
        let windows = nodes.steady(&question, ends).await?;
        let by = if watched { "watched on the other node" } else { "watched by nobody" };
        let name = format!("{how}: {rate} reports a second, {by}");
        let layout = format!(
            "{jobs} jobs report, {ends} others end meanwhile; database: transactions of PostgreSQL, \
             statements of MariaDB"
        );
        let step = Step::new("feed", &name, &layout, options, windows).held(nodes.world.held()?);
        steps.push(match notified && watched {
            true => step.goal("p99 of an end", &[Most("end_p99_us", 50_000.0, "µs")]),
            false => step,
        });
    }
    nodes.world.ask::<()>(&Question::Release).await?;
    let Nodes { world, _other: other, database } = nodes;
    drop((world, other));
    database.drop().await?;
    Ok(steps)
}
