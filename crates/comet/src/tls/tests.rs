//! Sessions against rustls's usual client, in memory.

mod memory;
mod pair;
mod records;
mod store;

use rustls::{AlertDescription, HandshakeKind};

use self::pair::{Authority, Chunks, Pair, Rng, VERSIONS, seed};
use super::session::{Mistaken, TlsError, TlsProgress, TlsSession, WAITING_BYTES_MAX};

/// Sends `bytes` each way in writes of random sizes and compares.
fn exchange(pair: &mut Pair, bytes: usize) {
    let up = pair.rng.bytes(bytes);
    let down = pair.rng.bytes(bytes);
    let (mut up_left, mut down_left) = (&up[..], &down[..]);
    while !up_left.is_empty() || !down_left.is_empty() {
        let (now, later) = up_left.split_at(pair.rng.below(40_000).min(up_left.len()));
        pair.client_writes(now);
        up_left = later;
        let (now, later) = down_left.split_at(pair.rng.below(40_000).min(down_left.len()));
        pair.server_writes(now);
        down_left = later;
        pair.settle();
    }
    assert!(pair.server_got == up, "what the client sent has changed");
    assert!(pair.client_got == down, "what the server sent has changed");
    pair.server_got.clear();
    pair.client_got.clear();
}

#[test]
fn any_cut_of_the_stream_gives_the_same_bytes() {
    let authority = Authority::new();
    let seed = seed();
    for version in VERSIONS {
        for (chunks, bytes) in [
            (Chunks::UpTo(1), 20_000),
            (Chunks::UpTo(50), 100_000),
            (Chunks::UpTo(40_000), 1 << 20),
            (Chunks::All, 1 << 20),
        ] {
            eprintln!("seed {seed}, {version:?}, {chunks:?}");
            let mut pair = Pair::new(&authority, version, chunks, Rng(seed));
            pair.settle();
            assert!(pair.server.is_established() && !pair.client.is_handshaking());
            assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
            exchange(&mut pair, bytes);
        }
    }
}

#[test]
fn a_client_that_comes_again_resumes() {
    let authority = Authority::new();
    for version in VERSIONS {
        let config = authority.client_config(version);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut pair = Pair::with_client(&authority.store, config.clone(), Chunks::All, Rng(1));
            pair.settle();
            exchange(&mut pair, 100);
            kinds.push(pair.client.handshake_kind());
        }
        assert_eq!(
            kinds,
            [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed].map(Some),
            "{version:?}"
        );
    }
}

#[test]
fn keys_are_renewed_when_the_client_asks() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority, VERSIONS[0], Chunks::UpTo(9), Rng(2));
    pair.settle();
    for _ in 0..20 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.settle();
        exchange(&mut pair, 3000);
    }
}

#[test]
fn each_side_closes_on_its_own() {
    let authority = Authority::new();
    for (version, chunks) in
        VERSIONS.into_iter().flat_map(|version| [(version, Chunks::All), (version, Chunks::UpTo(7))])
    {
        let mut pair = Pair::new(&authority, version, chunks, Rng(3));
        assert_eq!(pair.settle(), TlsProgress { handshake_done: true, peer_closed: false });
        pair.client_writes(b"last words");
        pair.client.send_close_notify();
        // What follows the end is ignored.
        pair.collect_from_client();
        pair.to_server.extend_from_slice(b"\x17\x03\x03\x00\x05hello and more");
        pair.to_server.resize(pair.to_server.len() + 40_000, 7);
        assert_eq!(pair.settle(), TlsProgress { handshake_done: true, peer_closed: true });
        assert_eq!(pair.server_got, b"last words");

        pair.server_writes(b"answer");
        pair.server.close(&mut pair.to_client);
        let sent = pair.to_client.len();
        pair.server.close(&mut pair.to_client);
        assert_eq!(pair.to_client.len(), sent, "closed twice");
        assert!(matches!(pair.server.write(b"more", &mut pair.to_client), Err(TlsError::Ended)));
        pair.settle();
        assert_eq!(pair.client_got, b"answer");
        assert!(pair.client_saw_close, "{version:?}");
    }
}

