//! Records that a usual client does not send, made with its keys.

use std::sync::Arc;

use rustls::crypto::cipher::{AeadKey, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ConnectionTrafficSecrets, ContentType, Error,
    PeerMisbehaved, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::pair::{Authority, Chunks, Pair, Rng, VERSIONS};
use crate::tls::session::{TlsError, TlsProgress, TlsSession};

/// A server whose client's keys have been taken over.
struct Crafted {
    server: TlsSession,
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
    plain: Vec<u8>,
    out: Vec<u8>,
}

impl Crafted {
    #[allow(deprecated)] // The keys are all that is needed here.
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::new();
        let mut config = ClientConfig::clone(&authority.client_config(version));
        config.enable_secret_extraction = true;
        let mut pair = Pair::with_client(&authority.store, Arc::new(config), Chunks::All, Rng(1));
        pair.settle();
        let suite = pair.client.negotiated_cipher_suite().unwrap();
        assert!(matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_256_GCM_SHA384 | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        ));
        let (sequence, secrets) = pair.client.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another cipher") };
        let key = AeadKey::from(<[u8; 32]>::try_from(key.as_ref()).unwrap());
        let encrypter = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
            SupportedCipherSuite::Tls12(suite) => {
                let (fixed, explicit) = iv.as_ref().split_at(4);
                suite.aead_alg.encrypter(key, fixed, explicit)
            }
        };
        Self { server: pair.server, encrypter, sequence, plain: Vec::new(), out: Vec::new() }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let version = ProtocolVersion::TLSv1_2;
        let message = OutboundPlainMessage { typ, version, payload: OutboundChunks::from(payload) };
        let record = self.encrypter.encrypt(message, self.sequence).unwrap().encode();
        self.sequence += 1;
        record
    }

    fn send(&mut self, typ: ContentType, payload: &[u8]) -> Result<TlsProgress, TlsError> {
        let mut record = self.record(typ, payload);
        self.server.read(&mut record, &mut self.plain, &mut self.out)
    }
}

#[test]
fn empty_records_are_no_data_and_not_for_ever() {
    for version in VERSIONS {
        let mut crafted = Crafted::new(version);
        for _ in 0..5 {
            crafted.send(ContentType::ApplicationData, b"").unwrap();
            crafted.send(ContentType::ApplicationData, b"x").unwrap();
        }
        assert_eq!(crafted.plain, b"xxxxx");
        let error = (0..100).find_map(|_| crafted.send(ContentType::ApplicationData, b"").err());
        let expect = Error::PeerMisbehaved(PeerMisbehaved::TooManyEmptyFragments);
        assert!(matches!(&error, Some(TlsError::Protocol(found)) if *found == expect), "{error:?}");
    }
}

#[test]
fn records_before_an_error_count() {
    for version in VERSIONS {
        let mut crafted = Crafted::new(version);
        let mut glued = crafted.record(ContentType::ApplicationData, b"one ");
        glued.extend(crafted.record(ContentType::ApplicationData, b"two"));
        let mut broken = crafted.record(ContentType::ApplicationData, b"three");
        *broken.last_mut().unwrap() ^= 1;
        glued.extend(broken);
        let error = crafted.server.read(&mut glued, &mut crafted.plain, &mut crafted.out).unwrap_err();
        assert!(matches!(error, TlsError::Protocol(Error::DecryptError)), "{error}");
        assert_eq!(crafted.plain, b"one two");
        assert!(!crafted.out.is_empty(), "an alert tells the client");
        assert!(matches!(crafted.server.write(b"x", &mut crafted.out), Err(TlsError::Ended)));
    }
}

#[test]
fn the_largest_record_is_taken_and_a_larger_one_refused() {
    for version in VERSIONS {
        let mut crafted = Crafted::new(version);
        let full = vec![7; 16 * 1024];
        crafted.send(ContentType::ApplicationData, &full).unwrap();
        assert_eq!(crafted.plain, full);
        let error = crafted.send(ContentType::ApplicationData, &vec![7; 16 * 1024 + 1]).unwrap_err();
        assert!(matches!(error, TlsError::Protocol(Error::PeerSentOversizedRecord)), "{error}");
    }
}

#[test]
fn renegotiation_is_refused() {
    let mut crafted = Crafted::new(VERSIONS[1]);
    // A ClientHello that offers one suite and nothing else.
    let mut hello = vec![1, 0, 0, 41, 3, 3];
    hello.extend_from_slice(&[9; 32]);
    hello.extend_from_slice(&[0, 0, 2, 0xc0, 0x2c, 1, 0]);
    crafted.send(ContentType::Handshake, &hello).unwrap();
    assert!(!crafted.out.is_empty(), "no_renegotiation goes back");
    crafted.send(ContentType::ApplicationData, b"the session goes on").unwrap();
    assert_eq!(crafted.plain, b"the session goes on");
    let error = crafted.send(ContentType::Handshake, &hello).unwrap_err();
    let expect = Error::PeerMisbehaved(PeerMisbehaved::TooManyRenegotiationRequests);
    assert!(matches!(&error, TlsError::Protocol(found) if *found == expect), "{error}");
}

#[test]
fn a_key_update_in_two_records_is_put_together() {
    let mut crafted = Crafted::new(VERSIONS[0]);
    crafted.send(ContentType::Handshake, &[24, 0, 0]).unwrap();
    // While it waits, this side may write: rustls must find the first half untouched afterwards.
    crafted.server.write(b"meanwhile", &mut crafted.out).unwrap();
    crafted.send(ContentType::Handshake, &[1, 0]).unwrap();
    // The old keys are void now.
    let error = crafted.send(ContentType::ApplicationData, b"old key").unwrap_err();
    assert!(matches!(error, TlsError::Protocol(Error::DecryptError)), "{error}");
}

#[test]
fn alerts_end_the_session() {
    for version in VERSIONS {
        let mut crafted = Crafted::new(version);
        let error = crafted.send(ContentType::Alert, &[2, 20]).unwrap_err();
        let expect = Error::AlertReceived(AlertDescription::BadRecordMac);
        assert!(matches!(&error, TlsError::Protocol(found) if *found == expect), "{error}");

        let mut crafted = Crafted::new(version);
        assert!(crafted.send(ContentType::Alert, &[1, 0]).unwrap().peer_closed);
    }
}
