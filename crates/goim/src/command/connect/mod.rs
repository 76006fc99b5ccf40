//! `goim connect`: a client in the terminal, and in a pipe.
//!
//! Pushes and replies are printed to standard output; the state of the connection and input errors
//! to standard error. Lines are executed in the order of the input, while pushes continue to be
//! printed.

mod line;
mod show;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use goim_client::{
    Auth, Client, ClientConfig, ConnectError, Endpoint, Event, Events, Identity, Operation, TlsRoots, Token,
};
use tokio::sync::mpsc;

use super::{Failure, print};
use line::Line;

/// The maximum number of lines that wait for execution. Further ones stay in the pipe.
const LINES_MAX: usize = 16;

/// Exit status: 0 ended on request, 1 ended by the server permanently, 64 wrong arguments, 69
/// server not reached.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The server: tcp://, ws://, tls:// or wss://, host, port; ports and the path /sub may be left
    /// out
    #[arg(long, default_value = "tcp://127.0.0.1:3101", value_name = "URL")]
    url: Endpoint,
    /// The member; 0 is anonymous
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "NUMBER")]
    mid: i64,
    /// Key of this session, for pushes by key; by default the server generates one
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// The room to join, as type://room
    #[arg(long, value_name = "ROOM")]
    room: Option<String>,
    /// Operations to accept from pushes by key, by member and to all, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000",
        allow_negative_numbers = true,
        value_name = "LIST"
    )]
    accepts: Vec<i32>,
    /// The client's platform, such as web
    #[arg(long, value_name = "TEXT")]
    platform: Option<String>,
    /// The whole body of the auth packet, instead of --mid, --key, --room, --accepts and --platform
    #[arg(long, conflicts_with_all = ["mid", "key", "room", "accepts", "platform"], value_name = "JSON")]
    token: Option<String>,
    /// Certificates to trust for tls:// and wss:// instead of the system's, a PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print all bodies as hexadecimal digits; by default only those that are not text
    #[arg(long)]
    hex: bool,
    /// End after this many pushes, even if the input continues
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Continue after the end of the input, until interrupted
    #[arg(long)]
    stay: bool,
}

const AFTER_HELP: &str = "\
Each line of input is sent; /help lists the commands.

Examples:
  goim connect --room live://1000 --mid 17
  goim connect --url ws://push.example --key phone-1 --accepts 1000,1001
  goim connect --token '{\"mid\":17,\"key\":\"phone-1\",\"accepts\":[1000]}'
  echo '/send 1000 hello' | goim connect --url ws://127.0.0.1
  goim connect --room live://1000 --count 1 < /dev/null";

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = config(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(talk(config, arguments));
    // The thread that reads the input may be blocked.
    runtime.shutdown_background();
    result
}

fn config(arguments: &Arguments) -> Result<ClientConfig, Failure> {
    let auth = match &arguments.token {
        Some(token) => Auth::from(Token::new(token.clone())),
        None => {
            let mut identity = Identity::new(arguments.mid).accepts(arguments.accepts.iter().copied());
            identity.key.clone_from(&arguments.key);
            identity.room_id.clone_from(&arguments.room);
            identity.platform.clone_from(&arguments.platform);
            identity.into()
        }
    };
    let mut config = ClientConfig::new(arguments.url.clone(), auth);
    if let Some(path) = &arguments.ca {
        let pem = std::fs::read(path)
            .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
        config.tls_roots = TlsRoots::Pem(pem);
    }
    Ok(config)
}

