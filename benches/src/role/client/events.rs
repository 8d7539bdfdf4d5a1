//! What the application tells: which action ran, when, and with which token.

use crate::{
    fault::{Fault, fault},
    role::action,
    tasks::spawn,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::oneshot,
};

/// An action has run, or detached.
#[derive(Debug, Clone)]
pub struct Event {
    /// When its handler was entered.
    pub entered: u64,
    /// When it was through, but for its response.
    pub through: u64,
    /// Report token and job id of one that has detached.
    pub held: Option<(String, String)>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Event>>>>;

/// Who waits for what the application tells.
#[derive(Clone)]
pub struct Events(Waiting);

impl Events {
    /// Connects to the application.
    pub async fn listen(port: u32) -> Result<Self, Fault> {
        let mut lines = BufReader::new(action::listen(port).await?).lines();
        // From then on it tells everything.
        lines.next_line().await?;
        let waiting = Waiting::default();
        let told = Arc::clone(&waiting);
        spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((tag, event)) = read(&line) else { continue };
                let waiting = told.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(event); // who waited may be gone
                }
            }
            // The application is gone: nobody waits in vain.
            told.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Ok(Self(waiting))
    }

    /// Of the job with this tag. Ask before its Start.
    pub fn of(&self, tag: u64) -> oneshot::Receiver<Event> {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tag, sender);
        receiver
    }
}

/// Waits for an event, but not for ever.
pub async fn soon(event: oneshot::Receiver<Event>) -> Result<Event, Fault> {
    match tokio::time::timeout(std::time::Duration::from_secs(60), event).await {
        Ok(Ok(event)) => Ok(event),
        Ok(Err(_)) => Err(fault("the application is gone")),
        Err(_) => Err(fault("an action did not end within a minute")),
    }
}

fn read(line: &str) -> Option<(u64, Event)> {
    let mut fields = line.split(' ');
    let mut number = || fields.next()?.parse().ok();
    let (tag, entered, through) = (number()?, number()?, number()?);
    let held = fields.next().map(str::to_owned).zip(fields.next().map(str::to_owned));
    Some((tag, Event { entered, through, held }))
}
