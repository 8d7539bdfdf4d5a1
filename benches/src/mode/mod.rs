//! What is measured: a file a subject.

mod connections;
mod disk;
mod end_to_end;
mod feed;
mod finished;
mod handler;
mod memory;
mod report;
mod server;
mod start;
mod status;
mod watch;

use crate::{
    fault::Fault,
    options::Options,
    role::client::{Call, Question},
    sample::Sample,
    step::Step,
    world::World,
};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// GetStatus beside a raw echo.
    Status,
    /// Start beside a raw echo, single-row commits and fdatasync.
    Start,
    /// From the Start to the first line of the action.
    StartToHandler,
    /// Unary reports beside a raw echo.
    Report,
    /// Reports on one stream beside a raw one.
    ReportStream,
    /// Whole jobs: unary, streamed and no reports.
    EndToEnd,
    /// From a report to one watcher, and to the last of many.
    Watch,
    /// Memory at rest, and of watchers that wait.
    IdleMemory,
    /// Memory of running jobs.
    LiveMemory,
    /// Disk of finished jobs.
    Disk,
    /// New connections to the application in steady state.
    Connections,
    /// With a million finished jobs in the database beside none, or as many as
    /// --finished says.
    Finished,
    /// From a report to one node to the frame on another, and what that costs the
    /// database; see --database.
    Feed,
    /// Start and whole jobs on the database of a server, beside single-row inserts; see
    /// --database.
    Server,
    /// Everything, and a table of all goals.
    All,
}

impl Mode {
    const EACH: [Self; 14] = [
        Self::Status,
        Self::Start,
        Self::StartToHandler,
        Self::EndToEnd,
        Self::Report,
        Self::ReportStream,
        Self::Watch,
        Self::IdleMemory,
        Self::LiveMemory,
        Self::Disk,
        Self::Connections,
        Self::Finished,
        Self::Feed,
        Self::Server,
    ];

    /// Measures; `print` gets each step when it is through.
    pub async fn run(self, options: &Options, print: &mut impl FnMut(Step)) -> Result<(), Fault> {
        let steps = match self {
            Self::Status => status::run(options).await?,
            Self::Start => start::run(options).await?,
            Self::StartToHandler => handler::run(options).await?,
            Self::Report => report::unary(options).await?,
            Self::ReportStream => report::stream(options).await?,
            Self::EndToEnd => end_to_end::run(options).await?,
            Self::Watch => watch::run(options).await?,
            Self::IdleMemory => memory::idle(options).await?,
            Self::LiveMemory => memory::live(options).await?,
            Self::Disk => disk::run(options).await?,
            Self::Connections => connections::run(options).await?,
            Self::Finished => finished::run(options).await?,
            Self::Feed => feed::run(options).await?,
            Self::Server => server::run(options).await?,
            Self::All => {
                for mode in Self::EACH {
                    Box::pin(mode.run(options, print)).await?;
                }
                return Ok(());
            }
        };
        steps.into_iter().for_each(print);
        Ok(())
    }
}

/// An echo with messages of the same size as those of `call`.
async fn echo_of(world: &mut World, call: Call) -> Result<Call, Fault> {
    Ok(Call::Echo(world.ask(&Question::Sizes { call }).await?))
}

/// Measures ours and the floors in turn: the windows of ours, and of each floor.
async fn beside(
    world: &mut World,
    floors: Vec<(&'static str, Question)>,
    ours: Question,
) -> Result<(Vec<Sample>, Vec<(&'static str, Vec<Sample>)>), Fault> {
    let (names, mut sides): (Vec<_>, Vec<_>) = floors.into_iter().unzip();
    sides.push(ours);
    let mut windows = world.interleave(&sides).await?;
    let ours = windows.pop().unwrap_or_default();
    Ok((ours, names.into_iter().zip(windows).collect()))
}

/// As many lists of windows as there were sides.
fn split<T, const N: usize>(lists: Vec<T>) -> Result<[T; N], Fault> {
    lists.try_into().map_err(|_| "a side is missing".into())
}
