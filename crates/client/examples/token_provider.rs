//! Authenticates with tokens that expire, and stays connected across their expiry.
//!
//! The token is read from a file that another process keeps current, as a login agent or a mounted
//! secret does. An application would request it from its own login service at the same places.
//!
//! ```text
//! cargo run -p goim-client --example token_provider -- tls://127.0.0.1:3103 token.jwt ca.pem
//! ```
//!
//! `examples/login` has a login service that issues such tokens.

use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use goim_client::{Client, ClientConfig, Endpoint, Event, Identity, ProviderError, TlsRoots, TokenProvider};

/// How long before the expiry of a token the next one is presented.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

async fn read_token(path: PathBuf) -> Result<String, ProviderError> {
    let token = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await??;
    Ok(token.trim().to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint: Endpoint = arguments.next().as_deref().unwrap_or("tls://127.0.0.1:3103").parse()?;
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| "token.jwt".to_owned()));
    let ca = arguments.next();

    let provider = {
        let path = path.clone();
        // Called for the first connection, and whenever the server refuses the last token.
        TokenProvider::new(move |_reason| {
            let path = path.clone();
            async move {
                let token = read_token(path).await?;
                // The token contains the member; 0 lets the server take it from there.
                Ok(Identity::new(0).token(token).accepts([1000]).into())
            }
        })
    };
    let mut config = ClientConfig::new(endpoint, provider);
    if let Some(ca) = ca {
        config.tls_roots = TlsRoots::Pem(std::fs::read(ca)?);
    }
    let (client, mut events) = Client::connect(config).await?;

    let mut out = std::io::stdout();
    let mut renew_at = None;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                None => return Ok(()),
                Some(Event::Connected { reply, .. }) => {
                    writeln!(out, "member {}", reply.mid.unwrap_or_default())?;
                    renew_at = reply.expires_at;
                }
                Some(Event::Push(push)) => writeln!(out, "{}", String::from_utf8_lossy(&push.body))?,
                Some(Event::Disconnected { reason, retry_in }) => {
                    writeln!(out, "disconnected: {reason}; next attempt in {retry_in:?}")?;
                }
                Some(_) => {}
            },
            // The present session keeps going with the new token; without it, the server would end
            // the session at the expiry and the client would reconnect.
            () = wait_until(renew_at), if renew_at.is_some() => {
                renew_at = None;
                renew(&client, &path).await?;
                writeln!(out, "token renewed")?;
            }
        }
    }
}

async fn wait_until(expiry: Option<SystemTime>) {
    let left = expiry.and_then(|expiry| expiry.duration_since(SystemTime::now()).ok());
    tokio::time::sleep(left.unwrap_or_default().saturating_sub(RENEW_BEFORE)).await;
}

async fn renew(client: &Client, path: &Path) -> Result<(), Box<dyn Error>> {
    let token = read_token(path.to_owned()).await.map_err(|error| error.to_string())?;
    client.refresh_token(token).await?;
    Ok(())
}
