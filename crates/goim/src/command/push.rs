//! `goim push`: one push through the HTTP API, as a backend sends it.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use goim_ports::HttpResponse;

use super::{Failure, print};
use crate::environment;
use crate::http_client::{Request, RequestError, escape};

/// The maximum time for the response. It is longer than the server's own timeout for a push, so
/// that its response is seen.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Exit status: 0 accepted, 1 rejected, 64 wrong arguments, 69 server not reached. Accepted means
/// that the message is in the push log, not that a client has received it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    target: Target,
    /// The HTTP API
    #[arg(
        long,
        global = true,
        default_value = "http://127.0.0.1:3111",
        env = environment::SERVER,
        value_name = "URL"
    )]
    server: String,
    /// API key, if the server requires one
    #[arg(long, global = true, env = environment::API_KEY, hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Operation of the packet; pushes by key, by member and to all reach only sessions that accept
    /// it
    #[arg(long, global = true, default_value_t = 1000, allow_negative_numbers = true, value_name = "NUMBER")]
    operation: i32,
    /// The message; without this and --file it is read from standard input
    #[arg(long, global = true, conflicts_with = "file", value_name = "TEXT")]
    body: Option<String>,
    /// A file with the message; `-` is standard input
    #[arg(long, global = true, value_name = "FILE")]
    file: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  goim push room live://1000 --body hello
  goim push keys phone-of-anna laptop-of-anna --operation 1001 --body hello
  goim push mids 17 42 --file message.json
  echo hello | goim push all --speed 1000";

#[derive(Debug, Subcommand)]
enum Target {
    /// To sessions, by their keys
    Keys {
        /// The sessions
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// To all sessions of members
    Mids {
        /// The members
        #[arg(required = true, value_name = "MID", allow_negative_numbers = true)]
        mids: Vec<i64>,
    },
    /// To all sessions in a room
    Room {
        /// The room, as type://room
        #[arg(value_name = "TYPE://ROOM")]
        room: String,
    },
    /// To every session
    All {
        /// Sessions per second; by default as fast as possible
        #[arg(long, value_name = "NUMBER")]
        speed: Option<u32>,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = path(&arguments.target, arguments.operation)?;
    let body = body(arguments)?;
    let mut headers = Vec::new();
    if let Some(key) = &arguments.api_key {
        headers.push(("authorization", format!("Bearer {key}")));
    }
    let request = Request { server: &arguments.server, path: &path, headers, body, timeout: TIMEOUT };
    let response = request.post().map_err(|error| match error {
        RequestError::Url(_) => Failure::usage(error.to_string()),
        _ => Failure::unavailable(error.to_string()),
    })?;
    accepted(&response)?;
    print("accepted\n")
}

/// The request target of this push.
fn path(target: &Target, operation: i32) -> Result<String, Failure> {
    let list = |name: &str, values: &mut dyn Iterator<Item = String>| -> String {
        values.map(|value| format!("&{name}={}", escape(&value))).collect()
    };
    Ok(match target {
        Target::Keys { keys } => {
            format!("/goim/push/keys?operation={operation}{}", list("keys", &mut keys.iter().cloned()))
        }
        Target::Mids { mids } => {
            format!(
                "/goim/push/mids?operation={operation}{}",
                list("mids", &mut mids.iter().map(i64::to_string))
            )
        }
        Target::Room { room } => {
            let (kind, room) = room
                .split_once("://")
                .filter(|(kind, room)| !kind.is_empty() && !room.is_empty())
                .ok_or_else(|| {
                    Failure::usage(format!(
                        "{room:?} is not a room: it must be type://room, such as live://1000"
                    ))
                })?;
            format!("/goim/push/room?operation={operation}&type={}&room={}", escape(kind), escape(room))
        }
        Target::All { speed } => {
            let speed = speed.map(|speed| format!("&speed={speed}")).unwrap_or_default();
            format!("/goim/push/all?operation={operation}{speed}")
        }
    })
}

fn body(arguments: &Arguments) -> Result<Vec<u8>, Failure> {
    if let Some(text) = &arguments.body {
        return Ok(text.clone().into_bytes());
    }
    if let Some(path) = arguments.file.as_ref().filter(|path| path.as_os_str() != "-") {
        return std::fs::read(path)
            .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())));
    }
    if io::stdin().is_terminal() {
        return Err(Failure::usage("no message: give --body TEXT or --file FILE, or pipe it in"));
    }
    let mut body = Vec::new();
    io::stdin()
        .read_to_end(&mut body)
        .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
    Ok(body)
}

/// Reads the envelope of the response: `{"code":0,"message":""}` means accepted.
fn accepted(response: &HttpResponse) -> Result<(), Failure> {
    let envelope: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
    let field = |name: &str| envelope.as_ref().and_then(|envelope| envelope.get(name));
    let code = field("code").and_then(serde_json::Value::as_i64);
    let message = field("message").and_then(serde_json::Value::as_str).unwrap_or_default();
    match (response.status, code) {
        (200, Some(0)) => Ok(()),
        (_, Some(code)) if !message.is_empty() => {
            Err(Failure::new(format!("rejected: {message} (code {code})")))
        }
        (_, Some(code)) => Err(Failure::new(format!("rejected with code {code} and no reason"))),
        (status, None) => {
            let text = String::from_utf8_lossy(&response.body);
            let text: String = text.trim().chars().take(200).collect();
            Err(Failure::new(format!("not a response of a goim push API: status {status}, {text:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_become_paths() {
        let check = |target: Target, expect: &str| assert_eq!(path(&target, 1000).unwrap(), expect);
        check(
            Target::Keys { keys: vec!["a b".into(), "ü&c".into()] },
            "/goim/push/keys?operation=1000&keys=a%20b&keys=%C3%BC%26c",
        );
        check(Target::Mids { mids: vec![1, -2] }, "/goim/push/mids?operation=1000&mids=1&mids=-2");
        check(
            Target::Room { room: "live://1/2".into() },
            "/goim/push/room?operation=1000&type=live&room=1%2F2",
        );
        check(Target::All { speed: None }, "/goim/push/all?operation=1000");
        check(Target::All { speed: Some(64) }, "/goim/push/all?operation=1000&speed=64");
        for wrong in ["live", "://1", "live://"] {
            assert_eq!(
                path(&Target::Room { room: wrong.into() }, 1).unwrap_err().code,
                Failure::USAGE,
                "{wrong}"
            );
        }
    }

    #[test]
    fn responses_are_distinguished() {
        let check = |status: u16, body: &str, expect: &str| {
            let response = HttpResponse { status, body: body.to_owned().into() };
            let text = accepted(&response).err().map(|failure| failure.text).unwrap_or_default();
            assert!(
                text.contains(expect) && text.is_empty() == expect.is_empty(),
                "{status} {body}: {text:?}"
            );
        };
        check(200, r#"{"code":0,"message":""}"#, "");
        check(200, r#"{"code":-400,"message":""}"#, "rejected with code -400");
        check(400, r#"{"code":-400,"message":"bad op"}"#, "rejected: bad op (code -400)");
        check(404, "404 page not found", "status 404, \"404 page not found\"");
        check(200, "<html>", "not a response of a goim push API");
    }
}
