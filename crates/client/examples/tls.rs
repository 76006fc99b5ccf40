//! Connects over TLS, directly or by the node list.
//!
//! ```text
//! cargo run -p goim-client --example tls -- wss://127.0.0.1:3103 ca.pem 123
//! cargo run -p goim-client --example tls -- https://goim.example.org ca.pem 123
//! ```
//!
//! Without a certificate file (`-`), the certificates of the system are trusted. A server for a
//! test: `goim serve --set comet.listen.tls=127.0.0.1:3103 --set comet.tls.certificate=cert.pem
//! ...`.

use std::error::Error;
use std::io::Write as _;

use goim_client::{Client, ClientConfig, Endpoint, Event, Identity, NodeSource, Scheme, Target, TlsRoots};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "wss://127.0.0.1:3103".to_owned());
    let roots = match arguments.next().as_deref() {
        None | Some("-") => TlsRoots::System,
        Some(path) => TlsRoots::Pem(std::fs::read(path)?),
    };
    let mid = arguments.next().as_deref().unwrap_or("123").parse()?;
    // An HTTP address is that of a node list.
    let target: Target = if url.starts_with("http") {
        NodeSource::new(url, Scheme::Wss).into()
    } else {
        url.parse::<Endpoint>()?.into()
    };

    let mut config = ClientConfig::new(target, Identity::new(mid).accepts([1000]));
    config.tls_roots = roots;
    let (client, mut events) = Client::connect(config).await?;
    if let Some(Event::Connected { endpoint, reply }) = events.recv().await {
        let mut out = std::io::stdout();
        writeln!(out, "connected to {endpoint}, session {}", reply.key.unwrap_or_default())?;
        writeln!(out, "{} online", client.heartbeat().await?)?;
    }
    client.close().await;
    Ok(())
}
