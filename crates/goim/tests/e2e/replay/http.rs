//! The captured requests to goim's logic, made to this server: the same answers are received,
//! except where the table below states a deviation.

use crate::harness::capture::{Exchange, exchanges, row};
use crate::harness::http::Response;
use crate::harness::{BOTH, Client, Server, Settings, Who, eventually};

/// What is compared of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Everything, and nothing else.
    Exact,
    /// Everything but the moment and the port, which are no constants.
    Instance,
    /// This status and this body instead.
    Instead(u16, &'static str),
    /// Status 400 without reading the body, where goim panics.
    Refusal,
    /// The redirection, or the answer of the path without the slash.
    Redirection,
}

/// Requests that are not made.
const SKIPPED: &[(&str, &str, &str)] = &[
    ("row 69", "", "there are two comets"),
    ("row 74", "", "another comet has reported rooms"),
    ("row 75", "", "another comet has reported rooms"),
    ("row 79", "", "there are two comets"),
    ("row 110", "", "Redis is down"),
    ("row 111", "", "Kafka is down"),
    ("row 115", "", "discovery was restarted"),
];

/// Requests that are answered differently from goim: the row, how the path begins, what is
/// expected, and why.
const DEVIATIONS: &[(&str, &str, Expect, &str)] = &[
    ("row 60", "/goim/online/top?type=live&limit=-1", Expect::Refusal, "fix: goim panics"),
    ("row 96", "", Expect::Redirection, "answering directly is fine"),
    (
        "row 98",
        "/goim/online/top?type=teb6a2&",
        Expect::Instead(200, EMPTY),
        "fix: a type is not the beginning of another",
    ),
    (
        "row 99",
        "",
        Expect::Instead(200, TOTAL),
        "the captured cluster had a second comet with one connection",
    ),
];

const EMPTY: &str = r#"{"code":0,"message":"","data":[]}"#;
const TOTAL: &str = r#"{"code":0,"message":"","data":{"conn_count":6,"ip_count":1}}"#;

fn expectation(exchange: &Exchange) -> Expect {
    let speaks =
        |(name, path): (&str, &str)| exchange.name == name && exchange.request.target.starts_with(path);
    if let Some((.., expect, _)) = DEVIATIONS.iter().find(|(name, path, ..)| speaks((name, path))) {
        return *expect;
    }
    if exchange.request.target == "/goim/nodes/instances" && !exchange.answer.ends_with(":null}") {
        return Expect::Instance;
    }
    Expect::Exact
}

/// The state of the captured cluster that the answers show: six sessions in three rooms of a type.
fn populated() -> (Server, Vec<Client>) {
    let server = Server::start(&Settings::new().set("logic.backoff.jitter", "0.3"));
    let sessions = ["a", "a", "a", "b", "b", "c"].into_iter().enumerate().map(|(nth, room)| {
        Client::login(&server, BOTH[nth % 2], &Who::new().accepts(&[]).room(&format!("teb6a23://{room}")))
    });
    let sessions = sessions.collect();
    eventually("all are counted", || server.get("/goim/online/total").text() == TOTAL);
    eventually("rooms are counted", || {
        server.get("/goim/online/room?type=teb6a23&rooms=a").json()["data"]["a"] == 3
    });
    (server, sessions)
}

