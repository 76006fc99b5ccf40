//! The danmaku protocol of bilibili: goim's header with other operations and versions.
//!
//! Its clients authenticate with a JSON object that is converted to a goim token before logic gets
//! it. The auth reply is `{"code":0}`. Every message has operation 5 and, uncompressed, version 0.
//! A client that reads version 2 or 3 gets several messages in one packet of that version,
//! compressed as a whole. The facts are taken from published clients.

use bytes::Bytes;
use goim_ports::{Encoding, Operation, Sequence, Version};
use goim_wire::{Packet, batch};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Body of the auth reply.
pub(crate) const WELCOME: &[u8] = br#"{"code":0}"#;
/// The same for who gets no session.
pub(crate) const REFUSED: &[u8] = br#"{"code":-101}"#;

/// The operation of every message.
const MESSAGE: Operation = Operation(5);
/// The version of a message as it is.
const PLAIN: Version = Version(0);

/// The content of an auth packet.
pub(crate) struct Auth {
    /// The token as goim's clients write it.
    pub(crate) token: Bytes,
    /// The best encoding that the client reads.
    pub(crate) encoding: Encoding,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default, deserialize_with = "number")]
    uid: i64,
    #[serde(default, deserialize_with = "number")]
    roomid: i64,
    #[serde(default, deserialize_with = "number")]
    protover: i64,
    #[serde(default)]
    platform: String,
    #[serde(default)]
    key: String,
}

/// Some clients write numbers as text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(D::Error::custom),
    }
}

/// Reads the body of an auth packet; the room has the type `rooms`. `None` when it is no such
/// object.
pub(crate) fn read_auth(body: &[u8], rooms: &str) -> Option<Auth> {
    // Of a list the derived reader would take the elements as members.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    let Object { uid, roomid, protover, platform, key } = serde_json::from_value(object.into()).ok()?;
    let token = serde_json::json!({
        "mid": uid,
        "room_id": format!("{rooms}://{roomid}"),
        "platform": platform,
        "token": key,
    });
    let encoding = match protover {
        ..=1 => Encoding::Identity,
        2 => Encoding::Zlib,
        3.. => Encoding::Brotli,
    };
    Some(Auth { token: token.to_string().into(), encoding })
}

/// Returns a run of packets with the operation and version of danmaku messages.
pub(crate) fn run(packets: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(packets.len());
    for packet in batch::packets(packets).filter_map(Result::ok) {
        let (version, operation, sequence) = (PLAIN, MESSAGE, Sequence::NONE);
        Packet { version, operation, sequence, body: packet.body }.encode(&mut out);
    }
    out.into()
}

/// The packet that carries a run which is compressed.
pub(crate) fn compressed(encoding: Encoding, body: Bytes) -> goim_ports::PacketBuf {
    let version = if encoding == Encoding::Zlib { Version(2) } else { Version(3) };
    goim_ports::PacketBuf { version, operation: MESSAGE, sequence: Sequence::NONE, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_object_becomes_goims_token() {
        let read = |body: &str| read_auth(body.as_bytes(), "live");
        let auth =
            read(r#"{"uid":7,"roomid":1000,"protover":3,"platform":"web","type":2,"key":"t"}"#).unwrap();
        assert_eq!(auth.encoding, Encoding::Brotli);
        let expected = r#"{"mid":7,"room_id":"live://1000","platform":"web","token":"t"}"#;
        assert_eq!(auth.token, expected);
        let auth = read(r#"{"roomid":"1000","protover":2}"#).unwrap();
        assert_eq!(auth.encoding, Encoding::Zlib);
        assert_eq!(auth.token, r#"{"mid":0,"room_id":"live://1000","platform":"","token":""}"#);
        for (protover, encoding) in [
            (-1, Encoding::Identity),
            (0, Encoding::Identity),
            (1, Encoding::Identity),
            (9, Encoding::Brotli),
        ] {
            assert_eq!(read(&format!(r#"{{"roomid":1,"protover":{protover}}}"#)).unwrap().encoding, encoding);
        }
        for wrong in ["", "[]", r#"{"roomid":"x"}"#, r#"{"roomid":{}}"#, r#"{"roomid":1.5}"#] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn messages_get_its_operation() {
        let mut goim = Vec::new();
        for (operation, body) in [(1000, "one"), (1001, "two")] {
            goim_ports::PacketBuf::push(Operation(operation), Bytes::copy_from_slice(body.as_bytes()))
                .as_packet()
                .encode(&mut goim);
        }
        let run = run(&goim);
        let packets: Vec<_> = batch::packets(&run).map(Result::unwrap).collect();
        assert_eq!(packets.len(), 2);
        for (packet, body) in packets.iter().zip([b"one", b"two"]) {
            assert_eq!(
                (packet.version, packet.operation, packet.body),
                (Version(0), Operation(5), &body[..])
            );
        }
    }
}
