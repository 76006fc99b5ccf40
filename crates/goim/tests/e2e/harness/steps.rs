//! Plays captured connections against a running server.

use std::time::Duration;

use super::capture::{Connection, Exchange, Request, Step, packets};
use super::client::{SWITCHED, UPGRADE};
use super::hex::show;
use super::{Client, DEADLINE, Server, Transport, hex};

/// How the answer to a captured connection differs from goim's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviation {
    /// The same packets in the same order, in batches of another size.
    Batches,
    /// At this step the bytes are others.
    Instead(usize, &'static str),
    /// Right after this step these bytes follow.
    Also(usize, &'static str),
    /// The connection is closed where goim continued at this step.
    Closes(usize),
    /// Both are right: what goim did, and closing at this step.
    MayClose(usize),
    /// goim closed at this step; here the connection lives on.
    LivesOn(usize),
    /// Before the end there may be a close frame.
    CloseFrame,
    /// Before the end there may be a response that states why the upgrade is refused.
    Refuses,
    /// The last packet was sent when the session had ended already.
    SentTooLate,
    /// The capture leaves out two requests that were made on one connection before this step.
    Pipelined(usize),
}

/// Connections that ran at the same time, each with what is different about it.
pub struct Group<'a> {
    /// The connections, in the order in which they were made.
    pub connections: Vec<(&'a Connection, Option<Deviation>)>,
    /// The answers of logic that were captured.
    pub exchanges: &'a [Exchange],
}

struct Player<'a> {
    connection: &'a Connection,
    deviation: Option<Deviation>,
    client: Client,
    /// The connection is a session; it answers operation 4.
    session: bool,
    next: usize,
}