#[test]
fn a_client_may_say_all_at_once_and_leave() {
    let authority = Authority::new();
    // 0: in one read. Else in two reads; the first ends within a record.
    for cut in [0, 3, 90, 150] {
        let mut pair = Pair::new(&authority, VERSIONS[0], Chunks::All, Rng(10));
        pair.collect_from_client();
        pair.deliver_to_server().unwrap();
        pair.deliver_to_client().unwrap();
        // The end of the handshake, which is answered by a ticket; data; the end of the session;
        // junk.
        pair.client_writes(&[1; 100]);
        pair.client.send_close_notify();
        pair.collect_from_client();
        pair.to_server.resize(pair.to_server.len() + 40_000, 7);
        let rest = pair.to_server.split_off(cut);
        pair.deliver_to_server().unwrap();
        pair.to_server = rest;
        assert_eq!(pair.settle(), TlsProgress { handshake_done: true, peer_closed: true }, "{cut}");
        assert_eq!(pair.server_got, [1; 100]);
    }
}

#[test]
fn after_our_close_input_is_ignored() {
    let authority = Authority::new();
    for version in VERSIONS {
        let mut pair = Pair::new(&authority, version, Chunks::All, Rng(4));
        pair.settle();
        pair.server.close(&mut pair.to_client);
        let mut junk = *b"GET / HTTP/1.1\r\n\r\n";
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let progress = pair.server.read(&mut junk, &mut plain, &mut out).unwrap();
        assert_eq!(progress, TlsProgress { handshake_done: true, peer_closed: false });
        assert!(plain.is_empty() && out.is_empty());
    }
}

#[test]
fn before_the_handshake_there_is_nothing_to_write_with() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority, VERSIONS[0], Chunks::All, Rng(5));
    let mut out = Vec::new();
    assert!(matches!(pair.server.write(b"early", &mut out), Err(TlsError::NotEstablished)));
    assert!(matches!(pair.server.write(b"", &mut out), Err(TlsError::NotEstablished)));
    assert!(out.is_empty() && !pair.server.is_established());
    pair.settle();
    exchange(&mut pair, 100);

    let mut early = TlsSession::new(&authority.store.server_config()).unwrap();
    early.close(&mut out);
    assert!(out.is_empty(), "nothing can be said before the handshake");
    assert!(matches!(early.write(b"late", &mut out), Err(TlsError::Ended)));
}

#[test]
fn what_is_not_tls_is_named() {
    let authority = Authority::new();
    let cases: [(&[u8], Mistaken, &str); 4] = [
        (b"GET /sub HTTP/1.1\r\n", Mistaken::Http, "not TLS: looks like a plain HTTP request on a TLS port"),
        (b"\0\0\0\x10\0\x10", Mistaken::Packet, "not TLS: looks like a plain packet on a TLS port"),
        (b"\x80\x2e\x01", Mistaken::Other(0x80), "not TLS: first byte is 0x80, a TLS client sends 0x16"),
        (
            b"\x15\x03\x01\x00\x02\x02\x28",
            Mistaken::Other(0x15),
            "not TLS: first byte is 0x15, a TLS client sends 0x16",
        ),
    ];
    for (input, expect, text) in cases {
        for cut in [1, input.len()] {
            let mut session = TlsSession::new(&authority.store.server_config()).unwrap();
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            session.read(&mut [], &mut plain, &mut out).unwrap();
            let error = session.read(&mut input[..cut].to_vec(), &mut plain, &mut out).unwrap_err();
            assert_eq!(error.to_string(), text);
            assert!(matches!(error, TlsError::NotTls(found) if found == expect));
            assert_eq!(out.is_empty(), expect != Mistaken::Http);
            let again = session.read(&mut input.to_vec(), &mut plain, &mut out).unwrap_err();
            assert!(matches!(again, TlsError::Ended) && plain.is_empty());
        }
    }
}

#[test]
fn a_plain_http_client_gets_an_answer_it_can_read() {
    let authority = Authority::new();
    let mut session = TlsSession::new(&authority.store.server_config()).unwrap();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    session.read(&mut b"GET / HTTP/1.1\r\n\r\n".to_vec(), &mut plain, &mut out).unwrap_err();
    let answer = String::from_utf8(out).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head} {}", body.len());
}

#[test]
fn a_client_that_distrusts_the_certificate_says_so() {
    let authority = Authority::new();
    let other = Authority::new();
    for version in VERSIONS {
        let mut pair =
            Pair::with_client(&authority.store, other.client_config(version), Chunks::UpTo(20), Rng(6));
        let error = pair.try_settle().unwrap_err();
        assert!(matches!(error, TlsError::Protocol(rustls::Error::AlertReceived(_))), "{version:?} {error}");
    }
}

