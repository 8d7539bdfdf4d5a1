//! Root keys: made, loaded, derived from.

use crate::signature;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use hmac::Hmac;
use sha2::Sha256;
use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a derived key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Signs triggers; each target has its own.
    Trigger,
    /// Makes report tokens.
    Report,
    /// Makes watch tokens.
    Watch,
    /// Seals what is stored.
    Seal,
    /// Hashes identities for merging.
    Identity,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Report => "report",
            Self::Watch => "watch",
            Self::Seal => "seal",
            Self::Identity => "identity",
        }
    }
}

/// Which root something was made with. Derived one way: it reveals nothing.
pub type RootId = [u8; 8];

/// The secret from which every other key is derived.
#[derive(Clone)]
pub struct Root {
    bytes: [u8; 32],
    id: RootId,
    /// What is needed for nearly every call is not derived each time.
    ready: Arc<Ready>,
}

struct Ready {
    report: Hmac<Sha256>,
    watch: Hmac<Sha256>,
    seal: [u8; 32],
}

impl Root {
    /// A root of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut id = RootId::default();
        expand(&bytes, "backjob/v1/root-id/", &mut id);
        let of = |usage| derive(&bytes, usage, "");
        let ready = Ready {
            report: signature::mac(&of(Use::Report), b""),
            watch: signature::mac(&of(Use::Watch), b""),
            seal: of(Use::Seal),
        };
        Self { bytes, id, ready: Arc::new(ready) }
    }

    /// Reads 32 bytes in base64url without padding.
    ///
    /// # Errors
    /// If it is anything else. The error never holds the text.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        parse_key(text).map(Self::from_bytes)
    }

    /// Which root this is.
    pub fn id(&self) -> RootId {
        self.id
    }

    /// The key for one use; `target` is empty where the use has none.
    pub fn derive(&self, usage: Use, target: &str) -> [u8; 32] {
        derive(&self.bytes, usage, target)
    }

    /// HMAC-SHA256 under the key for report tokens, over nothing yet.
    pub(super) fn report_mac(&self) -> Hmac<Sha256> {
        self.ready.report.clone()
    }

    /// HMAC-SHA256 under the key for watch tokens, over nothing yet.
    pub(super) fn watch_mac(&self) -> Hmac<Sha256> {
        self.ready.watch.clone()
    }

    /// The key for [`Use::Seal`].
    pub(super) fn seal_key(&self) -> &[u8; 32] {
        &self.ready.seal
    }
}

fn derive(root: &[u8; 32], usage: Use, target: &str) -> [u8; 32] {
    let mut key = [0; 32];
    expand(root, &format!("backjob/v1/{}/{target}", usage.name()), &mut key);
    key
}

fn expand(root: &[u8; 32], info: &str, out: &mut [u8]) {
    // Fails only above 255 times the digest's length.
    let expanded = Hkdf::<Sha256>::new(None, root).expand(info.as_bytes(), out);
    debug_assert!(expanded.is_ok());
}

/// Reads a key: 32 bytes in base64url without padding.
///
/// # Errors
/// If it is anything else. The error never holds the text.
pub fn parse_key(text: &str) -> Result<[u8; 32], LoadError> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| LoadError::Malformed)?;
    bytes.try_into().map_err(|_| LoadError::Malformed)
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Root(redacted)")
    }
}

/// Makes a file for its owner alone, and waits until it is on the disk.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Why there are no root keys.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read or written.
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    Io(PathBuf, #[source] io::Error),
    /// Others may read the file.
    #[error("{path} can be read by others: chmod 600 it", path = .0.display())]
    Readable(PathBuf),
    /// Not a root key.
    #[error("a root key is 32 bytes in base64url without padding, one on a line")]
    Malformed,
    /// There is none.
    #[error("no root key is given")]
    Empty,
    /// No root has this id.
    #[error("no root key of the file has this id")]
    Unknown,
    /// It is the first one.
    #[error("this root key is in use: promote another one first")]
    InUse,
}

/// The roots that are known; the first one is in use.
#[derive(Debug, Clone)]
pub struct Keyring {
    roots: Vec<Root>,
}

