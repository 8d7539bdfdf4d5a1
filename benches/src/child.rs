//! Processes of the benchmark: this program again, in a role. Each is asked by a
//! line of JSON and answers with one; it ends when nobody asks any more, and is
//! killed with its parent.

use crate::fault::{Fault, fault};
use serde::{Serialize, de::DeserializeOwned};
use std::{io::Write as _, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{ChildStdin, ChildStdout, Command},
};

/// A process in a role.
pub struct Child {
    role: &'static str,
    process: tokio::process::Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts this program in `role`; its first answer says that it is ready.
    pub async fn start<T: DeserializeOwned>(role: &'static str, threads: usize) -> Result<(Self, T), Fault> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["role", role, "--threads"]).arg(threads.to_string());
        Self::run(role, command).await
    }

    /// Starts a program that answers as the roles do.
    pub async fn run<T: DeserializeOwned>(
        role: &'static str,
        mut command: Command,
    ) -> Result<(Self, T), Fault> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let (Some(questions), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(fault("a process without pipes"));
        };
        let mut child = Self { role, process, questions, answers: BufReader::new(answers).lines() };
        let ready = child.answer().await?;
        Ok((child, ready))
    }

    /// Of the process.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Asks, and waits for the answer.
    pub async fn ask<T: DeserializeOwned>(&mut self, question: &impl Serialize) -> Result<T, Fault> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.questions.write_all(&line).await?;
        self.answer().await
    }

    /// The next answer, to a question that has several.
    pub async fn answer<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let line = tokio::time::timeout(Duration::from_secs(200), self.answers.next_line()).await;
        let line = line.map_err(|_| fault(format!("the {} does not answer", self.role)))??;
        let line = line.ok_or_else(|| fault(format!("the {} has ended", self.role)))?;
        let answer: Result<T, String> = serde_json::from_str(&line)?;
        answer.map_err(|error| fault(format!("{}: {error}", self.role)))
    }
}

/// What a role says to its parent.
pub fn answer(answer: &Result<impl Serialize, Fault>) -> Result<(), Fault> {
    let answer = answer.as_ref().map_err(ToString::to_string);
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// The questions that a role is asked.
pub struct Questions(Lines<BufReader<tokio::io::Stdin>>);

impl Questions {
    /// Of this process.
    pub fn new() -> Self {
        Self(BufReader::new(tokio::io::stdin()).lines())
    }

    /// None when nobody asks any more.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Fault> {
        match self.0.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}

/// Ends this process when its parent does, and what it becomes by exec too.
pub fn die_with_parent() -> Result<(), Fault> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}
