//! File systems of a test's own. Only root may mount them; for others these tests
//! are skipped, which they say, and the shim stands for what they test.

use super::*;

/// A small file system in memory; gone when it is dropped.
pub(super) struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    /// None, and a word about it, where it may not be mounted.
    pub(super) fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "backjob-test"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { folder }),
            Ok(output) => {
                eprintln!("SKIPPED: tmpfs: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: mount: {error}");
                None
            }
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Nothing may be open for writing.
    fn read_only(&self) {
        let again = Command::new("mount").args(["-o", "remount,ro"]).arg(self.folder.path()).status();
        assert!(again.expect("mount").success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a server that was just killed may still have it open.
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

/// Takes all the room that is left.
pub(super) fn fill(file: &Path) {
    let mut file = fs::File::create(file).expect("made");
    for piece in [4096, 512, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; piece]).is_ok() {}
    }
}

async fn serve_fails(setup: &Setup) -> String {
    let output = soon("the end", setup.command("serve").kill_on_drop(true).output()).await.expect("run");
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).expect("text")
}

fn on(disk: &Small) -> Setup {
    let setup = Setup::new("127.0.0.1:9".parse().expect("an address"));
    let (url, key) = (format!("sqlite://{}", disk.file("backjob.db").display()), setup.file("backjob.key"));
    setup.with("database.url", &url).with("key_file", &key.display().to_string())
}

#[tokio::test]
async fn a_server_without_room_for_a_database_says_so() {
    if !on_a_file("a file system holds a file") {
        return;
    }
    let Some(disk) = Small::new("256k") else { return };
    fill(&disk.file("filler"));
    let said = serve_fails(&on(&disk)).await;
    assert!(said.contains("backjob.db") && said.contains("the disk is full"), "{said}");
}

#[tokio::test]
async fn a_server_on_a_read_only_disk_says_so() {
    if !on_a_file("a file system holds a file") {
        return;
    }
    let Some(disk) = Small::new("2m") else { return };
    let setup = on(&disk);
    let server = Process::start(&setup).await;
    assert!(server.terminate().await.success());
    disk.read_only();
    let said = serve_fails(&setup).await;
    assert!(said.contains("backjob.db") && said.contains("Read-only file system"), "{said}");
}

#[tokio::test]
async fn a_backup_without_room_says_so_and_leaves_nothing_behind() {
    if !on_a_file("a file system holds a file") {
        return;
    }
    let Some(disk) = Small::new("64k") else { return };
    let application = Application::new().await;
    let server = Setup::new(application.address).start().await;
    server.start(start("/a")).await;
    let copy = disk.file("copy.db");
    let output = soon("the backup", server.setup.command("backup").arg(&copy).output()).await.expect("run");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("copy.db") && said.contains("full"), "{said}");
    let left: Vec<_> = fs::read_dir(copy.parent().expect("a folder")).expect("read").collect();
    assert!(left.is_empty(), "{left:?}");
}
