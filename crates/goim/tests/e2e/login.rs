//! The login of `examples/login`, from the password to the push: a real HTTPS server, real tokens,
//! a real session.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::{BOTH, Client, Packet, Server, Settings, eventually, unique};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

const SECRET: &str = "a secret for this test only and 32 bytes long";
const PASSWORD: &str = "correct horse";

/// The backend system, ended with the test.
struct Login {
    folder: PathBuf,
    child: Child,
    url: String,
}

fn script() -> Command {
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/login/login.py"));
    command
}

impl Login {
    fn start(server: &Server, lifetime: u32) -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-login-{}", std::process::id())));
        std::fs::create_dir_all(&folder).unwrap();
        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(folder.join("tls.crt"), pair.cert.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
        let mut add = script()
            .current_dir(&folder)
            .args(["add", "alice", "--mid", "4711", "--allow", "live://*"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3, which the example is for");
        writeln!(add.stdin.take().unwrap(), "{PASSWORD}").unwrap();
        assert!(add.wait().unwrap().success());
        let mut child = script()
            .current_dir(&folder)
            .env("LOGIN_TOKEN_SECRET", SECRET)
            .args(["serve", "--listen", "127.0.0.1:0", "--cert", "tls.crt", "--key", "tls.key"])
            .args(["--goim", &format!("http://{}", server.addrs.http), "--lifetime", &lifetime.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("login at ").expect("where it listens").to_owned();
        Self { folder, child, url }
    }

    /// The status of the answer, and its JSON.
    fn post(&self, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
            "--cacert",
        ]);
        curl.arg(self.folder.join("tls.crt")).args(["--data", &body.to_string()]);
        if let Some(token) = token {
            curl.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        let output = curl.arg(format!("{}{path}", self.url)).output().expect("curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    fn token(&self) -> String {
        let (status, body) = self.post("/login", None, &json!({ "user": "alice", "password": PASSWORD }));
        assert_eq!((status, &body["mid"]), (200, &json!(4711)), "{body}");
        body["token"].as_str().unwrap().to_owned()
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn server() -> Server {
    Server::start(
        &Settings::new()
            .set("logic.identity.method", "jwt")
            .set("logic.identity.jwt.secrets", SECRET)
            .set("logic.identity.jwt.audience", "chat")
            .set("logic.identity.jwt.leeway", "0s"),
    )
}

#[test]
fn from_the_login_to_the_push() {
    let server = server();
    let login = Login::start(&server, 600);
    for (body, expected) in [
        (json!({ "user": "alice", "password": "wrong" }), 401),
        (json!({ "user": "nobody", "password": PASSWORD }), 401),
        (json!({ "user": "alice" }), 400),
        (json!([]), 400),
    ] {
        assert_eq!(login.post("/login", None, &body).0, expected, "{body}");
    }
    let token = login.token();
    for transport in BOTH {
        let room = unique("live://r");
        let present = |token: &str, room: &str| {
            let body = json!({ "token": token, "room_id": room, "protover": 1 });
            Client::present(&server, transport, body.to_string())
        };
        // Neither without a token, nor with one that was changed, nor in a room of others.
        for (token, room) in [("", room.as_str()), (&token.replace('.', "-"), &room), (&token, "secret://1")]
        {
            let (mut client, first) = present(token, room);
            let first = first.or_else(|| client.packet_or_end());
            assert_ne!(first.map(|packet| packet.op), Some(8), "{transport:?} {room}");
        }
        let (mut client, welcome) = present(&token, &room);
        let welcome = welcome.unwrap();
        assert_eq!(welcome.op, 8, "{welcome:?}");
        let printed = json!({ "room": room, "text": "hello" });
        assert_eq!(login.post("/push", None, &printed).0, 401);
        assert_eq!(login.post("/push", Some("x.y.z"), &printed).0, 401);
        assert_eq!(login.post("/push", Some(&token), &json!({ "room": "secret://1", "text": "x" })).0, 403);
        assert_eq!(login.post("/push", Some(&token), &printed), (200, json!({})));
        let pushed = client.pushed();
        let heard: Value = serde_json::from_slice(&pushed.body).unwrap();
        assert_eq!((pushed.op, heard), (1000, json!({ "from": 4711, "text": "hello" })));
        assert_eq!(login.post("/logout", Some(&token), &json!({})).0, 200);
        let notice: Value = serde_json::from_slice(&client.packet().body).unwrap();
        assert_eq!(notice["code"], json!(3208));
        client.rest();
    }
}

/// When a token ends, in seconds since 1970.
fn ends(token: &str) -> u64 {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["exp"].as_u64().unwrap()
}

#[test]
fn a_session_outlives_its_first_token() {
    let server = server();
    let login = Login::start(&server, 3);
    let auth = |token: String| json!({ "token": token, "protover": 1 }).to_string();
    let first = login.token();
    let (mut stays, _) = Client::present(&server, BOTH[0], auth(first.clone()));
    let (mut goes, _) = Client::present(&server, BOTH[1], auth(first.clone()));
    // A token for the same second is the same token.
    let mut renewed = first.clone();
    eventually("there is a token that ends later", || {
        let (status, body) = login.post("/refresh", Some(&renewed), &json!({}));
        assert_eq!(status, 200, "{body}");
        body["token"].as_str().unwrap().clone_into(&mut renewed);
        renewed != first
    });
    let end = ends(&renewed);
    assert_eq!(stays.ask(&Packet::new(30, 7, auth(renewed))).op, 31);
    let notice: Value = serde_json::from_slice(&goes.packet().body).unwrap();
    assert_eq!(notice["code"], json!(3201), "the first token has ended");
    let notice: Value = serde_json::from_slice(&stays.packet().body).unwrap();
    assert_eq!(notice["code"], json!(3201), "and the second");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now >= end && end > ends(&first), "the session has lasted to the end of its second token");
}