async fn talk(config: ClientConfig, arguments: &Arguments) -> Result<(), Failure> {
    let (client, events) = Client::connect(config).await.map_err(|error| match error {
        ConnectError::Config(_) | ConnectError::TokenTooLong { .. } => Failure::usage(error.to_string()),
        ConnectError::Refused { .. } => Failure::new(error.to_string()),
        error if error.to_string().contains("certificate") => {
            Failure::unavailable(format!("{error}; --ca names the authority to trust"))
        }
        _ => Failure::unavailable(format!("{error}; is `goim serve` running there?")),
    })?;
    let stays = arguments.stay || arguments.count.is_some();
    let result = tokio::select! {
        shown = show_events(events, arguments) => shown,
        typed = execute_input(&client, arguments.hex, stays) => typed,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    client.close().await;
    result
}

/// Prints events until there were enough or the client has stopped permanently.
async fn show_events(mut events: Events, arguments: &Arguments) -> Result<(), Failure> {
    let mut left = arguments.count;
    while let Some(event) = events.recv().await {
        match event {
            Event::Push(push) => {
                let body = show::body(&push.body, arguments.hex);
                print(&format!("push  op={}  {body}\n", push.operation))?;
                left = left.map(|left| left.saturating_sub(1));
                if left == Some(0) {
                    return Ok(());
                }
            }
            Event::MemberMessage { timeline, message } => {
                let body = show::body(&message.body.unwrap_or_default(), arguments.hex);
                let (op, sender) = (message.operation, message.sender);
                print(&format!("push  op={op} from={sender} to={timeline}  {body}\n"))?;
                left = left.map(|left| left.saturating_sub(1));
                if left == Some(0) {
                    return Ok(());
                }
            }
            Event::Connected { endpoint, reply } => {
                let key = reply.key.map(|key| format!(", key {key}")).unwrap_or_default();
                note(&format!("connected to {endpoint}{key}"));
            }
            Event::Online(count) => note(&format!("{count} online in the room")),
            Event::Disconnected { reason, retry_in: Some(delay) } => {
                note(&format!("disconnected: {reason}; retrying in {:.1} s", delay.as_secs_f32()));
            }
            Event::Disconnected { reason, retry_in: None } => {
                return Err(Failure::new(format!("disconnected permanently: {reason}")));
            }
            Event::ConnectFailed { error, retry_in: Some(delay) } => {
                note(&format!("cannot connect: {error}; retrying in {:.1} s", delay.as_secs_f32()));
            }
            Event::ConnectFailed { error, retry_in: None } => {
                return Err(Failure::new(format!("cannot connect: {error}")));
            }
            // Later versions of the client may have more events.
            other => note(&format!("{other:?}")),
        }
    }
    Ok(())
}

/// Executes the input line by line until it ends.
async fn execute_input(client: &Client, hex: bool, stays: bool) -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        note("type to send, /help for commands, /quit to end");
    }
    let mut lines = read_lines();
    while let Some(line) = lines.recv().await {
        let done = match line::read(&line) {
            Err(error) => Err(error),
            Ok(Line::Quit) => return Ok(()),
            Ok(line) => execute(client, line, hex).await?,
        };
        if let Err(error) = done {
            note(&error);
        }
    }
    if stays { std::future::pending().await } else { Ok(()) }
}

/// Executes one line. The inner error concerns this line only.
async fn execute(client: &Client, line: Line, hex: bool) -> Result<Result<(), String>, Failure> {
    let list = |operations: &[i32]| operations.iter().copied().map(Operation).collect::<Vec<_>>();
    Ok(match line {
        Line::Empty | Line::Quit => Ok(()),
        Line::Help => {
            note(line::HELP.trim_end());
            Ok(())
        }
        Line::Send { operation, body } => match client.send(Operation(operation), body).await {
            Ok(reply) if reply.is_empty() => {
                print(&format!("reply op={operation}\n"))?;
                Ok(())
            }
            Ok(reply) => {
                print(&format!("reply op={operation}  {}\n", show::body(&reply, hex)))?;
                Ok(())
            }
            Err(error) => Err(format!("not sent: {error}")),
        },
        Line::Room(Some(room)) => {
            let changed = client.change_room(room.clone()).await;
            changed.map(|()| note(&format!("in room {room}"))).map_err(|error| error.to_string())
        }
        Line::Room(None) => {
            client.leave_room().await.map(|()| note("in no room")).map_err(|error| error.to_string())
        }
        Line::Subscribe(operations) => {
            let changed = client.subscribe(&list(&operations)).await;
            changed
                .map(|()| note(&format!("subscribed to {operations:?}")))
                .map_err(|error| error.to_string())
        }
        Line::Unsubscribe(operations) => {
            let changed = client.unsubscribe(&list(&operations)).await;
            changed
                .map(|()| note(&format!("unsubscribed from {operations:?}")))
                .map_err(|error| error.to_string())
        }
    })
}

/// Lines of standard input, read on a separate thread because reading blocks.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n') {
            let Ok(line) = line else { break };
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    lines
}

/// Prints to standard error. Errors are ignored, because they do not affect the session.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
