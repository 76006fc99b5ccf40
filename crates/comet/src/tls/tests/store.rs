//! Certificates from files, and their exchange.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::{ClientConfig, HandshakeKind};

use super::pair::{self, Chunks, Folder, Identity, Pair, Rng, VERSIONS};
use crate::tls::certificate::{CertificateError, CertificateStore};
use crate::tls::session::TlsError;

struct Files {
    folder: Folder,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = Folder::new();
        let (cert, key) = (folder.path("tls.crt"), folder.path("tls.key"));
        Self { folder, cert, key }
    }

    fn with(identity: &Identity) -> Self {
        let files = Self::new();
        identity.write(&files.cert, &files.key);
        files
    }

    fn load(&self) -> Result<CertificateStore, CertificateError> {
        CertificateStore::load(&self.cert, &self.key)
    }

    fn cert(&self) -> &PathBuf {
        &self.cert
    }

    fn key(&self) -> &PathBuf {
        &self.key
    }
}

/// A handshake and an exchange.
fn meets(store: &CertificateStore, client: Arc<ClientConfig>) -> Result<Pair, TlsError> {
    let mut pair = Pair::with_client(store, client, Chunks::All, Rng(1));
    pair.try_settle()?;
    speak(&mut pair);
    Ok(pair)
}

fn speak(pair: &mut Pair) {
    pair.client_writes(b"ping");
    pair.server_writes(b"pong");
    pair.settle();
    assert_eq!((&pair.server_got[..], &pair.client_got[..]), (&b"ping"[..], &b"pong"[..]));
    pair.server_got.clear();
    pair.client_got.clear();
}

#[test]
fn a_new_pair_is_for_new_sessions_only() {
    for version in VERSIONS {
        let (old, new) = (Identity::new(), Identity::new());
        let files = Files::with(&old);
        let store = files.load().unwrap();
        assert!(!store.reload_if_changed().unwrap(), "nothing has changed");
        let mut running = meets(&store, old.client_config(version)).unwrap();

        new.write(files.cert(), files.key());
        assert!(store.reload_if_changed().unwrap());
        assert!(!store.reload_if_changed().unwrap(), "once is enough");
        speak(&mut running);
        meets(&store, new.client_config(version)).unwrap();
        assert!(
            meets(&store, old.client_config(version)).is_err(),
            "{version:?}: the old certificate is still shown"
        );
    }
}

#[test]
fn a_session_of_the_old_certificate_is_not_resumed() {
    for version in VERSIONS {
        let (old, new) = (Identity::new(), Identity::new());
        let files = Files::with(&old);
        let store = files.load().unwrap();
        let client = pair::client_config(&[&old, &new], version);
        let mut kinds = Vec::new();
        for exchange in [false, false, true, false] {
            if exchange {
                new.write(files.cert(), files.key());
                assert!(store.reload_if_changed().unwrap());
            }
            kinds.push(meets(&store, Arc::clone(&client)).unwrap().client.handshake_kind().unwrap());
        }
        let expect =
            [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Full, HandshakeKind::Resumed];
        assert_eq!(kinds, expect, "{version:?}");
    }
}

#[test]
fn a_link_that_leads_elsewhere_is_a_change() {
    // As Kubernetes mounts a secret: the files are links through `..data`, which is exchanged by a
    // rename.
    let (old, new) = (Identity::new(), Identity::new());
    let files = Files::new();
    for (folder, identity) in [("..1", &old), ("..2", &new)] {
        std::fs::create_dir(files.folder.path(folder)).unwrap();
        let folder = files.folder.path(folder);
        identity.write(&folder.join("tls.crt"), &folder.join("tls.key"));
    }
    symlink("..1", files.folder.path("..data")).unwrap();
    symlink("..data/tls.crt", files.cert()).unwrap();
    symlink("..data/tls.key", files.key()).unwrap();
    let store = files.load().unwrap();
    meets(&store, old.client_config(VERSIONS[0])).unwrap();

    symlink("..2", files.folder.path("..data_tmp")).unwrap();
    std::fs::rename(files.folder.path("..data_tmp"), files.folder.path("..data")).unwrap();
    assert!(store.reload_if_changed().unwrap());
    meets(&store, new.client_config(VERSIONS[0])).unwrap();
}

#[test]
fn each_mark_of_a_file_tells_a_change() {
    let identity = Identity::new();
    let files = Files::with(&identity);
    let store = files.load().unwrap();
    let set_modified = |file: &Path, time: SystemTime| {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    };
    let modified = |file: &Path| std::fs::metadata(file).unwrap().modified().unwrap();
    for file in [files.cert(), files.key()] {
        set_modified(file, modified(file) + Duration::from_nanos(1000));
        assert!(store.reload_if_changed().unwrap(), "{} is younger", file.display());

        let time = modified(file);
        let copy = files.folder.path("copy");
        std::fs::copy(file, &copy).unwrap();
        set_modified(&copy, time);
        std::fs::rename(&copy, file).unwrap();
        assert_eq!(modified(file), time);
        assert!(store.reload_if_changed().unwrap(), "{} is another file", file.display());

        let mut text = std::fs::read_to_string(file).unwrap();
        text.push('\n');
        std::fs::write(file, text).unwrap();
        set_modified(file, time);
        assert!(store.reload_if_changed().unwrap(), "{} is longer", file.display());
        assert!(!store.reload_if_changed().unwrap());
    }
}

