//! Files that are looked at again while the server runs: the callers' tokens, and
//! what TLS is made of.
//!
//! What cannot be read or understood changes nothing: what held before holds on,
//! and the log says so, once. Nor does what is only half written: new contents
//! count when a second look, a moment later, finds the same.

use crate::tasks::Tasks;
use std::{fmt::Display, fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// From the first look at new contents to the second: editors and copies write a
/// file in pieces, and an empty file of tokens would cut off everyone.
const SETTLE: Duration = Duration::from_millis(100);

/// Makes a value out of the contents of its files.
type Make<T, E> = Box<dyn Fn(&[Vec<u8>]) -> Result<Arc<T>, E> + Send + Sync>;

/// Why there is no value at the start.
pub(super) enum Unread<E> {
    /// A file cannot be read.
    Io(PathBuf, io::Error),
    /// What stands in them cannot be used.
    Bad(E),
}

/// A value that is made of files, and made anew when one of them changes.
pub(super) struct Watched<T, E> {
    what: &'static str,
    paths: Vec<PathBuf>,
    make: Make<T, E>,
    contents: Vec<Vec<u8>>,
    value: watch::Sender<Arc<T>>,
    /// Whether the last look failed.
    failed: bool,
}

impl<T, E> Watched<T, E>
where
    T: Send + Sync + 'static,
    E: Display + Send + 'static,
{
    /// Reads the files, which have to be there.
    ///
    /// # Errors
    /// The first one that cannot be read, or what is wrong with them.
    pub(super) fn open(what: &'static str, paths: Vec<PathBuf>, make: Make<T, E>) -> Result<Self, Unread<E>> {
        let read = |path: &PathBuf| fs::read(path).map_err(|error| Unread::Io(path.clone(), error));
        let contents = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let value = watch::Sender::new(make(&contents).map_err(Unread::Bad)?);
        Ok(Self { what, paths, make, contents, value, failed: false })
    }

    /// The value, and what replaces it.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<T>> {
        self.value.subscribe()
    }

    /// Looks at the files each second, until the tasks are told to end.
    pub(super) fn keep_looking(mut self, tasks: &Tasks) {
        if self.paths.is_empty() {
            return; // nothing that could change
        }
        let stop = tasks.stop().clone();
        tasks.spawn("reload", async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => self.look().await,
                }
            }
        });
    }

    async fn read(&self) -> Result<Vec<Vec<u8>>, String> {
        let mut contents = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let content = tokio::fs::read(path).await;
            contents.push(content.map_err(|error| format!("{}: {error}", path.display()))?);
        }
        Ok(contents)
    }

    async fn look(&mut self) {
        let contents = match self.read().await {
            Ok(contents) => contents,
            Err(error) => return self.fails(&error),
        };
        if contents == self.contents {
            self.failed = false;
            return;
        }
        tokio::time::sleep(SETTLE).await;
        if self.read().await.as_ref() != Ok(&contents) {
            return; // somebody writes: the next look will tell
        }
        match (self.make)(&contents) {
            Ok(value) => {
                self.value.send_replace(value);
                (self.contents, self.failed) = (contents, false);
                tracing::info!(what = self.what, "reloaded");
            }
            Err(error) => self.fails(&error.to_string()),
        }
    }

    fn fails(&mut self, error: &str) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!(what = self.what, error, "not reloaded: what was read before holds on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        let open = || {
            let make =
                |files: &[Vec<u8>]| String::from_utf8_lossy(&files[0]).trim().parse::<u32>().map(Arc::new);
            Watched::open("number", vec![path.clone()], Box::new(make))
        };
        assert!(matches!(open(), Err(Unread::Io(..))));
        fs::write(&path, "x").expect("written");
        assert!(matches!(open(), Err(Unread::Bad(_))));
        fs::write(&path, "1").expect("written");
        let Ok(mut number) = open() else { panic!("it is a number") };
        let value = number.follow();
        for (content, expected, failed) in [
            (Some("2"), 2, false),
            (Some("x"), 2, true),
            (None, 2, true),
            (Some("2"), 2, false),
            (Some("3"), 3, false),
        ] {
            match content {
                Some(content) => fs::write(&path, content).expect("written"),
                None => fs::remove_file(&path).expect("removed"),
            }
            number.look().await;
            assert_eq!((**value.borrow(), number.failed), (expected, failed), "{content:?}");
        }
        // Replaced as a whole, as careful programs do it, it is another file.
        fs::write(folder.path().join("new"), "4").expect("written");
        fs::rename(folder.path().join("new"), &path).expect("renamed");
        number.look().await;
        assert_eq!(**value.borrow(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_half_written_is_not_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lines");
        fs::write(&path, "1\n2\n").expect("written");
        let make = |files: &[Vec<u8>]| Ok::<_, String>(Arc::new(files[0].len()));
        let Ok(mut lines) = Watched::open("lines", vec![path.clone()], Box::new(make)) else {
            panic!("it is there")
        };
        let value = lines.follow();
        fs::write(&path, "").expect("truncated");
        let written = async {
            tokio::time::sleep(SETTLE / 2).await;
            fs::write(&path, "1\n2\n3\n").expect("written");
        };
        tokio::join!(lines.look(), written);
        assert_eq!((**value.borrow(), lines.failed), (4, false), "the empty file was never taken");
        lines.look().await;
        assert_eq!(**value.borrow(), 6);
    }
}