#[test]
fn a_client_without_common_ground_gets_an_alert() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority, VERSIONS[1], Chunks::All, Rng(7));
    pair.collect_from_client();
    // The cipher suites of the ClientHello follow 5 + 4 + 2 + 32 bytes and the session id.
    let suites = 43 + 1 + usize::from(pair.to_server[43]);
    let count = usize::from(u16::from_be_bytes([pair.to_server[suites], pair.to_server[suites + 1]]));
    pair.to_server[suites + 2..suites + 2 + count].fill(0xfa);
    let error = pair.try_settle().unwrap_err();
    assert!(matches!(error, TlsError::Protocol(rustls::Error::PeerIncompatible(_))), "{error}");
    assert_eq!(pair.alert_to_client(), Some(AlertDescription::HandshakeFailure));
}

#[test]
fn a_client_hello_may_be_cut_into_many_records() {
    let authority = Authority::new();
    for version in VERSIONS {
        for (piece, chunks) in [(1, Chunks::All), (1, Chunks::UpTo(3)), (100, Chunks::UpTo(250))] {
            let mut pair = Pair::new(&authority, version, chunks, Rng(8));
            pair.collect_from_client();
            pair.to_server = pair::cut_records(&pair.to_server, piece);
            pair.settle();
            assert!(pair.server.is_established(), "{version:?} {piece}");
            exchange(&mut pair, 1000);
        }
    }
}

#[test]
fn what_waits_is_bounded() {
    let authority = Authority::new();
    // A ClientHello that claims 60,000 bytes, in records of 1,000.
    let mut hello = vec![1, 0, 60_000_u32.to_be_bytes()[2], 60_000_u32.to_be_bytes()[3]];
    hello.resize(60_004, 7);
    let stream: Vec<u8> = hello.chunks(1000).flat_map(|piece| pair::record(22, piece)).collect();
    let mut session = TlsSession::new(&authority.store.server_config()).unwrap();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let mut taken = 0;
    let error = stream.chunks(300).find_map(|chunk| {
        taken += chunk.len();
        session.read(&mut chunk.to_vec(), &mut plain, &mut out).err()
    });
    assert!(matches!(error, Some(TlsError::HandshakeTooLarge)), "{error:?}");
    assert!((WAITING_BYTES_MAX..WAITING_BYTES_MAX + 301).contains(&taken), "{taken}");
}

#[test]
fn a_record_that_announces_too_much_is_refused_at_its_header() {
    let authority = Authority::new();
    for length in [16_384_u16 + 2049, u16::MAX] {
        let mut pair = Pair::new(&authority, VERSIONS[0], Chunks::UpTo(1), Rng(9));
        pair.to_server = vec![22, 3, 1];
        pair.to_server.extend_from_slice(&length.to_be_bytes());
        let error = pair.try_settle().unwrap_err();
        assert!(matches!(error, TlsError::Protocol(rustls::Error::InvalidMessage(_))), "{error}");
        assert_eq!(pair.alert_to_client(), Some(AlertDescription::DecodeError));
    }
}

/// Flips, truncates, duplicates: nothing panics, and an error is reported once and stays.
#[test]
fn no_mutation_of_a_conversation_panics() {
    let authority = Authority::new();
    let seed = seed();
    eprintln!("seed {seed}");
    let mut rng = Rng(seed);
    let mut errors = 0;
    for round in 0..600 {
        let version = VERSIONS[round % 2];
        let mut pair = Pair::new(&authority, version, Chunks::UpTo(1 + rng.below(600)), Rng(rng.next()));
        // The flight to corrupt: the ClientHello, what follows it, or traffic.
        for _ in 0..rng.below(3) {
            pair.collect_from_client();
            if pair.deliver_to_server().is_err() || pair.deliver_to_client().is_err() {
                break;
            }
        }
        if !pair.client.is_handshaking() {
            pair.client_writes(&rng.bytes(300));
        }
        pair.collect_from_client();
        rng.mutate(&mut pair.to_server);
        errors += usize::from(pair.try_settle().is_err());
    }
    assert!(errors > 300, "{errors} of 600 mutations were noticed");
}
