//! The HTTP API: rows 51 to 64, 95 to 99, 102, 103 and 120 of the table of conformance.

use std::sync::OnceLock;

use crate::harness::http::{Http, compose};
use crate::harness::{BOTH, Client, Server, Settings, Transport, Who, eventually, shared, unique};

const OK: &str = r#"{"code":0,"message":""}"#;

/// A server without a comet that takes clients: its only one is off the list.
fn without_comets() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(&Settings::new().offline()))
}

fn check(server: &Server, method: &str, target: &str, status: u16, body: &str) {
    let answer = server.request(method, target, &[], b"");
    assert_eq!((answer.status, answer.text().as_str()), (status, body), "{method} {target}");
    let content_type = answer.header("content-type").unwrap_or_default();
    let expected: &[&str] = match status {
        200 => &["application/json; charset=utf-8"],
        400 => &["text/plain; charset=utf-8", "application/json; charset=utf-8"],
        _ => &["text/plain"],
    };
    assert!(expected.contains(&content_type), "{method} {target}: {content_type}");
}

fn required(fields: &[&str]) -> String {
    let lines: Vec<String> = fields
        .iter()
        .map(|field| {
            format!("Key: '{field}' Error:Field validation for '{field}' failed on the 'required' tag")
        })
        .collect();
    format!(r#"{{"code":-400,"message":"{}"}}"#, lines.join(r"\n"))
}

fn not_an_integer(text: &str, why: &str) -> String {
    format!(r#"{{"code":-400,"message":"strconv.ParseInt: parsing \"{text}\": {why}"}}"#)
}

#[test]
fn row_051_a_room_push_without_parameters_names_all_of_them() {
    check(shared(), "POST", "/goim/push/room", 400, &required(&["Op", "Type", "Room"]));
}

#[test]
fn row_052_operation_zero_is_as_none() {
    check(shared(), "POST", "/goim/push/room?operation=0&type=t&room=r", 400, &required(&["Op"]));
    check(shared(), "POST", "/goim/push/all", 400, &required(&["Op"]));
    check(shared(), "POST", "/goim/push/room?operation=1&type=&room=r", 400, &required(&["Type"]));
}

#[test]
fn row_053_what_is_no_integer_is_named() {
    let (syntax, range) = ("invalid syntax", "value out of range");
    let texts = [
        ("abc", "abc", syntax),
        ("99999999999", "99999999999", range),
        ("1.0", "1.0", syntax),
        ("%201", " 1", syntax),
        ("0x10", "0x10", syntax),
        ("1_0", "1_0", syntax),
        ("2147483648", "2147483648", range),
        ("-2147483649", "-2147483649", range),
        ("%2B", "+", syntax),
        ("-", "-", syntax),
    ];
    for route in ["all", "keys", "mids", "room"] {
        for (written, shown, why) in texts {
            let target = format!("/goim/push/{route}?operation={written}");
            check(shared(), "POST", &target, 400, &not_an_integer(shown, why));
        }
    }
    check(shared(), "POST", "/goim/push/all?operation=1000&speed=x", 400, &not_an_integer("x", syntax));
    // Quoted as Go quotes, and escaped as its JSON does.
    let target = "/goim/push/all?operation=%22%3C";
    check(shared(), "POST", target, 400, &not_an_integer(r#"\\\"\u003c"#, syntax));
}

#[test]
fn row_054_members_are_not_separated_by_commas() {
    let syntax = "invalid syntax";
    check(shared(), "POST", "/goim/push/mids?operation=1000&mids=1,2", 400, &not_an_integer("1,2", syntax));
    check(
        shared(),
        "POST",
        "/goim/push/mids?operation=1000&mids=1&mids=x",
        400,
        &not_an_integer("x", syntax),
    );
    let large = "9223372036854775808";
    let target = format!("/goim/push/mids?operation=1000&mids={large}");
    check(shared(), "POST", &target, 400, &not_an_integer(large, "value out of range"));
}

#[test]
fn row_055_a_push_to_no_member_is_fine() {
    check(shared(), "POST", "/goim/push/mids?operation=1000", 200, OK);
    check(shared(), "POST", "/goim/push/mids?operation=1000&mids=999999999&mids=-1&mids=", 200, OK);
}

#[test]
fn row_056_a_push_to_no_key_is_not() {
    check(shared(), "POST", "/goim/push/keys?operation=1000", 200, r#"{"code":-400,"message":""}"#);
}

#[test]
fn row_057_a_push_to_an_unknown_key_is_fine() {
    check(shared(), "POST", "/goim/push/keys?operation=1000&keys=unknown", 200, OK);
}

#[test]
fn row_058_a_body_of_a_million_bytes_is_too_large() {
    let too_large = "kafka server: Message was too large, server rejected it to avoid allocation error.";
    let answer = shared().post("/goim/push/room?operation=1000&type=none&room=1", vec![0; 1_000_000]);
    assert_eq!((answer.status, answer.text()), (200, format!(r#"{{"code":-500,"message":"{too_large}"}}"#)));
}

#[test]
fn row_059_other_methods_and_paths_are_not_found() {
    let requests = [
        ("GET", "/goim/push/all"),
        ("POST", "/goim/online/total"),
        ("PUT", "/goim/push/all"),
        ("DELETE", "/goim/push/all"),
        ("OPTIONS", "/goim/online/total"),
        ("GET", "/goim"),
        ("GET", "/goim/Online/Total"),
        ("GET", "//goim/online/total"),
        ("GET", "/online/total"),
    ];
    for (method, target) in requests {
        check(shared(), method, target, 404, "404 page not found");
    }
    let head = shared().request("HEAD", "/goim/online/total", &[], b"");
    assert_eq!((head.status, head.header("content-type")), (404, Some("text/plain")));
}

#[test]
fn row_060_online_wants_its_parameters() {
    let get = |target: &str, body: &str| check(shared(), "GET", target, 400, body);
    get("/goim/online/top?type=live&limit=0", &required(&["Limit"]));
    get("/goim/online/top", &required(&["Type", "Limit"]));
    get("/goim/online/top?type=live&limit=x", &not_an_integer("x", "invalid syntax"));
    get("/goim/online/room?type=live", &required(&["Rooms"]));
    get("/goim/online/room", &required(&["Type", "Rooms"]));
    // goim panics and answers 500.
    assert_eq!(shared().get("/goim/online/top?type=live&limit=-1").status, 400);
}

#[test]
fn row_061_no_room_of_a_type_is_an_empty_list() {
    check(shared(), "GET", "/goim/online/top?type=none&limit=5", 200, r#"{"code":0,"message":"","data":[]}"#);
}

#[test]
fn row_062_counts_of_the_rooms_asked_for() {
    let server = Server::start(&Settings::new());
    let _session = Client::login(&server, Transport::Tcp, &Who::new().room("live://1000"));
    let expected = r#"{"code":0,"message":"","data":{"1000":1,"zz":0}}"#;
    let target = "/goim/online/room?type=live&rooms=1000&rooms=zz";
    eventually("the room is counted", || server.get(target).text() == expected);
    // Sorted, each once, escaped as Go does.
    let odd = "/goim/online/room?type=live&rooms=zz&rooms=1000&rooms=%22%3C%3E%26&rooms=1000";
    let expected = r#"{"code":0,"message":"","data":{"\"\u003c\u003e\u0026":0,"1000":1,"zz":0}}"#;
    assert_eq!(server.get(odd).text(), expected);
}

const WEIGHTED: &str = r#"{"code":0,"message":"","data":{"domain":"conn.goim.io","tcp_port":3101,"ws_port":3102,"wss_port":3103,"heartbeat":240,"nodes":[NODES],"backoff":{"max_delay":300,"base_delay":3,"factor":1.8,"jitter":JITTER},"heartbeat_max":2}}"#;

/// `nodes/weighted` names these nodes. goim's example file and its code disagree about the jitter.
fn check_weighted(server: &Server, platform: &str, node: &str) {
    let answer = server.get(&format!("/goim/nodes/weighted{platform}"));
    let body = WEIGHTED.replace("NODES", &format!("\"{node}\""));
    let bodies = ["0.3", "1.3"].map(|jitter| body.replace("JITTER", jitter));
    assert!(answer.status == 200 && bodies.contains(&answer.text()), "{platform}: {}", answer.text());
}

#[test]
fn row_063_without_a_comet_the_nodes_are_the_default_domain() {
    for platform in ["?platform=web", "?platform=ios", ""] {
        check_weighted(without_comets(), platform, "conn.goim.io");
    }
}

#[test]
fn row_064_without_a_comet_the_instances_are_null() {
    let null = r#"{"code":0,"message":"","data":null}"#;
    check(without_comets(), "GET", "/goim/nodes/instances", 200, null);
}

#[test]
fn row_095_bodies_in_chunks_expectations_and_pipelines() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new();
        let mut client = Client::login(server, transport, &who);
        let target = format!("/goim/push/keys?operation=1000&keys={}", who.key);

        let chunked = b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        let answer = server.request("POST", &target, &[("Transfer-Encoding", "chunked")], chunked);
        assert_eq!(answer.text(), OK);
        client.expect_push(1000, "hello");

        let answer = server.request("POST", &target, &[("Expect", "100-continue")], b"expected");
        assert_eq!(answer.text(), OK);
        client.expect_push(1000, "expected");

        let mut http = Http::connect(server.addrs.http);
        let pipeline = ["p1", "p2"].map(|body| compose("POST", &target, &[], body.as_bytes())).concat();
        http.send(&pipeline);
        for _ in 0..2 {
            assert_eq!(http.response(false).text(), OK);
        }
        client.expect_push(1000, "p1");
        client.expect_push(1000, "p2");

        assert_eq!(http.request("POST", &target, &[("Connection", "close")], b"last").text(), OK);
        http.expect_closed();
        client.expect_push(1000, "last");
        client.expect_nothing();
    }
}

#[test]
fn row_096_a_trailing_slash_is_redirected_or_answered() {
    let requests = [
        ("GET", "/goim/online/total/", 301, "/goim/online/total"),
        ("POST", "/goim/push/all/", 307, "/goim/push/all"),
        ("GET", "/goim/online/top/?type=x&limit=1", 301, "/goim/online/top?type=x&limit=1"),
    ];
    for (method, target, status, location) in requests {
        let answer = shared().request(method, target, &[], b"");
        if answer.status == status {
            assert_eq!(answer.header("location"), Some(location));
        } else {
            let direct = shared().request(method, location, &[], b"");
            assert_eq!((answer.status, answer.body), (direct.status, direct.body), "{method} {target}");
        }
    }
}

#[test]
fn row_097_how_parameters_are_read() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new().accepts(&[1000, 0, -5]);
        let mut client = Client::login(server, transport, &who);
        for (parameters, op) in [
            ("operation=1000&operation=2", 1000),
            ("operation=%2B1000", 1000),
            ("operation=01000", 1000),
            ("operation=", 0),
            ("", 0),
            ("operation=-5", -5),
            ("operation=1000&x=%zz&y=a;b", 1000),
            ("Operation=1000", 0),
            ("operation[]=1000", 0),
        ] {
            server.push(&format!("/goim/push/keys?{parameters}&keys={}", who.key), parameters);
            client.expect_push(op, parameters);
        }
    }
    let dropped = server.post("/goim/push/keys?operation=1000&keys=a%zz", "x");
    assert_eq!((dropped.status, dropped.text().as_str()), (200, r#"{"code":-400,"message":""}"#));
    let semicolon = "/goim/push/room?operation=1000&type=a;room=b";
    check(server, "POST", semicolon, 400, &required(&["Type", "Room"]));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = server.request("POST", "/goim/push/all", &form, b"operation=1000");
    assert_eq!((answer.status, answer.text()), (400, required(&["Op"])));
}

#[test]
fn row_098_the_fullest_rooms_of_a_type() {
    let server = shared();
    let kind = unique("top");
    let _sessions: Vec<Client> = ["a", "a", "a", "b", "b", "c"]
        .into_iter()
        .enumerate()
        .map(|(nth, room)| {
            Client::login(server, BOTH[nth % 2], &Who::new().room(&format!("{kind}://{room}")))
        })
        .collect();
    // A type that begins with this one must not be mistaken for it.
    let longer = Who::new().room(&format!("{kind}2://a"));
    let _other = Client::login(server, Transport::Tcp, &longer);
    let rooms =
        [r#"{"room_id":"a","count":3}"#, r#"{"room_id":"b","count":2}"#, r#"{"room_id":"c","count":1}"#];
    let top =
        |kind: &str, limit: usize| server.get(&format!("/goim/online/top?type={kind}&limit={limit}")).text();
    let expected = |rooms: &[&str]| format!(r#"{{"code":0,"message":"","data":[{}]}}"#, rooms.join(","));
    eventually("all are counted", || top(&kind, 100) == expected(&rooms));
    for limit in 1..=3 {
        assert_eq!(top(&kind, limit), expected(&rooms[..limit]));
    }
    assert_eq!(top(&kind[..kind.len() - 1], 100), expected(&[]), "a beginning of the type");
}

#[test]
fn row_099_connections_and_addresses_in_all() {
    let server = Server::start(&Settings::new());
    let mut sessions: Vec<Client> = [BOTH; 3]
        .concat()
        .into_iter()
        .map(|transport| Client::login(&server, transport, &Who::new()))
        .collect();
    let total =
        |conn, ip| format!(r#"{{"code":0,"message":"","data":{{"conn_count":{conn},"ip_count":{ip}}}}}"#);
    eventually("six connections", || server.get("/goim/online/total").text() == total(6, 1));
    sessions.clear();
    eventually("none", || server.get("/goim/online/total").text() == total(0, 0));
}

#[test]
fn row_102_nodes_by_platform() {
    let server = Server::start(&Settings::new());
    eventually("the comet is known", || !server.get("/goim/nodes/instances").json()["data"].is_null());
    check_weighted(&server, "?platform=web", "h1.goim.io");
    check_weighted(&server, "?platform=ios", "127.0.0.1");
    check_weighted(&server, "", "127.0.0.1");
}

#[test]
fn row_103_instances_with_their_metadata() {
    let server = Server::start(&Settings::new());
    let _session = Client::login(&server, Transport::Tcp, &Who::new());
    let instance = || server.get("/goim/nodes/instances").json()["data"][0].take();
    eventually("the session is counted", || instance()["metadata"]["conn_count"] == "1");
    let answer = server.get("/goim/nodes/instances");
    let mut instance = instance();
    let stamp = instance["latest_timestamp"].take();
    assert!(stamp.as_i64().is_some_and(|nanos| nanos > 1_600_000_000_000_000_000), "{stamp}");
    let rpc = instance["addrs"][0].take();
    assert_eq!(rpc, format!("grpc://{}", server.addrs.comet_rpc));
    // Members in goim's order.
    let expected = r#"{"region":"sh","zone":"sh001","env":"dev","appid":"goim.comet","hostname":"h1","addrs":[null],"version":"","latest_timestamp":null,"metadata":{"addrs":"127.0.0.1","conn_count":"1","ip_count":"1","offline":"false","weight":"10"}}"#;
    assert_eq!(instance.to_string(), expected);
    assert!(
        answer.text().starts_with(r#"{"code":0,"message":"","data":[{"region":"sh","#),
        "{}",
        answer.text()
    );
}

#[test]
fn row_120_three_hundred_rooms_at_once() {
    let server = shared();
    let kind = unique("many");
    let _session = Client::login(server, Transport::Ws, &Who::new().room(&format!("{kind}://7")));
    let rooms: String = (0..300).map(|room| format!("&rooms={room}")).collect();
    let target = format!("/goim/online/room?type={kind}{rooms}");
    eventually("the room is counted", || server.get(&target).json()["data"]["7"] == 1);
    let counts = server.get(&target).json()["data"].as_object().unwrap().clone();
    assert_eq!(counts.len(), 300);
    assert_eq!(counts.values().filter(|count| **count == 1).count(), 1);
}
