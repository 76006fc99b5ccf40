//! A client of rustls and a [`TlsSession`] with two byte streams between them, cut at random.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use allocation_counter::AllocationInfo;
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use crate::tls::CertificateStore;
use crate::tls::session::{TlsError, TlsProgress, TlsSession};

pub(super) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS13, &rustls::version::TLS12];

/// From `TLS_SEED`, or new in each run.
pub(super) fn seed() -> u64 {
    match std::env::var("TLS_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()),
    }
}

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    pub(super) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next().to_le_bytes()[0],
                2 => drop(bytes.drain(at..(at + 1 + self.below(20)).min(bytes.len()))),
                _ => {
                    let copy = bytes[at..(at + 1 + self.below(20)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
    }
}

/// How much arrives at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chunks {
    All,
    UpTo(usize),
}

/// A folder that is removed with its owner.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A self-signed certificate for `localhost`.
pub(super) struct Identity {
    pub(super) cert: rcgen::Certificate,
    pub(super) key: rcgen::KeyPair,
}

impl Identity {
    pub(super) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        Self { cert: made.cert, key: made.signing_key }
    }

    pub(super) fn write(&self, cert_file: &Path, key_file: &Path) {
        std::fs::write(cert_file, self.cert.pem()).unwrap();
        std::fs::write(key_file, self.key.serialize_pem()).unwrap();
    }

    pub(super) fn client_config(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        client_config(&[self], version)
    }
}

/// A client that trusts these and no others.
pub(super) fn client_config(
    trusted: &[&Identity],
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for identity in trusted {
        roots.add(identity.cert.der().clone()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// An identity in files, and the store that has read them.
pub(super) struct Authority {
    identity: Identity,
    pub(super) store: CertificateStore,
    _folder: Folder,
}

impl Authority {
    pub(super) fn new() -> Self {
        let folder = Folder::new();
        let identity = Identity::new();
        let (cert_file, key_file) = (folder.path("cert.pem"), folder.path("key.pem"));
        identity.write(&cert_file, &key_file);
        let store = CertificateStore::load(&cert_file, &key_file).unwrap();
        Self { identity, store, _folder: folder }
    }

    pub(super) fn client_config(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        self.identity.client_config(version)
    }
}

/// Both sides and what is on the way between them.
pub(super) struct Pair {
    pub(super) client: ClientConnection,
    pub(super) server: TlsSession,
    pub(super) to_server: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    pub(super) server_got: Vec<u8>,
    pub(super) client_got: Vec<u8>,
    pub(super) client_saw_close: bool,
    pub(super) rng: Rng,
    /// Heap that the server's calls have allocated and not freed, while `to_client` and
    /// `server_got` need not grow.
    pub(super) held: AllocationInfo,
    chunks: Chunks,
    progress: TlsProgress,
}

impl Pair {
    pub(super) fn new(
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
        chunks: Chunks,
        rng: Rng,
    ) -> Self {
        Self::with_client(&authority.store, authority.client_config(version), chunks, rng)
    }

    pub(super) fn with_client(
        store: &CertificateStore,
        config: Arc<ClientConfig>,
        chunks: Chunks,
        rng: Rng,
    ) -> Self {
        let mut client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        client.set_buffer_limit(None);
        let server_config = store.server_config();
        let mut server = None;
        let held = allocation_counter::measure(|| server = Some(TlsSession::new(&server_config).unwrap()));
        Self {
            client,
            server: server.unwrap(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            server_got: Vec::new(),
            client_got: Vec::new(),
            client_saw_close: false,
            rng,
            held,
            chunks,
            progress: TlsProgress { handshake_done: false, peer_closed: false },
        }
    }

    pub(super) fn client_writes(&mut self, plain: &[u8]) {
        self.client.writer().write_all(plain).unwrap();
    }

    pub(super) fn server_writes(&mut self, plain: &[u8]) {
        let (server, to_client) = (&mut self.server, &mut self.to_client);
        self.held += allocation_counter::measure(|| server.write(plain, to_client).unwrap());
    }

    pub(super) fn collect_from_client(&mut self) {
        while self.client.wants_write() {
            self.client.write_tls(&mut self.to_server).unwrap();
        }
    }

    fn chunk(&mut self, left: usize) -> usize {
        match self.chunks {
            Chunks::All => left,
            Chunks::UpTo(most) => (1 + self.rng.below(most)).min(left),
        }
    }

    pub(super) fn deliver_to_server(&mut self) -> Result<(), TlsError> {
        let mut stream = std::mem::take(&mut self.to_server);
        let mut left = &mut stream[..];
        while !left.is_empty() {
            let (now, later) = left.split_at_mut(self.chunk(left.len()));
            let mut result = Err(TlsError::Ended);
            let (server, plain, out) = (&mut self.server, &mut self.server_got, &mut self.to_client);
            self.held += allocation_counter::measure(|| result = server.read(now, plain, out));
            self.progress = result?;
            now.fill(0xee);
            left = later;
        }
        Ok(())
    }

    pub(super) fn deliver_to_client(&mut self) -> Result<(), rustls::Error> {
        let stream: Vec<u8> = self.to_client.drain(..).collect();
        let mut left = &stream[..];
        while !left.is_empty() {
            let (mut now, later) = left.split_at(self.chunk(left.len()));
            left = later;
            while !now.is_empty() {
                if self.client.read_tls(&mut now).unwrap() == 0 {
                    return Ok(());
                }
                let state = self.client.process_new_packets()?;
                self.client_saw_close |= state.peer_has_closed();
                let start = self.client_got.len();
                self.client_got.resize(start + state.plaintext_bytes_to_read(), 0);
                self.client.reader().read_exact(&mut self.client_got[start..]).unwrap();
            }
        }
        Ok(())
    }

    /// Carries bytes both ways until none are left.
    pub(super) fn try_settle(&mut self) -> Result<TlsProgress, TlsError> {
        loop {
            self.collect_from_client();
            if self.to_server.is_empty() && self.to_client.is_empty() {
                return Ok(self.progress);
            }
            self.deliver_to_server()?;
            // The client sends its errors to the server, which is the side under test.
            let _ = self.deliver_to_client();
        }
    }

    pub(super) fn settle(&mut self) -> TlsProgress {
        self.try_settle().unwrap()
    }

    /// The alert at the end of what is on the way to the client, if it is a plain one.
    pub(super) fn alert_to_client(&self) -> Option<AlertDescription> {
        match self.to_client.last_chunk::<7>()? {
            [21, 3, _, 0, 2, 2, description] => Some(AlertDescription::from(*description)),
            _ => None,
        }
    }
}

/// One plain record.
pub(super) fn record(content_type: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[content_type, 3, 1], &length[..], payload].concat()
}

/// The same records with at most `piece` bytes in each.
pub(super) fn cut_records(stream: &[u8], piece: usize) -> Vec<u8> {
    let mut cut = Vec::new();
    let mut left = stream;
    while let Some((&[content_type, _, _, high, low], rest)) = left.split_first_chunk::<5>() {
        let (payload, rest) = rest.split_at(usize::from(u16::from_be_bytes([high, low])));
        cut.extend(payload.chunks(piece).flat_map(|piece| record(content_type, piece)));
        left = rest;
    }
    cut
}