#[test]
fn a_bad_pair_is_named_and_the_old_one_stays() {
    let (good, other) = (Identity::new(), Identity::new());
    let (cert, key) = (good.cert.pem(), good.key.serialize_pem());
    // The base64 of 96 bytes: good text, half a certificate.
    let broken_der: Vec<&str> =
        cert.lines().enumerate().filter(|(line, _)| *line < 3).map(|(_, text)| text).collect();
    let broken_der = broken_der.join("\n") + "\n-----END CERTIFICATE-----\n";
    let cases = [
        ("", &key[..], "no certificate in CERT: it must hold the chain in PEM"),
        (&key[..], &key[..], "no certificate in CERT: "),
        (&cert[..], &cert[..], "no private key in KEY: it must hold one in PEM"),
        (&cert[..], "", "no private key in KEY: "),
        (
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
            &key[..],
            "CERT is not valid PEM: ",
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", &key[..], "CERT is not valid PEM: "),
        (
            &cert[..],
            "-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
            "KEY is not valid PEM: ",
        ),
        (
            &cert[..],
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "the private key in KEY cannot be used: ",
        ),
        (
            &cert[..],
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "the private key in KEY is encrypted: decrypt it with `openssl pkey -in FILE -out FILE`",
        ),
        (&broken_der[..], &key[..], "the first certificate in CERT cannot be used: "),
        (
            &other.cert.pem()[..],
            &key[..],
            "the key in KEY does not belong to the first certificate in CERT: ",
        ),
    ];
    let files = Files::with(&good);
    let store = files.load().unwrap();
    for (cert, key, expect) in cases {
        std::fs::write(files.cert(), cert).unwrap();
        std::fs::write(files.key(), key).unwrap();
        check_error(&files, &files.load().err(), expect);
        // Asked twice: a bad pair is not forgotten after it was reported once.
        for _ in 0..2 {
            check_error(&files, &store.reload_if_changed().err(), expect);
            meets(&store, good.client_config(VERSIONS[0])).unwrap();
        }
    }
    for (file, other) in [(files.cert(), files.key()), (files.key(), files.cert())] {
        good.write(files.cert(), files.key());
        std::fs::remove_file(file).unwrap();
        let name = if file == files.cert() { "CERT" } else { "KEY" };
        let expect = format!("cannot read {name}: No such file or directory (os error 2); check the path");
        check_error(&files, &files.load().err(), &expect);
        check_error(&files, &store.reload_if_changed().err(), &expect);
        assert!(other.exists());
    }
    other.write(files.cert(), files.key());
    assert!(store.reload_if_changed().unwrap(), "a good pair ends it");
    meets(&store, other.client_config(VERSIONS[0])).unwrap();
}

fn check_error(files: &Files, error: &Option<CertificateError>, expect: &str) {
    let text = error.as_ref().map_or_else(String::new, ToString::to_string);
    let text = text.replace(&files.cert().display().to_string(), "CERT");
    let text = text.replace(&files.key().display().to_string(), "KEY");
    assert!(text.starts_with(expect), "{text:?} does not begin with {expect:?}");
}

#[test]
fn usual_kinds_of_keys_work() {
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let identity = Identity { cert: params.self_signed(&key).unwrap(), key };
        let store = Files::with(&identity).load().unwrap();
        for version in VERSIONS {
            meets(&store, identity.client_config(version)).unwrap();
        }
    }
}

#[test]
fn a_certificate_that_is_not_valid_now_is_used_with_a_warning() {
    let cases = [
        (2001, 2002, "certificate has expired: clients will refuse it; renew it"),
        (2400, 2401, "certificate is not valid yet: check it and the clock"),
        (2001, 2401, ""),
    ];
    for (from, to, expect) in cases {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let identity = Identity { cert: params.self_signed(&key).unwrap(), key };
        let files = Files::with(&identity);
        let log = Log::default();
        let store = tracing::subscriber::with_default(log.clone(), || files.load().unwrap());
        assert_eq!(*log.0.lock().unwrap(), expect);
        let met = meets(&store, identity.client_config(VERSIONS[0]));
        assert_eq!(met.is_ok(), expect.is_empty(), "the client has the last word");
    }
}

/// Collects the messages of warnings.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN && metadata.target().contains("tls")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message<'a>(&'a mut String);
        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.push_str(&format!("{value:?}"));
                }
            }
        }
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
