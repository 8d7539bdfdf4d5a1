//! Files of secrets: replaced as a whole, for their owner alone; and the changes
//! of a key file.

use super::root::{Keyring, LoadError, Root, RootId};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

/// Writes a file that only its owner can read, all of it or nothing: whoever reads
/// it meanwhile sees the old one or the new one.
///
/// # Errors
/// What the system says.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?; // mode 0600
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

/// A change of a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// A new root is added behind the others: known, and not in use.
    Add,
    /// The root with this id comes first: it is in use from the next start on.
    Promote(RootId),
    /// The root with this id, which must not be the first, is taken out.
    Remove(RootId),
}

/// Changes a key file, and says which root it was about.
///
/// # Errors
/// See [`LoadError`]; the file stays as it was.
pub fn change_keys(path: &Path, change: KeyChange) -> Result<RootId, LoadError> {
    let io = |error| LoadError::Io(path.to_owned(), error);
    let known = Keyring::load(path)?;
    let text = fs::read_to_string(path).map_err(io)?;
    let mut lines: Vec<&str> = text.lines().collect();
    let is = |line: &str, id: RootId| Root::parse(line).is_ok_and(|root| root.id() == id);
    let place = |lines: &[&str], id| lines.iter().position(|line| is(line, id)).ok_or(LoadError::Unknown);
    let (id, made);
    match change {
        KeyChange::Add => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| io(io::Error::other(error)))?;
            id = Root::from_bytes(bytes).id();
            made = URL_SAFE_NO_PAD.encode(bytes);
            lines.push(&made);
        }
        KeyChange::Promote(root) => {
            id = root;
            let line = lines.remove(place(&lines, root)?);
            let first = if known.current().id() == root { None } else { Some(known.current().id()) };
            let to = match first {
                Some(first) => place(&lines, first)?,
                None => lines.iter().position(|line| Root::parse(line).is_ok()).unwrap_or(lines.len()),
            };
            lines.insert(to, line);
        }
        KeyChange::Remove(root) if root == known.current().id() => return Err(LoadError::InUse),
        KeyChange::Remove(root) => {
            id = root;
            lines.remove(place(&lines, root)?);
        }
    }
    replace(path, &(lines.join("\n") + "\n")).map_err(io)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_added_promoted_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backjob.key");
        let first = Keyring::create(&path).expect("made").current().id();
        let commented = format!("# roots of the shop\n{}", fs::read_to_string(&path).expect("readable"));
        replace(&path, &commented).expect("written");
        let ids = || Keyring::load(&path).expect("loaded").ids().collect::<Vec<_>>();

        let second = change_keys(&path, KeyChange::Add).expect("added");
        let third = change_keys(&path, KeyChange::Add).expect("added");
        assert_eq!(ids(), [first, second, third]);
        change_keys(&path, KeyChange::Promote(third)).expect("promoted");
        assert_eq!(ids(), [third, first, second]);
        change_keys(&path, KeyChange::Promote(third)).expect("as it was");
        assert_eq!(ids(), [third, first, second]);
        assert!(matches!(change_keys(&path, KeyChange::Remove(third)), Err(LoadError::InUse)));
        change_keys(&path, KeyChange::Remove(first)).expect("removed");
        assert_eq!(ids(), [third, second]);
        for change in [KeyChange::Remove(first), KeyChange::Promote(first)] {
            assert!(matches!(change_keys(&path, change), Err(LoadError::Unknown)));
        }
        assert!(fs::read_to_string(&path).expect("readable").starts_with("# roots of the shop\n"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
    }
}
