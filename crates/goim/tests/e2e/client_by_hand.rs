//! The client that README shows, written in another language without a library, against the real
//! binary.

use std::process::Command;

use crate::harness::child::Process;
use crate::harness::{Settings, Transport};

#[test]
fn a_client_of_plain_sockets_gets_everything() {
    let process = Process::start(&Settings::new());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/socket-check.py");
    let port = |transport| process.server.client_addr(transport).port().to_string();
    let output = Command::new("python3")
        .arg(script)
        .args(["--tcp", &port(Transport::Tcp), "--websocket", &port(Transport::Ws)])
        .args(["--http", &process.server.addrs.http.port().to_string()])
        .output()
        .expect("python3 is installed");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
}