#[test]
fn captured_requests_are_answered_as_by_goim() {
    let exchanges = exchanges();
    let (populated, _sessions) = populated();
    let empty = Server::start(&Settings::new().offline().set("logic.backoff.jitter", "0.3"));
    let (mut exact, mut deviating, mut skipped, mut failed) = (0, 0, 0, Vec::new());
    for exchange in &exchanges {
        if let Some((.., why)) = SKIPPED.iter().find(|(name, path, _)| {
            exchange.name.split(" tcp").next().unwrap().split(" ws").next().unwrap() == *name
                && exchange.request.target.starts_with(path)
        }) {
            eprintln!("skipped {} {}: {why}", exchange.name, exchange.request.target);
            skipped += 1;
            continue;
        }
        // Row 63 checks a cluster without comets, after a first check of one with a comet.
        let without_comets = row(&exchange.name) == 63 && !exchange.answer.contains("goim.comet");
        let server = if without_comets { &empty } else { &populated };
        let expect = expectation(exchange);
        match compare(server, exchange, expect) {
            Ok(()) if expect == Expect::Exact => exact += 1,
            Ok(()) => deviating += 1,
            Err(why) => failed.push(format!("{} {}: {why}", exchange.name, exchange.request.target)),
        }
    }
    eprintln!("{exact} answered exactly, {deviating} with a stated deviation, {skipped} skipped");
    assert_eq!(exact + deviating + skipped + failed.len(), exchanges.len(), "each is in one class");
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn compare(server: &Server, exchange: &Exchange, expect: Expect) -> Result<(), String> {
    let answer = ask(server, exchange, &exchange.request.target);
    let (status, text) = match expect {
        Expect::Exact => (exchange.status, exchange.answer.clone()),
        Expect::Instead(status, text) => (status, text.to_owned()),
        Expect::Refusal => return check(answer.status == 400, &answer),
        Expect::Instance => {
            let shown = |text: &str| instance(&serde_json::from_str(text).unwrap());
            return check(answer.status == 200 && shown(&answer.text()) == shown(&exchange.answer), &answer);
        }
        Expect::Redirection if answer.status != exchange.status => {
            let (path, query) =
                exchange.request.target.split_once("/?").unwrap_or((&exchange.request.target, ""));
            let direct = ask(server, exchange, &format!("{}?{query}", path.trim_end_matches('/')));
            return check((direct.status, &direct.body) == (answer.status, &answer.body), &answer);
        }
        Expect::Redirection => {
            let location = exchange.answer_headers.iter().find(|(name, _)| name == "location").unwrap();
            return check(answer.header("location") == Some(&location.1), &answer);
        }
    };
    check((answer.status, answer.text()) == (status, text), &answer)?;
    if expect == Expect::Exact {
        return content_type(exchange, &answer);
    }
    Ok(())
}

fn ask(server: &Server, exchange: &Exchange, target: &str) -> Response {
    let headers: Vec<(&str, &str)> =
        exchange.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    server.request(&exchange.request.method, target, &headers, &exchange.request.body)
}

/// The type goim sends, or for refusals the one that it means.
fn content_type(exchange: &Exchange, answer: &Response) -> Result<(), String> {
    let captured = exchange
        .answer_headers
        .iter()
        .find(|(name, _)| name == "content-type")
        .map(|(_, value)| value.as_str());
    let arrived = answer.header("content-type");
    let meant = exchange.status == 400 && arrived == Some("application/json; charset=utf-8");
    check(arrived == captured || meant, answer)
}

/// An instance without its moment, its port and its load, members in order.
fn instance(answer: &serde_json::Value) -> String {
    let mut instance = answer["data"][0].clone();
    instance["latest_timestamp"].take();
    instance["addrs"].take();
    instance["metadata"]["conn_count"].take();
    instance["metadata"]["ip_count"].take();
    instance.to_string()
}

fn check(good: bool, answer: &Response) -> Result<(), String> {
    if good { Ok(()) } else { Err(format!("{} {:?} {}", answer.status, answer.headers, answer.text())) }
}

#[test]
fn the_tables_name_existing_exchanges() {
    let exchanges = exchanges();
    assert_eq!(exchanges.len(), 127);
    for (name, path) in
        SKIPPED.iter().map(|(name, path, _)| (name, path)).chain(DEVIATIONS.iter().map(|(n, p, ..)| (n, p)))
    {
        assert!(
            exchanges
                .iter()
                .any(|known| known.name.starts_with(name) && known.request.target.starts_with(path)),
            "no request is {name} {path}"
        );
    }
}
