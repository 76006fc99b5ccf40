//! A chat in the terminal: prints what the room receives and sends what is typed.
//!
//! ```text
//! cargo run -p goim-client --example chat -- tcp://127.0.0.1:3101 123 live://1000
//! ```
//!
//! Lines that start with a slash are commands: `/room live://2000`, `/leave`, `/online`, `/quit`.

use std::error::Error;
use std::io::Write as _;

use goim_client::{Client, ClientConfig, Endpoint, Event, Identity, Operation};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// The operation of chat messages.
const MESSAGE: Operation = Operation(1000);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint: Endpoint = arguments.next().as_deref().unwrap_or("tcp://127.0.0.1:3101").parse()?;
    let mid = arguments.next().as_deref().unwrap_or("123").parse()?;
    let room = arguments.next().unwrap_or_else(|| "live://1000".to_owned());
    let identity = Identity::new(mid).room(room).platform("chat").accepts([MESSAGE.0]);
    let (client, mut events) = Client::connect(ClientConfig::new(endpoint, identity)).await?;

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let typing = async {
        while let Some(line) = lines.next_line().await? {
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("/quit", _) => break,
                ("/leave", _) => client.leave_room().await?,
                ("/room", room) => client.change_room(room).await?,
                ("/online", _) => print(&format!("{} online", client.heartbeat().await?))?,
                _ => match client.send(MESSAGE, line).await {
                    Ok(_) => {}
                    Err(error) => print(&format!("not sent: {error}"))?,
                },
            }
        }
        client.close().await;
        Ok::<(), Box<dyn Error>>(())
    };
    // Receive events while requests wait for their replies.
    let listening = async {
        while let Some(event) = events.recv().await {
            match event {
                Event::Push(push) => print(&String::from_utf8_lossy(&push.body))?,
                Event::Connected { endpoint, .. } => print(&format!("connected to {endpoint}"))?,
                Event::Disconnected { reason, retry_in: Some(delay) } => {
                    print(&format!("disconnected: {reason}; next attempt in {delay:.1?}"))?;
                }
                Event::Disconnected { reason, retry_in: None } => print(&format!("disconnected: {reason}"))?,
                Event::ConnectFailed { error, .. } => print(&format!("not connected: {error}"))?,
                _ => {}
            }
        }
        Ok::<(), Box<dyn Error>>(())
    };
    tokio::select! {
        result = typing => result,
        result = listening => result,
    }
}

fn print(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}