impl Group<'_> {
    /// Plays all to the end.
    ///
    /// # Panics
    /// When something unexpected arrives.
    pub fn play(&self, server: &Server) {
        let mut players = Vec::new();
        for (connection, deviation) in &self.connections {
            let mut player = Player::start(server, connection, *deviation);
            player.advance();
            players.push(player);
        }
        // A request is a moment that all connections share: it waits for all that saw it. An end
        // that waits for what another connection does is played when no player can continue without
        // it.
        while players.iter().any(|player| !matches!(player.step(), None | Some(Step::Close))) {
            if let Some(player) = players.iter_mut().find(|player| player.step() == Some(&Step::Closed)) {
                player.closed();
            } else {
                let request =
                    players.iter().find_map(Player::request).expect("somebody waits for a request").clone();
                self.ask(server, &request);
                for player in players.iter_mut().filter(|player| player.request() == Some(&request)) {
                    player.next += 1;
                    player.after(player.next - 1);
                }
            }
            players.iter_mut().for_each(Player::advance);
        }
        // Connections that ran at the same time stay until the last has done all.
        players.iter_mut().for_each(Player::leave);
    }

    fn ask(&self, server: &Server, request: &Request) {
        let group = self.connections[0].0.group();
        let known =
            self.exchanges.iter().find(|known| known.name.starts_with(group) && known.request == *request);
        let headers: Vec<(&str, &str)> = known
            .iter()
            .flat_map(|known| &known.headers)
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let answer = server.request(&request.method, &request.target, &headers, &request.body);
        let (status, text) =
            known.map_or((200, r#"{"code":0,"message":""}"#), |known| (known.status, &known.answer));
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{group}: {}", request.target);
        for (connection, deviation) in &self.connections {
            if let Some(Deviation::Pipelined(step)) = deviation
                && connection.steps[*step] == Step::Http(request.clone())
            {
                let request = |body: &[u8]| super::http::compose("POST", &request.target, &[], body);
                let mut http = super::http::Http::connect(server.addrs.http);
                http.send(&[request(b"p1"), request(b"p2")].concat());
                assert_eq!([http.response(false).status, http.response(false).status], [200, 200]);
            }
        }
    }
}

impl<'a> Player<'a> {
    fn start(server: &Server, connection: &'a Connection, deviation: Option<Deviation>) -> Self {
        let mut client = Client::connect(server, connection.transport);
        if connection.upgraded {
            client.send_bytes(UPGRADE.as_bytes());
            client.expect_bytes(SWITCHED.as_bytes());
        }
        Self { connection, deviation, client, session: false, next: 0 }
    }

    fn step(&self) -> Option<&'a Step> {
        self.connection.steps.get(self.next)
    }

    fn request(&self) -> Option<&'a Request> {
        match self.step() {
            Some(Step::Http(request)) => Some(request),
            _ => None,
        }
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{}, step {}: {why}", self.connection.name, self.next)
    }

    /// Continues until a request or the end is next.
    fn advance(&mut self) {
        while let Some(step) = self.step() {
            if let Some(Deviation::Closes(at)) = self.deviation
                && at == self.next
            {
                return self.end(true);
            }
            match step {
                Step::Send(bytes) => {
                    if self.deviation == Some(Deviation::SentTooLate)
                        && self.next + 2 == self.connection.steps.len()
                    {
                        self.next += 1;
                        continue;
                    }
                    self.client.send_bytes(bytes);
                    // The client's side may have ended there: row 27 has a header cut off.
                    if matches!(self.connection.steps.get(self.next + 1), Some(Step::Closed))
                        && self.connection.row() == 27
                    {
                        self.client.finish();
                    }
                }
                Step::Receive(bytes) => {
                    if !self.receive(bytes) {
                        return;
                    }
                }
                Step::Close if self.next + 1 < self.connection.steps.len() => self.leave(),
                Step::Close => return,
                Step::Closed | Step::Http(_) => return,
            }
            self.next += 1;
            self.after(self.next - 1);
        }
    }

    /// Reads the bytes of a step. False when the connection ended instead, which may be right.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        match self.deviation {
            Some(Deviation::Instead(at, ours)) if at == self.next => self.client.expect_bytes(&hex(ours)),
            Some(Deviation::Batches) => {
                for packet in packets(bytes, self.connection.upgraded) {
                    let arrived = if packet.seq == 0 { self.client.pushed() } else { self.client.packet() };
                    assert_eq!(arrived, packet, "{}", self.connection.name);
                }
            }
            Some(Deviation::MayClose(at)) if at == self.next => {
                match self.client.rest_within(Duration::from_millis(500)) {
                    Some(rest) if rest == *bytes => {}
                    Some(rest) if is_refusal(&rest) || is_close_frame(&rest) => {
                        self.next = self.connection.steps.len();
                        self.session = false;
                        return false;
                    }
                    Some(rest) => self.fail(&format!("came {}", show(&rest))),
                    None => self.client.expect_bytes(bytes),
                }
            }
            _ => self.client.expect_bytes(bytes),
        }
        let reply = if self.connection.upgraded { bytes.get(2..) } else { Some(bytes) };
        self.session |= reply.is_some_and(|reply| reply.len() == 16 && reply[8..12] == [0, 0, 0, 8]);
        true
    }

    fn after(&mut self, step: usize) {
        if let Some(Deviation::Also(at, more)) = self.deviation
            && at == step
        {
            self.client.expect_bytes(&hex(more));
        }
    }

    /// The client's end: nothing may have arrived that the capture does not have.
    fn leave(&mut self) {
        if std::mem::take(&mut self.session) {
            self.client.expect_nothing();
        }
        self.client.stream().shutdown(std::net::Shutdown::Both).ok();
    }

    /// The server's end.
    fn closed(&mut self) {
        if self.deviation == Some(Deviation::LivesOn(self.next)) {
            self.client.expect_nothing();
        } else {
            self.end(false);
        }
        self.next += 1;
    }

    fn end(&mut self, final_step: bool) {
        let Some(rest) = self.client.rest_within(DEADLINE) else { self.fail("the connection is still open") };
        let polite = match self.deviation {
            Some(Deviation::CloseFrame | Deviation::Closes(_)) => {
                self.client.transport() == Transport::Ws && is_close_frame(&rest)
            }
            Some(Deviation::Refuses) => is_refusal(&rest),
            _ => false,
        };
        self.session = false;
        if !rest.is_empty() && !polite {
            self.fail(&format!("before the end came {}", show(&rest)));
        }
        if final_step {
            self.next = self.connection.steps.len();
        }
    }
}

fn is_close_frame(rest: &[u8]) -> bool {
    rest.is_empty() || rest.len() >= 2 && rest[0] == 0x88 && rest.len() == 2 + usize::from(rest[1])
}

fn is_refusal(rest: &[u8]) -> bool {
    let refusals = ["400", "404", "405", "426", "431", "505"];
    rest.is_empty()
        || refusals.iter().any(|status| rest.starts_with(format!("HTTP/1.1 {status} ").as_bytes()))
}
