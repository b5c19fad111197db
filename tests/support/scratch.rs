//! Temporary directories, and files that tell whether a command ran.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::janitor;

/// A directory of the test's own, removed at the end. It lies directly in `/tmp`, whatever `TMPDIR` says: the path of a
/// Unix socket has room for 107 bytes only.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Scratch {
        let dir = tempfile::Builder::new()
            .prefix("pglock-test-")
            .tempdir_in("/tmp")
            .expect("a directory in /tmp");
        janitor::watch(dir.path());
        // The server may run as another user and must get through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Scratch { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file and returns its path.
    #[track_caller]
    pub fn file(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.dir.path());
        janitor::forget(self.dir.path());
    }
}

/// A file that does not exist until the command of [`Marker::command`] has run.
pub struct Marker {
    dir: Scratch,
}

impl Marker {
    pub fn new() -> Marker {
        Marker {
            dir: Scratch::new(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("the-command-ran")
    }

    pub fn command(&self) -> [String; 2] {
        ["touch".to_owned(), self.path().display().to_string()]
    }

    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Takes the mark away, so that the marker can serve again.
    pub fn reset(&self) {
        let _ = fs::remove_file(self.path());
    }
}
