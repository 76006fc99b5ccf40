//! Signed tokens with real keys of every kind: which clients get a session, and the code that
//! others receive; keys that rotate while clients are connected; tokens that expire.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::backend::{Answer, Backend};
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::{Value, json};

const SECRET: &str = "a shared secret of more than 32 bytes";

/// Private keys, generated for each run.
struct Keys {
    rsa: EncodingKey,
    rsa_public_pem: String,
    other_rsa: EncodingKey,
    ec: [EncodingKey; 2],
    ed: EncodingKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let rsa = || rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
    let encoding = |key: &rsa::RsaPrivateKey| {
        EncodingKey::from_rsa_pem(key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap()
    };
    let (own, other) = (rsa(), rsa());
    let ec = || {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
    };
    // PKCS #8 of RFC 8410: the prefix of the 32 bytes, and the bytes.
    let ed = [
        b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".as_slice(),
        &[number() as u8; 32],
    ]
    .concat();
    Keys {
        rsa: encoding(&own),
        rsa_public_pem: own.to_public_key().to_public_key_pem(LineEnding::LF).unwrap(),
        other_rsa: encoding(&other),
        ec: [ec(), ec()],
        ed: EncodingKey::from_ed_der(&ed),
    }
});

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The claims of a good token; the mid is unique.
fn claims() -> Value {
    json!({ "mid": number(), "exp": now() + 3600, "aud": "chat", "iss": "login" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn sign(algorithm: Algorithm, key: &EncodingKey, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), None, claims)
}

/// A set with these keys under these names.
fn jwks(keys: &[(&str, &EncodingKey, Algorithm)]) -> String {
    let jwk = |(kid, key, algorithm): &(&str, &EncodingKey, Algorithm)| {
        let mut jwk = Jwk::from_encoding_key(key, *algorithm).unwrap();
        jwk.common.key_id = Some((*kid).to_owned());
        serde_json::to_value(jwk).unwrap()
    };
    // An unknown kind of key must not hide the others.
    let mut list: Vec<Value> = vec![json!({ "kty": "LATTICE", "kid": "future" })];
    // A secret in a public place is none.
    list.push(json!({ "kty": "oct", "kid": "leaked", "alg": "HS256", "k": "bGVha2VkLWxlYWtlZC1sZWFrZWQtbGVha2VkLWxlYWs" }));
    list.extend(keys.iter().map(jwk));
    json!({ "keys": list }).to_string()
}

fn settings(backend: &Backend) -> Settings {
    let pem =
        std::env::temp_dir().join(unique(&format!("goim-jwt-{}", std::process::id()))).with_extension("pem");
    std::fs::write(&pem, &KEYS.rsa_public_pem).unwrap();
    Settings::new()
        .set("logic.identity.method", "jwt")
        .set("logic.identity.jwt.secrets", SECRET)
        .set("logic.identity.jwt.public_keys", pem.to_str().unwrap())
        .set("logic.identity.jwt.jwks_url", &backend.url("/jwks"))
        .set("logic.identity.jwt.jwks_retry_pause", "1us")
        .set("logic.identity.jwt.leeway", "0s")
        .set("logic.identity.jwt.audience", "chat,other")
        .set("logic.identity.jwt.issuer", "login")
}

fn backend() -> Backend {
    Backend::start(|_| {
        let [first, _] = &KEYS.ec;
        Answer::ok(jwks(&[("ec1", first, Algorithm::ES256), ("ed1", &KEYS.ed, Algorithm::EdDSA)]))
    })
}

/// The body of the auth packet; `negotiated` clients send `protover`.
fn body(token: &str, negotiated: bool, more: &Value) -> String {
    let mut body = json!({ "token": token });
    if negotiated {
        body["protover"] = json!(1);
    }
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body.to_string()
}

fn code(packet: &Packet) -> u64 {
    let body: Value =
        serde_json::from_slice(&packet.body).unwrap_or_else(|error| panic!("{error}: {packet:?}"));
    body["code"].as_u64().unwrap_or_else(|| panic!("no code: {packet:?}"))
}

/// The outcome of presenting a token: a session, or the code that a negotiated client receives. A
/// goim v2 client must get the same outcome without a code.
#[track_caller]
fn check(server: &Server, what: &str, token: &str, more: &Value, expected: Option<u64>) {
    for transport in BOTH {
        let (_, negotiated) = Client::present(server, transport, body(token, true, more));
        let negotiated = negotiated.unwrap_or_else(|| panic!("{what}: closed without a word"));
        let (_, plain) = Client::present(server, transport, body(token, false, more));
        match expected {
            None => {
                assert_eq!((negotiated.op, code(&negotiated)), (8, 0), "{what}: {negotiated:?}");
                assert_eq!(plain, Some(Packet::new(8, 1, "")), "{what}");
            }
            Some(expected) => {
                assert_eq!((negotiated.op, code(&negotiated)), (6, expected), "{what}: {negotiated:?}");
                assert_eq!(plain, None, "{what}: a client of goim sees the end only");
            }
        }
    }
}

#[test]
fn tokens_of_every_kind_are_taken_and_wrong_ones_are_not() {
    let backend = backend();
    let server = Server::start(&settings(&backend));
    let keys = &*KEYS;
    let none = json!({});
    let good = [
        ("HS256", hs256(&claims())),
        ("RS256", sign(Algorithm::RS256, &keys.rsa, None, &claims())),
        (
            "RS256 with a name that the file does not have",
            sign(Algorithm::RS256, &keys.rsa, Some("any"), &claims()),
        ),
        ("ES256", sign(Algorithm::ES256, &keys.ec[0], Some("ec1"), &claims())),
        ("ES256 without a name", sign(Algorithm::ES256, &keys.ec[0], None, &claims())),
        ("EdDSA", sign(Algorithm::EdDSA, &keys.ed, Some("ed1"), &claims())),
        ("one audience of several", hs256(&with("aud", json!(["x", "other"])))),
        ("mid as a text", hs256(&with("mid", json!(number().to_string())))),
    ];
    for (what, token) in good {
        check(&server, what, &token, &none, None);
    }

    let header = |header: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header)
    };
    let signed = hs256(&claims());
    let parts: Vec<&str> = signed.split('.').collect();
    let none_alg =
        |alg: &str| format!("{}.{}.", header(&format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#)), parts[1]);
    // The oldest trick: the public key, which is public, as the secret of an HMAC.
    let public = EncodingKey::from_secret(keys.rsa_public_pem.as_bytes());
    let confused = sign(Algorithm::HS256, &public, None, &claims());
    let leaked = EncodingKey::from_base64_secret("bGVha2VkLWxlYWtlZC1sZWFrZWQtbGVha2VkLWxlYWs=").unwrap();
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let tampered = {
        use base64::Engine as _;
        let forged = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims().to_string());
        format!("{}.{forged}.{}", parts[0], parts[2])
    };
    let bad: Vec<(&str, String, u64)> = vec![
        ("expired", hs256(&with("exp", json!(now() - 1))), 3201),
        (
            "expired, of a public key",
            sign(Algorithm::RS256, &keys.rsa, None, &with("exp", json!(now() - 1))),
            3201,
        ),
        ("not yet", hs256(&with("nbf", json!(now() + 60))), 3202),
        ("for somebody else", hs256(&with("aud", json!("shop"))), 3203),
        ("for nobody", hs256(&without("aud")), 3203),
        ("from somebody else", hs256(&with("iss", json!("mallory"))), 3203),
        ("from nobody", hs256(&without("iss")), 3203),
        ("alg none", none_alg("none"), 3204),
        ("alg None", none_alg("None"), 3204),
        ("alg HS256 without a signature", none_alg("HS256"), 3204),
        ("HS256 by the public key", confused, 3204),
        ("HS256 by a secret of the set", sign(Algorithm::HS256, &leaked, Some("leaked"), &claims()), 3204),
        (
            "HS256 with the name of a public key",
            sign(Algorithm::HS256, &public, Some("ec1"), &claims()),
            3204,
        ),
        ("HS512", sign(Algorithm::HS512, &secret, None, &claims()), 3204),
        ("RS512", sign(Algorithm::RS512, &keys.rsa, None, &claims()), 3204),
        ("another RSA key", sign(Algorithm::RS256, &keys.other_rsa, None, &claims()), 3204),
        ("another P-256 key", sign(Algorithm::ES256, &keys.ec[1], Some("ec1"), &claims()), 3204),
        ("a key that nobody knows", sign(Algorithm::ES256, &keys.ec[1], Some("ec9"), &claims()), 3204),
        ("changed claims", tampered, 3204),
        ("no end", hs256(&without("exp")), 3200),
        ("no mid", hs256(&without("mid")), 3200),
        ("a mid that is none", hs256(&with("mid", json!("seven"))), 3200),
        ("rooms that are none", hs256(&with("rooms", json!(5))), 3200),
        ("no token", String::new(), 3200),
        ("no JSON Web Token", "abc".to_owned(), 3200),
        ("two parts", format!("{}.{}", parts[0], parts[1]), 3200),
        (
            "an extension",
            format!("{}.{}.{}", header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#), parts[1], parts[2]),
            3200,
        ),
    ];
    for (what, token, expected) in bad {
        check(&server, what, &token, &none, Some(expected));
    }
}

#[test]
fn the_auth_packet_must_agree_with_its_token() {
    let backend = backend();
    let server = Server::start(&settings(&backend));
    let mid = number();
    let key = unique("k");
    let token = |more: Value| {
        let mut claims = with("mid", json!(mid));
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        hs256(&claims)
    };
    let cases = [
        ("the same mid", token(json!({})), json!({ "mid": mid }), None),
        ("another mid", token(json!({})), json!({ "mid": mid + 1 }), Some(3205)),
        ("a key of its own choice", token(json!({})), json!({ "key": key }), Some(3205)),
        ("the key of the token", token(json!({ "key": key })), json!({ "key": key }), None),
        ("another key", token(json!({ "key": key })), json!({ "key": "x" }), Some(3205)),
        ("any room", token(json!({})), json!({ "room_id": "live://1" }), None),
        (
            "a room of the token",
            token(json!({ "rooms": ["live://1"] })),
            json!({ "room_id": "live://1" }),
            None,
        ),
        (
            "another room",
            token(json!({ "rooms": ["live://1"] })),
            json!({ "room_id": "live://2" }),
            Some(3207),
        ),
        ("no room at all", token(json!({ "rooms": [] })), json!({ "room_id": "live://2" }), Some(3207)),
        (
            "a kind of rooms",
            token(json!({ "rooms_allowed": ["live://*"] })),
            json!({ "room_id": "live://2" }),
            None,
        ),
    ];
    for (what, token, more, expected) in cases {
        check(&server, what, &token, &more, expected);
    }
}

#[test]
fn the_claims_are_the_session() {
    let backend = backend();
    let server = Server::start(&settings(&backend));
    for transport in BOTH {
        let (key, room) = (unique("k"), unique("live://r"));
        let mut claims = claims();
        claims["key"] = json!(key);
        claims["rooms"] = json!([room]);
        claims["accepts"] = json!([1000]);
        let (mut client, reply) =
            Client::present(&server, transport, body(&hs256(&claims), true, &json!({})));
        let reply: Value = serde_json::from_slice(&reply.unwrap().body).unwrap();
        assert_eq!(
            (reply["mid"].as_u64(), reply["key"].as_str()),
            (claims["mid"].as_u64(), Some(key.as_str()))
        );
        assert_eq!(
            (reply["rooms"].clone(), reply["expires_at"].clone()),
            (json!([room]), claims["exp"].clone())
        );
        server.push_keys(1000, &[&key], "by key");
        client.expect_push(1000, "by key");
        server.push_mids(1000, &[claims["mid"].as_i64().unwrap()], "by mid");
        client.expect_push(1000, "by mid");
        server.push_room(1000, &room, "to the room");
        client.expect_push(1000, "to the room");
    }
}

#[test]
fn keys_change_while_clients_are_connected() {
    let backend = backend();
    let server = Server::start(&settings(&backend).set("logic.identity.jwt.jwks_refresh_interval", "50ms"));
    let [first, second] = &KEYS.ec;
    let es256 = |key: &EncodingKey, kid: &str, claims: &Value| sign(Algorithm::ES256, key, Some(kid), claims);
    let mine = claims();
    let (mut old, reply) =
        Client::present(&server, Transport::Tcp, body(&es256(first, "ec1", &mine), true, &json!({})));
    assert_eq!(code(&reply.unwrap()), 0);

    backend.answers(|_| Answer::ok(jwks(&[("ec2", &KEYS.ec[1], Algorithm::ES256)])));
    check(&server, "a token of the new key, at once", &es256(second, "ec2", &claims()), &json!({}), None);
    eventually("the old key is forgotten", || {
        let token = body(&es256(first, "ec1", &claims()), true, &json!({}));
        code(&Client::present(&server, Transport::Tcp, token).1.unwrap()) == 3204
    });
    // A connected client stays, and presents a new token when it is time.
    old.heartbeat();
    let refresh = |token: &str| Packet::new(30, 9, json!({ "token": token }).to_string());
    let refused = old.ask(&refresh(&es256(first, "ec1", &mine)));
    assert_eq!((refused.op, refused.seq, code(&refused)), (25, 9, 3204));
    let taken = old.ask(&refresh(&es256(second, "ec2", &mine)));
    assert_eq!((taken.op, taken.seq, code(&taken)), (31, 9, 0));

    // Known keys stay valid while the key server is down or answers nonsense.
    backend.set_down(true);
    check(&server, "the place is down", &es256(second, "ec2", &claims()), &json!({}), None);
    check(
        &server,
        "a new key, and the place is down",
        &es256(first, "ec3", &claims()),
        &json!({}),
        Some(3204),
    );
    backend.set_down(false);
    backend.answers(|_| Answer::ok("<html>"));
    check(&server, "the place is mad", &es256(second, "ec2", &claims()), &json!({}), None);
}

#[test]
fn without_keys_all_are_refused() {
    let backend = backend();
    backend.set_down(true);
    let server = Server::start(&settings(&backend).set("logic.identity.jwt.jwks_retry_pause", "200ms"));
    let token = || sign(Algorithm::ES256, &KEYS.ec[0], Some("ec1"), &claims());
    check(&server, "no key was ever there", &token(), &json!({}), Some(3101));
    let readiness = server.get("/readyz");
    assert_eq!(readiness.status, 503);
    assert!(readiness.text().contains("identity: the keys for tokens"), "{}", readiness.text());
    for (what, answer) in [
        ("nonsense", Answer::ok("<html>")),
        ("no keys", Answer::ok(r#"{"keys":[]}"#)),
        ("an error", Answer::status(500, "")),
        ("too much", Answer::ok(vec![b' '; 300 * 1024])),
    ] {
        backend.answers(move |_| answer.clone());
        backend.set_down(false);
        let asked = backend.asked().len();
        eventually("the place is asked again", || {
            check(&server, what, &token(), &json!({}), Some(3101));
            backend.asked().len() > asked
        });
        check(&server, what, &token(), &json!({}), Some(3101));
    }
    let [first, _] = &KEYS.ec;
    backend.answers(|_| Answer::ok(jwks(&[("ec1", &KEYS.ec[0], Algorithm::ES256)])));
    eventually("the keys are fetched", || {
        let token = sign(Algorithm::ES256, first, Some("ec1"), &claims());
        code(&Client::present(&server, Transport::Tcp, body(&token, true, &json!({}))).1.unwrap()) == 0
    });
    assert_eq!(server.get("/readyz").status, 200);
    // However many key ids are invented, the key server is asked a few times only, and all are
    // refused.
    let (before, began) = (backend.asked().len(), std::time::Instant::now());
    for nth in 0..50 {
        let token = sign(Algorithm::ES256, &KEYS.ec[1], Some(&format!("x{nth}")), &claims());
        let (_, arrived) = Client::present(&server, Transport::Tcp, body(&token, true, &json!({})));
        assert!(matches!(code(&arrived.unwrap()), 3101 | 3204));
    }
    let (asked, may) = (backend.asked().len() - before, 1 + began.elapsed().as_millis() / 200);
    assert!(asked as u128 <= may, "{asked} requests in {:?}", began.elapsed());
}

#[test]
fn a_session_ends_with_its_token_unless_it_brings_a_new_one() {
    let backend = backend();
    let server = Server::start(&settings(&backend));
    for transport in BOTH {
        let short = || with("exp", json!(now() + 2));
        let (mine, other) = (short(), short());
        let (mut stays, reply) = Client::present(&server, transport, body(&hs256(&mine), true, &json!({})));
        assert_eq!(code(&reply.unwrap()), 0);
        let (mut ends, _) = Client::present(&server, transport, body(&hs256(&other), true, &json!({})));
        let (mut plain, _) = Client::present(&server, transport, body(&hs256(&short()), false, &json!({})));

        let mut longer = mine.clone();
        longer["exp"] = json!(now() + 3600);
        let ask = |client: &mut Client, token: &str| {
            client.ask(&Packet::new(30, 5, json!({ "token": token }).to_string()))
        };
        // Another member's token, an expired one, and none: the session continues with its current
        // token.
        for (token, expected) in
            [(hs256(&claims()), 3205), (hs256(&with("exp", json!(1))), 3201), (String::new(), 3200)]
        {
            let refused = ask(&mut ends, &token);
            assert_eq!((refused.op, code(&refused)), (25, expected));
        }
        assert_eq!(ask(&mut stays, &hs256(&longer)), {
            let reply = json!({ "code": 0, "expires_at": longer["exp"] }).to_string();
            Packet::new(31, 5, reply)
        });
        // To goim operation 30 is a packet like any other.
        assert_eq!(plain.ask(&Packet::new(30, 5, "x")), Packet::new(30, 5, ""));

        let notice = ends.packet_or_end().expect("a negotiated client is told");
        assert_eq!((notice.op, code(&notice)), (6, 3201));
        assert_eq!(ends.packet_or_end(), None);
        plain.expect_closed();
        stays.heartbeat();
    }
}

#[test]
fn a_blank_key_in_a_token_is_none_and_a_room_without_a_name_is_refused() {
    let backend = backend();
    let server = Server::start(&settings(&backend));
    for transport in BOTH {
        let mut keys = std::collections::BTreeSet::new();
        // One after the other, and all stay.
        let mut sessions: Vec<Client> = ["", "", " "]
            .into_iter()
            .map(|blank| {
                let token = hs256(&with("key", json!(blank)));
                let (client, reply) = Client::present(&server, transport, body(&token, true, &json!({})));
                let reply: Value = serde_json::from_slice(&reply.unwrap().body).unwrap();
                keys.insert(reply["key"].as_str().unwrap().to_owned());
                client
            })
            .collect();
        assert_eq!(keys.len(), 3, "all have keys of their own: {keys:?}");
        sessions.iter_mut().for_each(Client::expect_nothing);
    }
    for (name, rooms) in
        [("rooms", json!([""])), ("rooms", json!(["live://1", ""])), ("rooms_allowed", json!([""]))]
    {
        check(&server, name, &hs256(&with(name, rooms)), &json!({}), Some(3207));
    }
    // A new token is judged as the first was.
    let token = with("mid", json!(number()));
    let (mut client, reply) =
        Client::present(&server, Transport::Tcp, body(&hs256(&token), true, &json!({})));
    assert_eq!(code(&reply.unwrap()), 0);
    for (change, expected) in [(json!({ "key": "" }), 0), (json!({ "rooms": [""] }), 3207)] {
        let mut token = token.clone();
        token.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let reply = client.ask(&Packet::new(30, 5, body(&hs256(&token), true, &json!({}))));
        assert_eq!(code(&reply), expected, "{change}");
    }
}
