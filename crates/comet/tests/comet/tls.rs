//! TLS on a running comet: both transports, a client that does not use TLS, a certificate that is
//! replaced while running.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{Server, packet, start};
use goim_comet::{ListenerKind, TlsConfig};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A temporary folder with a certificate for `localhost` and its key.
struct Files {
    folder: PathBuf,
}

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("goim-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a new pair and returns what clients must trust to accept it.
    fn write(&self) -> RootCertStore {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write(&self.path("key.pem"), &made.signing_key.serialize_pem());
        write(&self.path("cert.pem"), &made.cert.pem());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        roots
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

fn server(files: &Files) -> Server {
    start(|config| {
        let free = "127.0.0.1:0".parse().unwrap();
        config.listen.addrs[ListenerKind::TcpTls] = vec![free];
        config.listen.addrs[ListenerKind::WebsocketTls] = vec![free];
        config.tls = TlsConfig::new(files.path("cert.pem"), files.path("key.pem"));
    })
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn connect(addr: std::net::SocketAddr, roots: &RootCertStore) -> Stream {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    StreamOwned::new(connection, socket)
}

fn read(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn packets_over_tls_and_frames_over_tls() {
    let files = Files::new("both");
    let roots = files.write();
    let server = server(&files);
    let mut tcp = connect(server.comet.addrs()[ListenerKind::TcpTls][0], &roots);
    tcp.write_all(&[packet(7, 1, b"a"), packet(2, 2, b"")].concat()).unwrap();
    assert_eq!(read(&mut tcp, 36), [packet(8, 1, b""), packet(3, 2, &[0; 4])].concat());
    // More than a record, more than the socket takes at once.
    let big = vec![7; 3_000_000];
    server.push(&["a"], 1000, &big);
    server.push(&["a"], 1000, b"after");
    assert_eq!(read(&mut tcp, 3_000_016), packet(1000, 0, &big));
    assert_eq!(read(&mut tcp, 21), packet(1000, 0, b"after"));

    let mut ws = connect(server.comet.addrs()[ListenerKind::WebsocketTls][0], &roots);
    ws.write_all(
        b"GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    )
    .unwrap();
    assert!(read(&mut ws, 129).ends_with(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
    ws.write_all(&[&[0x82, 17][..], &packet(7, 1, b"b")].concat()).unwrap();
    assert_eq!(read(&mut ws, 18), [&[0x82, 16][..], &packet(8, 1, b"")].concat());
    assert_eq!(server.metric("goim_comet_connections{transport=\"tls\"}"), 1);
    assert_eq!(server.metric("goim_comet_connections{transport=\"wss\"}"), 1);

    // A client that sends `close_notify` and leaves its TCP stream open is closed.
    tcp.conn.send_close_notify();
    tcp.flush().unwrap();
    crate::harness::eventually("the session has ended", || {
        !server.world.directory.lock().unwrap().contains_key("a")
    });
}

#[test]
fn a_client_that_does_not_use_tls_is_answered_and_counted() {
    let files = Files::new("plain");
    files.write();
    let server = server(&files);
    let mut plain = TcpStream::connect(server.comet.addrs()[ListenerKind::WebsocketTls][0]).unwrap();
    plain.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    plain.write_all(b"GET /sub HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.metric("goim_comet_connections_closed_total{reason=\"bad_tls\"}"), 1);
}

#[test]
fn a_new_certificate_is_for_new_connections_and_a_bad_one_changes_nothing() {
    let files = Files::new("reload");
    let old_roots = files.write();
    let server = server(&files);
    let addr = server.comet.addrs()[ListenerKind::TcpTls][0];
    let mut old = connect(addr, &old_roots);
    old.write_all(&packet(7, 1, b"old")).unwrap();
    read(&mut old, 16);

    // Some file systems have timestamps of a hundredth of a second.
    std::thread::sleep(Duration::from_millis(20));
    let new_roots = files.write();
    assert!(server.comet.reload_certificate().unwrap());
    let mut new = connect(addr, &new_roots);
    new.write_all(&packet(7, 1, b"new")).unwrap();
    read(&mut new, 16);
    old.write_all(&packet(2, 2, b"")).unwrap();
    read(&mut old, 20);

    std::thread::sleep(Duration::from_millis(20));
    write(&files.path("key.pem"), "no key");
    let error = server.comet.reload_certificate().unwrap_err().to_string();
    assert!(error.contains("key.pem"), "{error}");
    connect(addr, &new_roots).write_all(&packet(7, 1, b"newer")).unwrap();
}
