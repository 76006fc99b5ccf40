//! A self-signed certificate for a server that is started here, and a client configuration that
//! accepts any certificate.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::error::BenchError;

/// A certificate and its key in files. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// Creates a certificate for the loopback addresses.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub(crate) fn create() -> Result<Self, BenchError> {
        let failed = |error: String| BenchError::failed("cannot create a certificate", error);
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let generated =
            rcgen::generate_simple_self_signed(names).map_err(|error| failed(error.to_string()))?;
        let folder = std::env::temp_dir().join(format!(
            "goim-bench-{}-{}",
            std::process::id(),
            crate::message::new_run()
        ));
        let own = Self { folder };
        let io = |error: std::io::Error| failed(error.to_string());
        std::fs::create_dir(&own.folder).map_err(io)?;
        std::fs::write(own.folder.join("cert.pem"), generated.cert.pem()).map_err(io)?;
        std::fs::write(own.folder.join("key.pem"), generated.signing_key.serialize_pem()).map_err(io)?;
        Ok(own)
    }

    /// Returns the settings of a server with this certificate and TLS listeners on free ports.
    pub(crate) fn settings(&self) -> Vec<String> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        vec![
            format!("comet.tls.cert_file={}", path("cert.pem")),
            format!("comet.tls.key_file={}", path("key.pem")),
            "comet.listen.tcp_tls=127.0.0.1:0".to_owned(),
            "comet.listen.websocket_tls=127.0.0.1:0".to_owned(),
        ]
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // The folder for temporary files is cleaned by the system.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Returns a TLS configuration for clients that accepts any certificate, since clients send no
/// secrets.
///
/// # Errors
/// When the TLS library rejects its defaults.
pub(crate) fn client_config() -> Result<Arc<ClientConfig>, BenchError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| BenchError::failed("cannot configure TLS", error))?;
    let any = Arc::new(AnyCertificate(provider));
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
