//! `goim connect` and `goim push`, against a server and against a port without one.

use std::io::Write;
use std::process::{Child, Stdio};

use super::binary::{Lines, Serving, check_refused, goim, run};

/// A `goim connect` with its output line by line.
struct Connected {
    child: Child,
    out: Lines,
}

impl Connected {
    fn start(url: &str, more: &[&str]) -> Self {
        let mut command = goim(&[&["connect", "--url", url], more].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = Lines::of(child.stderr.take().unwrap());
        let out = Lines::of(child.stdout.take().unwrap());
        let connected = Self { child, out };
        let line = errors.next();
        assert!(line.starts_with("connected to "), "{line}");
        connected
    }

    fn types(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    #[track_caller]
    fn shows(&self) -> String {
        self.out.next()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn connects_sends_and_shows_what_is_pushed() {
    let serving = Serving::start(&[], &[]);
    let clients = serving.printed.lines().find(|line| line.contains("clients")).unwrap();
    for scheme in ["tcp://", "ws://"] {
        let url = clients.split_whitespace().find(|notification| notification.starts_with(scheme)).unwrap();
        let room = format!("test{}", scheme.trim_end_matches("://"));
        let mut client =
            Connected::start(url, &["--room", &format!("{room}://1"), "--key", &room, "--accepts", "1000"]);
        let push = |target: &[&str], body: &str| {
            let output = run(&[&["push"], target, &["--body", body, "--server", serving.api()]].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        };
        push(&["room", &format!("{room}://1")], "to the room");
        assert_eq!(client.shows(), "push  op=1000  to the room");
        push(&["keys", &room], "to the key");
        assert_eq!(client.shows(), "push  op=1000  to the key");
        // The reply to a packet sent after a change follows the change.
        client.types(&format!("/room {room}://2"));
        client.types("/sub 1001");
        client.types("/unsub 1000");
        client.types("/send 1002 question");
        assert_eq!(client.shows(), "reply op=1002");
        client.types("plain");
        assert_eq!(client.shows(), "reply op=4");
        push(&["room", &format!("{room}://1")], "not seen");
        push(&["keys", &room, "--operation", "1000"], "not wanted");
        push(&["keys", &room, "--operation", "1001"], "\u{1b}[31m");
        assert_eq!(client.shows(), "push  op=1001  0x1b5b33316d");
        client.types("/quit");
        assert_eq!(client.child.wait().unwrap().code(), Some(0), "{scheme}");
    }
}

#[test]
fn a_pipe_ends_the_client_when_it_has_its_reply() {
    let serving = Serving::start(&[], &[]);
    let clients = serving.printed.lines().find(|line| line.contains("clients")).unwrap();
    let url = clients.split_whitespace().find(|notification| notification.starts_with("tcp://")).unwrap();
    let mut client = goim(&["connect", "--url", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"/send 1000 one\n/hex 1001 00ff\n/nonsense\n").unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reply op=1000\nreply op=1001\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no command /nonsense"), "{output:?}");
}

#[test]
fn no_server_is_exit_code_69() {
    // A port that the system never assigns.
    let server = "http://127.0.0.1:1";
    check_refused(
        &["push", "room", "live://1", "--body", "x", "--server", server],
        69,
        &[server, "goim serve"],
    );
}