impl Keyring {
    /// One root on a line; empty lines and lines with `#` are passed over.
    ///
    /// # Errors
    /// [`LoadError::Malformed`] or [`LoadError::Empty`].
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let roots = lines.map(Root::parse).collect::<Result<Vec<_>, _>>()?;
        if roots.is_empty() { Err(LoadError::Empty) } else { Ok(Self { roots }) }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// See [`LoadError`]; on Unix a file that group or others may read is refused.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let io = |error| LoadError::Io(path.to_owned(), error);
        let mut file = fs::File::open(path).map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
                return Err(LoadError::Readable(path.to_owned()));
            }
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(io)?;
        Self::parse(&text)
    }

    /// Makes a key file with one random root, for its owner alone, and waits
    /// until it is on the disk. Whoever looks sees the whole file or none.
    ///
    /// # Errors
    /// [`LoadError::Io`], also if the file is already there.
    pub fn create(path: &Path) -> Result<Self, LoadError> {
        let io = |error| LoadError::Io(path.to_owned(), error);
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| io(io::Error::other(error)))?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        let root = Root::from_bytes(bytes);
        // Beside it: a name that nobody else chooses.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.new", URL_SAFE_NO_PAD.encode(root.id())));
        let text = format!("{}\n", URL_SAFE_NO_PAD.encode(bytes));
        // Unlike a rename, a link fails if there is a file already.
        let written = write_new(beside.as_ref(), &text).and_then(|()| fs::hard_link(&beside, path));
        let _ = fs::remove_file(&beside); // it may not be there
        match written {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                write_new(path, &text).map_err(io)?; // a file system without links
            }
            written => written.map_err(io)?,
        }
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(Self { roots: vec![root] })
    }

    /// One root of these bytes.
    pub fn of(bytes: [u8; 32]) -> Self {
        Self { roots: vec![Root::from_bytes(bytes)] }
    }

    /// The root that new things are made with.
    pub fn current(&self) -> &Root {
        &self.roots[0] // parse and create see to it that there is one
    }

    /// Ids of all that are known; the first is in use.
    pub fn ids(&self) -> impl Iterator<Item = RootId> {
        self.roots.iter().map(Root::id)
    }

    /// The root with this id.
    pub fn find(&self, id: RootId) -> Option<&Root> {
        self.roots.iter().find(|root| root.id() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_and_target_has_a_key_of_its_own() {
        let root = Root::from_bytes([1; 32]);
        let mut keys: Vec<[u8; 32]> = [Use::Trigger, Use::Report, Use::Watch, Use::Seal, Use::Identity]
            .map(|u| root.derive(u, ""))
            .into();
        keys.push(root.derive(Use::Trigger, "default"));
        keys.push(Root::from_bytes([2; 32]).derive(Use::Trigger, "default"));
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
        assert_eq!(format!("{root:?}"), "Root(redacted)");
    }

    #[test]
    fn a_created_file_loads_again_and_is_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backjob.key");
        let made = Keyring::create(&path).expect("made");
        let loaded = Keyring::load(&path).expect("loaded");
        assert_eq!(made.current().id(), loaded.current().id());
        assert!(loaded.find(made.current().id()).is_some() && loaded.find([0; 8]).is_none());
        assert!(matches!(Keyring::create(&path), Err(LoadError::Io(..))));
        let there: Vec<_> = fs::read_dir(folder.path()).expect("read").flatten().collect();
        assert!(matches!(&there[..], [one] if one.path() == path), "{there:?}");
    }

    #[test]
    fn of_many_who_make_one_at_once_one_does_and_all_others_find_it_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backjob.key");
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Keyring::create(&path))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let id = Keyring::load(&path).expect("loaded").current().id();
        let ids: Vec<_> = made.iter().flatten().map(|made| made.current().id()).collect();
        assert_eq!(ids, [id]);
        for error in made.into_iter().filter_map(Result::err) {
            let LoadError::Io(_, io) = error else { panic!("{error}") };
            assert_eq!(io.kind(), io::ErrorKind::AlreadyExists);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backjob.key");
        Keyring::create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(Keyring::load(&path), Err(LoadError::Readable(_))));
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        for text in ["secret", "", "# nothing\n"] {
            let error = Keyring::parse(text).expect_err("refused").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
