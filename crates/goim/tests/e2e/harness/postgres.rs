//! A PostgreSQL for the tests of one binary, as long as one of them has it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::unique;

/// A running server.
pub struct Postgres {
    folder: PathBuf,
}

static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

impl Postgres {
    /// The server of this binary, started when it is first needed.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(postgres) = shared.upgrade() {
            return postgres;
        }
        let folder = std::env::temp_dir().join(unique(&format!("goim-postgres-{}", std::process::id())));
        succeeded(script("start", &folder, &[]));
        let postgres = Arc::new(Self { folder });
        *shared = Arc::downgrade(&postgres);
        postgres
    }

    /// The address of an empty database.
    pub fn database(&self) -> String {
        let name = unique("own").replace('-', "_");
        succeeded(script("database", &self.folder, &[&name])).trim().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        script("stop", &self.folder, &[]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(verb: &str, folder: &Path, more: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/postgres.sh");
    Command::new(script).arg(verb).arg(folder).args(more).output().expect("the script runs")
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
