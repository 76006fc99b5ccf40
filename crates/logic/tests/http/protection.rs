//! Authorization of pushes, over real sockets.

use goim_logic::{ApiKey, PushProtection};

use crate::world::Server;

const PUSH: &str = "/goim/push/all?operation=1";

#[tokio::test]
async fn without_keys_local_pushes_are_allowed_and_forwarded_ones_are_not() {
    let server = Server::start().await;
    assert_eq!(server.logic.push_protection(), PushProtection::LoopbackOnly);
    let mut connection = server.connect().await;
    assert_eq!(connection.request("POST", PUSH, &[], b"x").await.status, 200);
    for header in
        [("X-Forwarded-For", "203.0.113.9"), ("X-Real-IP", "203.0.113.9"), ("Origin", "https://evil.example")]
    {
        let response = connection.request("POST", PUSH, &[header], b"x").await;
        assert_eq!(response.status, 403, "{header:?}");
        assert!(response.body.starts_with(r#"{"code":-403,"message":""#), "{response:?}");
        assert!(response.body.contains("logic.http.api_keys"), "{response:?}");
        // Reads need no authorization.
        let response = connection.request("GET", "/goim/nodes/weighted", &[header], b"").await;
        assert_eq!(response.status, 200, "{header:?}");
    }
    assert_eq!(server.world.take_log().len(), 1);
}

#[tokio::test]
async fn with_keys_a_push_needs_one() {
    let key = "0123456789abcdef";
    let server = Server::with(|config| config.http.api_keys = vec![ApiKey::from(key.to_owned())]).await;
    assert_eq!(server.logic.push_protection(), PushProtection::ApiKeys(1));
    let mut connection = server.connect().await;
    for headers in [vec![], vec![("X-API-Key", "0123456789abcdeg")], vec![("Authorization", key)]] {
        let response = connection.request("POST", PUSH, &headers, b"x").await;
        assert_eq!(response.status, 401, "{headers:?}");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        assert!(response.body.starts_with(r#"{"code":-401,"message":""#), "{response:?}");
        assert!(response.body.contains("X-API-Key"), "{response:?}");
    }
    assert!(server.world.take_log().is_empty());
    let bearer = format!("Bearer {key}");
    for header in [("Authorization", bearer.as_str()), ("x-api-key", key)] {
        assert_eq!(connection.request("POST", PUSH, &[header], b"x").await.status, 200, "{header:?}");
    }
    assert_eq!(server.world.take_log().len(), 2);
    assert_eq!(connection.request("GET", "/goim/online/total", &[], b"").await.status, 200);
}

#[tokio::test]
async fn authorization_is_checked_before_the_parameters() {
    let key = ApiKey::from("0123456789abcdef".to_owned());
    let server = Server::with(|config| config.http.api_keys = vec![key]).await;
    assert_eq!(server.post("/goim/push/all?operation=abc", b"").await.status, 401);
    assert_eq!(server.post("/goim/push/nothing", b"").await.status, 404);
}
