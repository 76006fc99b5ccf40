//! The certificate in use, and its replacement while the process runs.
//!
//! Owns the two files of the configuration and the rustls configuration made from them. Does not
//! decide when to check the files: the caller has the clock. A pair that cannot be used never
//! replaces one that can.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::validity::Validity;

/// Why a certificate and its key cannot be used. Names the file, and what helps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {error}; check the path and that this user may read it", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is not text with PEM sections, or one of them is broken.
    #[error("{} is not valid PEM: {error}; copy it again, with its BEGIN and END lines", .file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// The reader's error.
        error: pem::Error,
    },
    /// No section `CERTIFICATE` in the certificate file.
    #[error("no certificate in {}: it must hold the chain in PEM, the server's own certificate first", .0.display())]
    NoCertificate(PathBuf),
    /// No key in the key file.
    #[error("no private key in {}: it must hold one in PEM (PKCS#8, PKCS#1 or SEC1)", .0.display())]
    NoKey(PathBuf),
    /// The key is encrypted; a server cannot ask for its password.
    #[error("the private key in {} is encrypted: decrypt it with `openssl pkey -in FILE -out FILE`", .0.display())]
    EncryptedKey(PathBuf),
    /// The type or size of the key is not supported.
    #[error("the private key in {} cannot be used: {error}; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits", .file.display())]
    BadKey {
        /// The file.
        file: PathBuf,
        /// The error of rustls.
        error: rustls::Error,
    },
    /// The first certificate cannot be read.
    #[error("the first certificate in {} cannot be used: {error}", .file.display())]
    BadCertificate {
        /// The file.
        file: PathBuf,
        /// The error of rustls.
        error: rustls::Error,
    },
    /// Certificate and key do not belong together.
    #[error("the key in {} does not belong to the first certificate in {}: take the key that it was made with, and put the server's own certificate before those of its issuers", .key_file.display(), .cert_file.display())]
    KeyMismatch {
        /// The file of the chain.
        cert_file: PathBuf,
        /// The file of the key.
        key_file: PathBuf,
    },
    /// rustls refused the protocol versions, or the system provided no randomness.
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// The certificate that new sessions get. Shared by all shards.
pub(crate) struct CertificateStore {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: RwLock<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Stamps,
}

impl CertificateStore {
    /// Reads both files. A certificate that is not valid today is used nevertheless, with a warning
    /// in the log: the clock may be wrong, and clients decide what they accept.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub(crate) fn load(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        let loaded = Loaded::read(cert_file, key_file)?;
        Ok(Self {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
            current: RwLock::new(loaded),
        })
    }

    /// Returns the configuration of new sessions. Running sessions keep theirs.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().config)
    }

    /// Reads the files if either has changed: new content in place, another file with the same
    /// name, or a symbolic link with another target. True if new sessions get a new certificate.
    ///
    /// Reads the disk: not for a shard's thread.
    ///
    /// # Errors
    /// [`CertificateError`]; the old pair stays in use. Until the files can be used, each call
    /// reads them again and returns the error again: a pair that is replaced one file after the
    /// other works once both are new, and a bad one is reported again.
    pub(crate) fn reload_if_changed(&self) -> Result<bool, CertificateError> {
        let stamps = Stamps::of(&self.cert_file, &self.key_file)?;
        if self.current.read().stamps == stamps {
            return Ok(false);
        }
        let loaded = Loaded::read(&self.cert_file, &self.key_file)?;
        *self.current.write() = loaded;
        Ok(true)
    }
}

impl Loaded {
    fn read(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        // The stamps first: a change while the files are read then counts as a change next time.
        let stamps = Stamps::of(cert_file, key_file)?;
        let chain = read_chain(cert_file)?;
        warn_unless_valid(cert_file, &chain, SystemTime::now());
        let config = Arc::new(server_config(cert_file, key_file, chain)?);
        Ok(Self { config, stamps })
    }
}

/// What identifies a file and its content. Symbolic links are followed, so that replacing a link
/// above the file, as Kubernetes does, is noticed as well.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamps([FileStamp; 2]);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_seconds: i64,
    modified_nanos: i64,
}

impl Stamps {
    fn of(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        Ok(Self([FileStamp::of(cert_file)?, FileStamp::of(key_file)?]))
    }
}

impl FileStamp {
    fn of(file: &Path) -> Result<Self, CertificateError> {
        let metadata = std::fs::metadata(file)
            .map_err(|error| CertificateError::Read { file: file.to_owned(), error })?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanos: metadata.mtime_nsec(),
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(file).map_err(|error| CertificateError::Read { file: file.to_owned(), error })
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(&read(file)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Pem { file: file.to_owned(), error })?;
    if chain.is_empty() { Err(CertificateError::NoCertificate(file.to_owned())) } else { Ok(chain) }
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    const ENCRYPTED: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];
    let text = read(file)?;
    if ENCRYPTED.iter().any(|mark| text.windows(mark.len()).any(|window| window == *mark)) {
        return Err(CertificateError::EncryptedKey(file.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => CertificateError::NoKey(file.to_owned()),
        error => CertificateError::Pem { file: file.to_owned(), error },
    })
}

fn warn_unless_valid(file: &Path, chain: &[CertificateDer<'_>], now: SystemTime) {
    let Some(validity) = chain.first().and_then(|own| Validity::of(own)) else { return };
    let days =
        |from: SystemTime, to: SystemTime| to.duration_since(from).map_or(0, |gap| gap.as_secs() / 86_400);
    if now > validity.not_after {
        let days = days(validity.not_after, now);
        tracing::warn!(file = %file.display(), days, "certificate has expired: clients will refuse it; renew it");
    } else if now < validity.not_before {
        let days = days(now, validity.not_before);
        tracing::warn!(file = %file.display(), days, "certificate is not valid yet: check it and the clock");
    }
}

/// TLS 1.3 and 1.2 with this pair, using as little memory as possible:
///
/// - Sessions are resumed by tickets that the client stores, so that a wave of reconnects costs no
///   signatures, and nothing is stored here. The ticket keys are generated for each certificate: a
///   session of one certificate is not resumed with the next.
/// - One ticket for each TLS 1.3 session instead of the two of rustls: a client has one connection
///   at a time, and the ticket costs one record of about 200 bytes on the wire, nothing once it is
///   sent.
/// - No session cache, no ALPN, no client certificates, no early data.
fn server_config(
    cert_file: &Path,
    key_file: &Path,
    chain: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, CertificateError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = provider
        .key_provider
        .load_private_key(read_key(key_file)?)
        .map_err(|error| CertificateError::BadKey { file: key_file.to_owned(), error })?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(CertificateError::KeyMismatch {
                cert_file: cert_file.to_owned(),
                key_file: key_file.to_owned(),
            });
        }
        Err(error) => return Err(CertificateError::BadCertificate { file: cert_file.to_owned(), error }),
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(CertificateError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(CertificateError::Setup)?;
    config.send_tls13_tickets = 1;
    Ok(config)
}
