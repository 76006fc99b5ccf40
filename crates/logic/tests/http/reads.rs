//! Routes that clients and the backend read from.

use crate::world::{Fault, Server, comet};

#[tokio::test]
async fn row_98_rooms_by_count_then_by_name() {
    let server = Server::start().await;
    let rooms =
        [("t://b", 2), ("t://c", 2), ("t://a", 2), ("t://x/y?z", 7), ("t2://a", 9), ("t:/a", 9), ("t", 9)];
    server.world.set_rooms(&rooms);
    let check = async |limit: &str, expected: &str| {
        let response = server.get(&format!("/goim/online/top?type=t&limit={limit}")).await;
        assert_eq!(
            response.status_and_body(),
            (200, format!(r#"{{"code":0,"message":"","data":[{expected}]}}"#).as_str())
        );
    };
    let largest = r#"{"room_id":"x/y?z","count":7}"#;
    check("1", largest).await;
    check("2", &format!(r#"{largest},{{"room_id":"a","count":2}}"#)).await;
    let rest = ["a", "b", "c"].map(|room| format!(r#"{{"room_id":"{room}","count":2}}"#)).join(",");
    check("4", &format!("{largest},{rest}")).await;
    check("9223372036854775807", &format!("{largest},{rest}")).await;
}

#[tokio::test]
async fn row_62_requested_rooms_are_sorted_and_escaped() {
    let server = Server::start().await;
    server.world.set_rooms(&[("live://1000", 1), ("live://<&>", 4)]);
    let response =
        server.get("/goim/online/room?type=live&rooms=zz&rooms=1000&rooms=%3C%26%3E&rooms=%ff&rooms=").await;
    let expected = r#"{"":0,"1000":1,"\u003c\u0026\u003e":4,"zz":0,"\ufffd":0}"#;
    assert_eq!(
        response.status_and_body(),
        (200, format!(r#"{{"code":0,"message":"","data":{expected}}}"#).as_str())
    );
}

#[tokio::test]
async fn row_120_three_hundred_rooms_in_one_answer() {
    let server = Server::start().await;
    let query: String = (0..300).map(|number| format!("&rooms={number:03}")).collect();
    let response = server.get(&format!("/goim/online/room?type=live{query}")).await;
    let data: String = (0..300).map(|number| format!(r#","{number:03}":0"#)).collect();
    assert_eq!(
        response.status_and_body().1,
        format!(r#"{{"code":0,"message":"","data":{{{}}}}}"#, &data[1..])
    );
    assert!(response.body.len() > 2048);
}

#[tokio::test]
async fn room_counts_are_served_while_the_directory_fails() {
    let server = Server::start().await;
    server.world.set_rooms(&[("live://1", 3)]);
    let expected = (200, r#"{"code":0,"message":"","data":{"1":3}}"#);
    assert_eq!(server.get("/goim/online/room?type=live&rooms=1").await.status_and_body(), expected);
    server.world.set_rooms(&[]);
    server.world.state().directory_fault = Fault::Error("gone".to_owned());
    assert_eq!(server.get("/goim/online/room?type=live&rooms=1").await.status_and_body(), expected);
}

#[tokio::test]
async fn row_102_at_most_five_comets_the_emptiest_first() {
    let server = Server::start().await;
    let mut comets: Vec<_> = (0..7).map(|number| comet(&format!("h{number}"), 100 * (7 - number))).collect();
    for (number, comet) in comets.iter_mut().enumerate() {
        comet.public_addrs = vec![format!("10.0.0.{number}"), String::new(), format!("2001:db8::{number}")];
    }
    comets[6].offline = true;
    server.world.set_comets(comets);
    let nodes = async |target: &str| {
        let body = server.get(target).await.body;
        let reply: serde_json::Value = serde_json::from_str(&body).unwrap();
        reply["data"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let domains = nodes("/goim/nodes/weighted?platform=web").await;
    assert_eq!(domains, ["h5.goim.io", "h4.goim.io", "h3.goim.io", "h2.goim.io", "h1.goim.io"]);
    let addrs = nodes("/goim/nodes/weighted?platform=ios").await;
    assert_eq!(addrs.len(), 10);
    assert_eq!(addrs[..2], ["10.0.0.5", "2001:db8::5"]);
    assert_eq!(server.logic.weighted_nodes("web").nodes, domains);
}

#[tokio::test]
async fn rows_64_and_103_comets_that_are_offline_are_not_shown() {
    let server = Server::start().await;
    let mut offline = comet("h2", 5);
    offline.offline = true;
    server.world.set_comets(vec![offline]);
    assert_eq!(
        server.get("/goim/nodes/instances").await.status_and_body().1,
        r#"{"code":0,"message":"","data":null}"#
    );
    let total = r#"{"code":0,"message":"","data":{"conn_count":0,"ip_count":0}}"#;
    assert_eq!(server.get("/goim/online/total").await.status_and_body().1, total);
}

#[tokio::test]
async fn the_description_is_served() {
    let server = Server::start().await;
    let response = server.get("/openapi.json").await;
    assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
    let document: serde_json::Value = serde_json::from_str(&response.body).unwrap();
    // Each documented route exists.
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let response = server.connect().await.request(&method, path, &[], b"").await;
            assert_ne!(response.status, 404, "{method} {path}");
        }
    }
}
