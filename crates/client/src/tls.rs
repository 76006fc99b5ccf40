//! The TLS connector and the certificates it trusts.

use std::sync::Arc;

use rustls::{ClientConfig as RustlsConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

use crate::{ConfigError, TlsRoots};

pub(crate) fn connector(roots: &TlsRoots) -> Result<TlsConnector, ConfigError> {
    let bad_roots = |error: String| ConfigError::BadRoots(error);
    let store = match roots {
        TlsRoots::System => system(),
        TlsRoots::Pem(pem) => from_pem(pem).map_err(bad_roots)?,
    };
    if store.is_empty() {
        return Err(bad_roots("none found".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = RustlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad_roots(error.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Returns the system's certificates. Those that cannot be parsed are skipped, as in other TLS
/// libraries.
fn system() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (used, unused) = store.add_parsable_certificates(found.certs);
    tracing::debug!(used, unused, errors = found.errors.len(), "read the system's certificates");
    store
}

fn from_pem(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_must_be_certificates() {
        let check = |pem: &str| connector(&TlsRoots::Pem(pem.as_bytes().to_vec())).err();
        assert_eq!(check(""), Some(ConfigError::BadRoots("none found".to_owned())));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(check(garbage), Some(ConfigError::BadRoots(_))));
    }
}
