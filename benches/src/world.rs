//! All processes of a measurement, in a folder of its own on the disk of the
//! build.

use crate::{
    child::Child,
    fault::{Fault, fault},
    filled,
    options::Options,
    proc::Memory,
    role::{Places, action, client::Question, echo},
    sample::Sample,
    service::{self, Service},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fs, path::PathBuf};
use tempfile::TempDir;

/// Service, application, client and raw server.
pub struct World {
    pub options: Options,
    pub service: Service,
    program: PathBuf,
    /// Of the service.
    settings: Vec<(String, String)>,
    action: Child,
    client: Child,
    pub echo: Child,
    /// Of the application.
    application: u32,
    folder: TempDir,
}

impl World {
    /// Brings all up, with these settings besides the usual.
    pub async fn new(options: &Options, settings: &[(&str, &str)]) -> Result<Self, Fault> {
        let program = match &options.program {
            Some(program) => program.canonicalize()?,
            None => service::program().await?,
        };
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(place()?)?;
        if options.finished > 0 {
            filled::copy(options, &program, folder.path()).await?;
        }
        let (mut action, ports) = Child::start::<Places>("action", options.action_threads).await?;
        let mut settings = usual(options, folder.path(), ports["http"], settings);
        for set in &options.set {
            let (key, value) = set.split_once('=').ok_or("--set takes KEY=VALUE")?;
            settings.push((key.to_owned(), value.to_owned()));
        }
        let service = Service::start(&program, folder.path(), &settings).await?;
        let targets =
            settings.iter().filter_map(|(key, _)| key.strip_prefix("targets.")?.strip_suffix(".url"));
        let mut keys = Vec::new();
        for target in targets {
            keys.push(service::trigger_key(&program, folder.path(), &settings, target).await?);
        }
        action.ask::<u64>(&action::Question::Trust { keys }).await?;
        let (echo, port) = Child::start::<u16>("echo", options.threads).await?;
        let (mut client, ()) = Child::start("client", 1).await?;
        let application = ports["http"];
        let mut places = ports;
        places.insert("service".into(), service.port.into());
        places.insert("echo".into(), port.into());
        let pids = [("service", service.id()), ("action", action.id()), ("echo", echo.id())];
        let pids = pids.map(|(name, pid)| (name.to_owned(), pid)).into();
        client.ask::<()>(&Question::know(places, pids, options)).await?;
        Ok(Self {
            options: options.clone(),
            service,
            program,
            settings,
            action,
            client,
            echo,
            application,
            folder,
        })
    }

    /// Lets the raw server store jobs, with the rows of the service's last one, and call the
    /// application; not where the service has its database elsewhere.
    pub async fn store_raw(&mut self) -> Result<bool, Fault> {
        let (file, like) = (self.folder().join("raw.db"), self.folder().join("backjob.db"));
        if !like.exists() {
            return Ok(false);
        }
        let application = u16::try_from(self.application)?;
        self.echo.ask::<()>(&echo::Question::Store { file, like, application }).await?;
        Ok(true)
    }

    /// Another node on the same database, with these settings besides those of the first;
    /// the client knows it as `other`.
    pub async fn another(&mut self, name: &str, settings: &[(&str, &str)]) -> Result<Service, Fault> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder)?;
        let mut all = self.settings.clone();
        // What is for targets of the first one's own is for it alone.
        all.retain(|(key, _)| !key.starts_with("targets.") || key.starts_with("targets.default."));
        all.push(("node.name".to_owned(), name.to_owned()));
        all.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let service = Service::start(&self.program, &folder, &all).await?;
        let also = Question::Also { name: "other".to_owned(), port: service.port.into(), pid: service.id() };
        self.client.ask::<()>(&also).await?;
        Ok(service)
    }

    /// Tells the client something.
    pub async fn ask<T: DeserializeOwned>(&mut self, question: &Question) -> Result<T, Fault> {
        self.client.ask(question).await.map_err(|error| match self.service.warnings() {
            warnings if warnings.is_empty() => error,
            warnings => fault(format!("{error}\nthe service said:\n{warnings}")),
        })
    }

    /// Measures the sides in turn, as often as was asked for: for each its windows.
    pub async fn interleave(&mut self, sides: &[Question]) -> Result<Vec<Vec<Sample>>, Fault> {
        let mut samples = vec![Vec::new(); sides.len()];
        for _ in 0..self.options.repeat {
            for (side, samples) in sides.iter().zip(&mut samples) {
                samples.push(self.ask(side).await?);
            }
        }
        Ok(samples)
    }

    /// MiB: resident memory of each process, and of the files of the database, if the
    /// service has one of its own.
    pub fn held(&self) -> Result<BTreeMap<String, f64>, Fault> {
        let pids = [
            ("memory of the service", self.service.id()),
            ("memory of the application", self.action.id()),
            ("memory of the client", self.client.id()),
            ("memory of the raw server", self.echo.id()),
        ];
        let mut held = BTreeMap::new();
        for (name, pid) in pids {
            held.insert(name.to_owned(), Memory::of(pid)?.rss / 1_024.0);
        }
        for (name, file) in [("disk: database", "backjob.db"), ("disk: log", "backjob.db-wal")] {
            if let Ok(file) = fs::metadata(self.folder.path().join(file)) {
                held.insert(name.to_owned(), file.len() as f64 / 1_048_576.0);
            }
        }
        Ok(held)
    }

    /// Where the database is.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Connections that the application has accepted.
    pub async fn accepted(&mut self) -> Result<u64, Fault> {
        self.action.ask(&action::Question::Accepted).await
    }
}

/// Beside the build, so that it is on a real disk.
pub fn place() -> Result<PathBuf, Fault> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|folder| folder.ends_with("target"));
    let place = target.map_or_else(std::env::temp_dir, |target| target.join("bench"));
    fs::create_dir_all(&place)?;
    Ok(place)
}

fn usual(
    options: &Options,
    folder: &std::path::Path,
    application: u32,
    settings: &[(&str, &str)],
) -> Vec<(String, String)> {
    let mut usual = vec![
        ("server.listen", "127.0.0.1:0".to_owned()),
        ("database.url", format!("sqlite://{}", folder.join("backjob.db").display())),
        ("targets.default.url", format!("http://127.0.0.1:{application}")),
        ("targets.default.max_in_flight", options.slots.to_string()),
        ("jobs.max_pending", "10000000".to_owned()),
    ];
    if options.threads > 0 {
        usual.push(("server.threads", options.threads.to_string()));
    }
    let usual = usual.into_iter().map(|(key, value)| (key.to_owned(), value));
    let more = settings.iter().map(|(key, value)| {
        let value = value.replace("{application}", &format!("http://127.0.0.1:{application}"));
        ((*key).to_owned(), value.replace("{folder}", &folder.display().to_string()))
    });
    usual.chain(more).collect()
}
