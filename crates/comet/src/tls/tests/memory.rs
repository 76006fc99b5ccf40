//! What a session holds on the heap: the reason for this module's shape.

use super::pair::{Authority, Chunks, Pair, Rng, VERSIONS};

/// What an idle session may hold: 4.5 KiB. Measured with rustls 0.23.46: 3,305 bytes in 8 blocks
/// with TLS 1.3, 3,201 with TLS 1.2; its usual connection holds 4 KiB more.
const IDLE_BYTES_MAX: i64 = 4608;

/// Room for the test's own buffers, so that only the session allocates while it is measured.
const SCRATCH_BYTES: usize = 4 << 20;

fn established(
    authority: &Authority,
    version: &'static rustls::SupportedProtocolVersion,
    chunks: Chunks,
) -> Pair {
    let mut pair = Pair::new(authority, version, chunks, Rng(1));
    pair.to_client.reserve(SCRATCH_BYTES);
    pair.server_got.reserve(SCRATCH_BYTES);
    pair.settle();
    pair
}

fn exchange(pair: &mut Pair, bytes: usize) {
    pair.client_writes(&vec![1; bytes]);
    pair.server_writes(&vec![2; bytes]);
    pair.settle();
    assert_eq!((pair.server_got.len(), pair.client_got.len()), (bytes, bytes));
    pair.server_got.clear();
    pair.client_got.clear();
}

#[test]
fn an_idle_session_holds_little() {
    let authority = Authority::new();
    for version in VERSIONS {
        let mut pair = established(&authority, version, Chunks::All);
        exchange(&mut pair, 100);
        let (bytes, blocks) = (pair.held.bytes_current, pair.held.count_current);
        eprintln!("{version:?}: {bytes} bytes in {blocks} blocks");
        assert!(bytes > 1000, "the measurement sees nothing: {bytes}");
        assert!(bytes < IDLE_BYTES_MAX, "{version:?}: {bytes} bytes");
    }
}

#[test]
fn nothing_grows_with_traffic() {
    let authority = Authority::new();
    for version in VERSIONS {
        for chunks in [Chunks::All, Chunks::UpTo(5000)] {
            let mut pair = established(&authority, version, chunks);
            exchange(&mut pair, 100);
            let before = pair.held.bytes_current;
            for _ in 0..4 {
                exchange(&mut pair, 1 << 20);
            }
            exchange(&mut pair, 100);
            assert_eq!(pair.held.bytes_current, before, "{version:?} {chunks:?}");
        }
    }
}

#[test]
fn half_a_record_is_held_until_its_rest_comes() {
    let authority = Authority::new();
    for version in VERSIONS {
        let mut pair = established(&authority, version, Chunks::All);
        exchange(&mut pair, 100);
        let before = pair.held.bytes_current;
        pair.client_writes(&[1; 1000]);
        pair.collect_from_client();
        let rest = pair.to_server.split_off(500);
        pair.deliver_to_server().unwrap();
        assert_eq!(pair.held.bytes_current - before, 500, "the half is held, and nothing else");
        pair.to_server = rest;
        pair.settle();
        assert_eq!(pair.held.bytes_current, before);
        assert_eq!(pair.server_got.len(), 1000);
    }
}

#[test]
fn a_session_that_ends_gives_all_back() {
    let authority = Authority::new();
    for version in VERSIONS {
        let mut pair = established(&authority, version, Chunks::UpTo(100));
        exchange(&mut pair, 5000);
        let Pair { server, held, .. } = pair;
        let freed = allocation_counter::measure(|| drop(server));
        assert_eq!(held.bytes_current + freed.bytes_current, 0, "{version:?}");
    }
}
