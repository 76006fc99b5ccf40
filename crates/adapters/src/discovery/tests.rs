//! Discovery against a server that plays what real ones answered, and against one that behaves as
//! they do.

mod server;

use std::sync::Arc;
use std::time::Duration;

use goim_ports::NodeDirectory;
use serde_json::{Value, json};
use server::{Asked, Registry, Scripted, instance};
use tokio::time::timeout;

use super::*;
use crate::conformance;

/// The process of the captured exchanges, with short times.
fn config(server: &str) -> DiscoveryConfig {
    let ms = Duration::from_millis;
    DiscoveryConfig {
        seeds: vec![server.to_owned()],
        region: "sh".to_owned(),
        zone: "sh001".to_owned(),
        env: "dev".to_owned(),
        host: "h1".to_owned(),
        renew: ms(100),
        set: Duration::ZERO,
        request_deadline: Duration::from_secs(5),
        pause: ms(50),
        start_deadline: ms(500),
    }
}

async fn becomes(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(10), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within 10 s: {what}");
}

fn names(nodes: &DiscoveryNodes) -> Vec<String> {
    nodes.comets().iter().map(|node| node.server.to_string()).collect()
}

fn captured() -> Vec<Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/discovery.json");
    let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    file["exchanges"].as_array().unwrap().clone()
}

/// Method, path with query and form of what goim's processes asked.
fn captured_requests(path: &str) -> Vec<(String, String, String)> {
    let of = |exchange: &Value, name: &str| exchange[name].as_str().unwrap_or_default().to_owned();
    let exchanges = captured().into_iter().filter(|exchange| exchange["by"] == "goim");
    let requests =
        exchanges.map(|exchange| (of(&exchange, "method"), of(&exchange, "path"), of(&exchange, "form")));
    requests.filter(|(_, at, _)| at.split('?').next() == Some(path)).collect()
}

#[track_caller]
fn was_captured(asked: &Asked) {
    let path = asked.target.split('?').next().unwrap();
    let found = captured_requests(path);
    let asked = (asked.method.clone(), asked.target.clone(), asked.body.clone());
    assert!(found.contains(&asked), "{asked:?}\nis none of\n{found:#?}");
}

#[tokio::test]
async fn requests_are_byte_for_byte_goims() {
    let registry = Registry::start().await;
    let discovery = Arc::new(Discovery::start(config(&registry.address), LOGIC).await.unwrap());
    let nodes = DiscoveryNodes::new(Arc::clone(&discovery));
    let comet = goim_ports::CometNode {
        server: "h1".into(),
        rpc_addrs: vec!["grpc://:3109".to_owned()],
        public_addrs: vec!["127.0.0.1".to_owned()],
        ..conformance::node("h1")
    };
    nodes.announce(comet).await.unwrap();
    discovery.register_logic("grpc://:3119".to_owned(), 10).await.unwrap();
    becomes("both are renewed", || registry.count("/discovery/renew", LOGIC) > 0).await;
    discovery.leave().await;
    let asked = registry.asked();
    for post in ["register", "set", "renew", "cancel"] {
        let path = format!("/discovery/{post}");
        let of: Vec<_> = asked.iter().filter(|asked| asked.target == path).collect();
        assert!(!of.is_empty(), "{post}");
        of.into_iter().for_each(was_captured);
    }
    // The timestamps are this registry's.
    let poll = |asked: &&Asked| asked.target.starts_with("/discovery/polls?");
    let shape = |target: &str| {
        target
            .split('&')
            .map(|pair| {
                match pair.strip_prefix("latest_timestamp=") {
                    Some(since) if since != "0" => "latest_timestamp=T",
                    _ => pair,
                }
                .to_owned()
            })
            .collect::<Vec<_>>()
            .join("&")
    };
    let known: Vec<_> =
        captured_requests("/discovery/polls").iter().map(|(_, target, _)| shape(target)).collect();
    for polled in asked.iter().filter(poll) {
        assert!(known.contains(&shape(&polled.target)), "{polled:?}\nis none of\n{known:#?}");
        assert_eq!(polled.body, "");
    }
    assert!(asked.iter().filter(poll).count() >= 2);
}

