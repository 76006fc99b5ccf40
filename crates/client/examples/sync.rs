//! Receives the stored messages of a member's inbox and of a room, in order and once.
//!
//! The positions are in a file: stop the program, store messages meanwhile, and start it again.
//!
//! ```text
//! cargo run -p goim-client --example sync -- tcp://127.0.0.1:3101 123 positions.json live://1000
//! curl -d hello 'http://127.0.0.1:3111/goim/push/mids?operation=1000&mids=123&delivery=stored'
//! ```
//!
//! The server needs timelines: `goim serve --set timelines.folder=FOLDER`. It stops at end of input
//! (Ctrl-D).

use std::error::Error;
use std::io::Write as _;

use goim_client::{Client, ClientConfig, Endpoint, Event, FilePositions, Identity, SyncConfig};
use tokio::io::AsyncReadExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint: Endpoint = arguments.next().as_deref().unwrap_or("tcp://127.0.0.1:3101").parse()?;
    let mid: i64 = arguments.next().as_deref().unwrap_or("123").parse()?;
    let positions = FilePositions::open(arguments.next().as_deref().unwrap_or("positions.json")).await?;
    let room = arguments.next();

    let mut config = ClientConfig::new(endpoint, Identity::new(mid));
    config.sync = Some(SyncConfig::new([format!("mid://{mid}")], positions));
    let (client, mut events) = Client::connect(config).await?;
    if let Some(room) = room {
        // The server notifies only the sessions in the room.
        client.join_rooms([&room]).await?;
        client.subscribe_timeline(room).await?;
    }

    let mut input = tokio::io::stdin();
    let mut buffer = [0; 256];
    loop {
        // `recv` first saves the position of the messages that were printed before.
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => show(event)?,
                None => return Ok(()),
            },
            read = input.read(&mut buffer) => if read? == 0 { break },
        }
    }
    // Without this, the last messages would be received again after a restart.
    events.save_position().await.map_err(|error| error.to_string())?;
    client.close().await;
    Ok(())
}

fn show(event: Event) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    match event {
        Event::Messages { timeline, messages, .. } => {
            for message in messages {
                let body = message.body.unwrap_or_default();
                writeln!(out, "{timeline} {}: {}", message.seq, String::from_utf8_lossy(&body))?;
            }
        }
        Event::Gap { timeline, position } => {
            writeln!(out, "{timeline}: messages up to {} are no longer stored", position.seq)?;
        }
        Event::PositionNotSaved { timeline, error, .. } => {
            writeln!(out, "{timeline}: position not saved: {error}")?;
        }
        Event::Connected { endpoint, .. } => writeln!(out, "connected to {endpoint}")?,
        Event::Disconnected { reason, .. } => writeln!(out, "disconnected: {reason}")?,
        _ => {}
    }
    Ok(())
}
