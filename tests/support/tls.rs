//! Certificates, made with the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A certificate authority of the test's own.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes an authority with its files in the new directory `dir`.
    pub fn new(dir: &Path, name: &str) -> Authority {
        fs::create_dir(dir).expect("a directory for the authority");
        let authority = Authority {
            dir: dir.to_owned(),
        };
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN={name}"
        ));
        authority
    }

    /// What a client needs in order to trust this authority.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Issues a server certificate; returns the paths of certificate and key.
    pub fn issue(&self, host: &str) -> (PathBuf, PathBuf) {
        fs::write(
            self.dir.join("extensions"),
            format!("subjectAltName=DNS:{host}\n"),
        )
        .expect("write the extensions");
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr -subj /CN={host}"
        ));
        self.openssl(
            "x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out server.crt",
        );
        (self.dir.join("server.crt"), self.dir.join("server.key"))
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("the tests of TLS need the openssl command: {e}"));
        assert!(
            output.status.success(),
            "openssl {args}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