#[tokio::test]
async fn all_captured_responses_are_understood() {
    for exchange in captured() {
        let Some(reply) = exchange["reply"].as_str() else { continue };
        let path = exchange["path"].as_str().unwrap();
        instance::code_of(reply.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"));
        if path.starts_with("/discovery/polls") {
            instance::read_poll(reply.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}\n{reply}"));
        }
    }
}

/// What a poll may answer besides news, and whether it is asked again at once.
fn malformed_responses() -> Vec<(&'static str, String, bool)> {
    let app = |comet: Value| json!({"code": 0, "data": {"goim.comet": comet}}).to_string();
    let none = json!({"instances": {}, "latest_timestamp": 9});
    let early = json!({"instances": {"sh001": [instance("goim.comet", "early")]}, "latest_timestamp": 0});
    vec![
        ("nothing new", r#"{"code":-304,"message":"-304","ttl":1}"#.to_owned(), true),
        ("nothing new, with data", app(none.clone()).replace(":0", ":-304"), true),
        ("nothing found", r#"{"code":-404,"message":"-404","ttl":1,"data":null}"#.to_owned(), false),
        (
            "nothing found, with data",
            r#"{"code":-404,"data":{"goim.comet":{"err":"not found"}}}"#.to_owned(),
            false,
        ),
        ("server error", r#"{"code":-500,"message":"-500","ttl":1}"#.to_owned(), false),
        ("no JSON", "<html>".to_owned(), false),
        ("nothing", String::new(), false),
        ("no timestamp", app(early), false),
        ("no data", r#"{"code":0}"#.to_owned(), true),
        ("null", r#"{"code":0,"data":null}"#.to_owned(), true),
        ("no app", r#"{"code":0,"data":{}}"#.to_owned(), true),
        ("an app that is null", app(Value::Null), true),
        ("an app without instances", app(none), true),
        ("zones that are null", app(json!({"instances": {"sh001": null}, "latest_timestamp": 9})), true),
        (
            "an app that was not asked for",
            r#"{"code":0,"data":{"goim.logic":{"instances":{},"latest_timestamp":3}}}"#.to_owned(),
            true,
        ),
        (
            "an error member",
            r#"{"code":0,"data":{},"error":{"-404":["goim.comet"]},"message":"0"}"#.to_owned(),
            true,
        ),
    ]
}

#[tokio::test]
async fn row_078_the_last_list_stays_after_any_response() {
    for (what, answer, is_asked_at_once) in malformed_responses() {
        let script = Scripted::start().await;
        let comets = json!({"instances": {"sh001": [instance("goim.comet", "c1")]}, "latest_timestamp": 7});
        script.answers(r#"{"code":-304}"#);
        script.answers(&json!({"code": 0, "data": {"goim.comet": comets}}).to_string());
        let mut config = config(&script.address);
        config.pause = Duration::from_millis(300);
        let discovery = Arc::new(Discovery::start(config, COMET).await.unwrap());
        let nodes = DiscoveryNodes::new(discovery);
        becomes(what, || names(&nodes) == ["c1"]).await;
        script.answers(&answer);
        becomes(what, || script.unplayed() == 0).await;
        let before = script.asked().len();
        let answered = tokio::time::Instant::now();
        becomes(what, || script.asked().len() > before).await;
        assert_eq!(answered.elapsed() < Duration::from_millis(200), is_asked_at_once, "{what}");
        let last = script.asked().pop().unwrap().target;
        assert!(last.ends_with("latest_timestamp=0&latest_timestamp=7"), "{what}: {last}");
        assert_eq!(names(&nodes), ["c1"], "{what}");
    }
}

#[tokio::test]
async fn a_failed_request_moves_to_the_next_server() {
    let (bad, good) = (Scripted::start().await, Registry::start().await);
    bad.status(503);
    let mut config = config(&bad.address);
    config.seeds.push(format!("http://{}/", good.address));
    // No server listens on this port.
    config.seeds.push("127.0.0.1:1".to_owned());
    good.register(COMET, instance(COMET, "c1"));
    let discovery = Arc::new(Discovery::start(config, COMET).await.unwrap());
    let nodes = DiscoveryNodes::new(discovery);
    becomes("the comet is found", || names(&nodes) == ["c1"]).await;
}

#[tokio::test]
async fn row_079_a_renewal_that_finds_nothing_registers_again() {
    let registry = Registry::start().await;
    let discovery = Arc::new(Discovery::start(config(&registry.address), LOGIC).await.unwrap());
    discovery.register_logic("grpc://10.0.0.1:3119".to_owned(), 10).await.unwrap();
    assert_eq!(registry.count("/discovery/register", LOGIC), 1);
    registry.forget_everything();
    becomes("it is registered again", || registry.count("/discovery/register", LOGIC) == 2).await;
    let renewed = registry.count("/discovery/renew", LOGIC);
    becomes("and renewed", || registry.count("/discovery/renew", LOGIC) > renewed + 1).await;
    assert_eq!(registry.count("/discovery/register", LOGIC), 2, "once is enough");
}

#[tokio::test]
async fn row_115_a_server_that_restarts_empty_removes_no_node() {
    let mut registry = Registry::start().await;
    let comet = Arc::new(Discovery::start(config(&registry.address), LOGIC).await.unwrap());
    let logic = DiscoveryConfig { host: "h2".to_owned(), ..config(&registry.address) };
    let logic = Arc::new(Discovery::start(logic, COMET).await.unwrap());
    logic.register_logic("grpc://10.0.0.1:3119".to_owned(), 10).await.unwrap();
    let (own, seen) = (DiscoveryNodes::new(Arc::clone(&comet)), DiscoveryNodes::new(logic));
    own.announce(conformance::node("h1")).await.unwrap();
    let both = || names(&seen) == ["h1"] && *comet.logics() == ["grpc://10.0.0.1:3119"];
    becomes("both know each other", both).await;
    registry.stop().await;
    own.announce(conformance::node("h1")).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(both(), "the lists stay while the server is away");
    registry.start_again().await;
    becomes("both are registered again", || {
        registry.count("/discovery/register", LOGIC) > 0 && registry.count("/discovery/register", COMET) > 0
    })
    .await;
    assert!(both(), "and when it is back with nothing");
    registry.register(COMET, instance(COMET, "new"));
    becomes("news come again", || names(&seen) == ["h1", "new"]).await;
}

#[tokio::test]
async fn logics_of_the_own_zone_come_first() {
    let registry = Registry::start().await;
    let mut elsewhere = instance(LOGIC, "l2");
    (elsewhere["zone"], elsewhere["addrs"]) =
        (json!("bj001"), json!(["http://x:1", "grpc://a:1", "grpc://10.0.0.2:3119"]));
    registry.register(LOGIC, elsewhere);
    let discovery = Discovery::start(config(&registry.address), LOGIC).await.unwrap();
    becomes("those elsewhere, if there are no others", || *discovery.logics() == ["grpc://10.0.0.2:3119"])
        .await;
    registry.register(LOGIC, instance(LOGIC, "l1"));
    becomes("those of the zone", || *discovery.logics() == ["grpc://127.0.0.1:3109"]).await;
}

#[tokio::test]
async fn comets_are_parsed_as_by_goims_logic_and_job() {
    let registry = Registry::start().await;
    let with = |host: &str, metadata: Value| {
        let mut instance = instance(COMET, host);
        instance["metadata"] = metadata;
        registry.register(COMET, instance);
    };
    let good = json!({"weight": "7", "offline": "false", "addrs": "a.example,b.example", "conn_count": "5", "ip_count": "3"});
    with("good", good.clone());
    with("new", json!({"weight": "7", "offline": "false", "addrs": ""}));
    with("null", Value::Null);
    with("odd", json!({"weight": "x", "offline": "perhaps", "conn_count": "1", "ip_count": "1"}));
    let mut unreachable = instance(COMET, "unreachable");
    unreachable["addrs"] = Value::Null;
    registry.register(COMET, unreachable);
    let nodes =
        DiscoveryNodes::new(Arc::new(Discovery::start(config(&registry.address), COMET).await.unwrap()));
    becomes("all are there", || nodes.comets().len() == 4).await;
    let shown: Vec<_> = nodes
        .comets()
        .iter()
        .map(|node| {
            (node.server.to_string(), node.weight, node.offline, node.connections, node.public_addrs.len())
        })
        .collect();
    let expected =
        [("good", 7, false, 5, 2), ("new", 7, true, 0, 0), ("null", 0, true, 0, 0), ("odd", 0, true, 0, 0)];
    let expected: Vec<_> = expected.map(|(name, w, o, c, a)| (name.to_owned(), w, o, c, a)).into();
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn conforms() {
    conformance::nodes(async || {
        let registry = Registry::start().await;
        let config = DiscoveryConfig { host: "a".to_owned(), ..config(&registry.address) };
        let discovery = Discovery::start(config, COMET).await.unwrap();
        registry.keep();
        DiscoveryNodes::new(Arc::new(discovery))
    })
    .await;
}

#[tokio::test]
async fn startup_errors_name_the_cause() {
    let says = async |seeds: &[&str], text: &str| {
        let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        let error = Discovery::start(DiscoveryConfig { seeds, ..config("") }, LOGIC).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    };
    says(&[], "no discovery server is named").await;
    says(&["discovery"], "`discovery` is not the address of a discovery server").await;
    says(&["127.0.0.1:1"], "discovery 127.0.0.1:1 does not answer").await;
    let refusing = Registry::start().await;
    refusing.refuse(-400);
    let discovery = Discovery::start(config(&refusing.address), LOGIC).await.unwrap();
    let error = discovery.register_logic("grpc://a:1".to_owned(), 1).await.unwrap_err();
    assert!(error.to_string().contains("are zone and env set?"), "{error}");
}
