//! `backjob token`: makes a caller's token.

use super::{Fault, Settings};
use crate::secret::{Callers, Role, new_token, replace, token_line};
use std::{fs, io, path::PathBuf, process::ExitCode};

/// Makes a token with which a caller may call, adds its line (name, role and
/// SHA-256) to the file of tokens, and prints the token, which is stored nowhere.
///
/// A running server takes it within a second. To take a token away, delete its
/// line; to replace one, make a second of the same name first.
#[derive(Debug, clap::Args)]
pub struct Token {
    /// Who it is for; jobs that it starts are `created_by` this name.
    name: String,
    /// viewer reads and watches; operator also starts, cancels, retries and
    /// deletes.
    #[arg(long, default_value = "operator", value_parser = ["viewer", "operator"])]
    role: String,
    /// Add the line to this file. Default: server.tokens_file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Token {
    /// Runs it.
    ///
    /// # Errors
    /// If there is no file to add it to, or what stands there is wrong.
    pub fn run(self) -> Result<ExitCode, Fault> {
        let configured = match &self.file {
            Some(_) => None,
            None => self.settings.load()?.server.tokens_file,
        };
        let Some(path) = self.file.or(configured) else {
            return Err(Fault::text("say with --file, or server.tokens_file, where tokens are kept"));
        };
        let role: Role = self.role.parse().map_err(Fault::text)?;
        let token = new_token().map_err(Fault::new)?;
        let Some(line) = token_line(&self.name, role, &token) else {
            return Err(Fault::text("a name is 1 to 64 of letters, digits, _, - and ."));
        };
        let told = |error: io::Error| Fault::text(format!("{}: {error}", path.display()));
        let before = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(told(error)),
        };
        let open = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        let after = format!("{before}{open}{line}\n");
        Callers::parse(&after).map_err(|error| Fault::text(format!("{}: {error}", path.display())))?;
        replace(&path, &after).map_err(told)?;
        println!("{token}");
        eprintln!("added {} as {role} to {}; the token is shown only now", self.name, path.display());
        Ok(ExitCode::SUCCESS)
    }
}
